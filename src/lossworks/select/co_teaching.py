"""Co-teaching: two networks that pick for each other the rows to learn from."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossworks.checks import (
    as_float,
    check_between,
    check_floating,
    check_int,
    check_same_shape,
    check_tensor,
    readable,
    taken,
)
from lossworks.roles import Loss, Selector, cite, evaluating

__all__ = ["CoTeachingSelector", "co_teaching_step"]


class _Picked(NamedTuple):
    """The row numbers ``(k,)`` int64 that each network picked for the other, those of the smallest loss first."""

    for_second: Tensor
    for_first: Tensor


class CoTeachingSelector(Selector):
    r"""Co-teaching: each of two networks picks its rows of smallest loss, and the other network learns from them.

    .. math::
        S_1 = \{\lfloor (1 - R(t))\, n \rfloor \text{ rows with the smallest } \ell^{(1)}\}, \qquad
        R(t) = \tau \min(t / T, 1)

    :math:`S_2` is found in the same way. The first network learns from :math:`S_2` and the second from :math:`S_1`,
    because a wrong label that one of them has come to accept is still doubted by the other. At least one row is kept.

    It picks from a whole batch. If the batch is split over ranks or micro-batches, gather its losses first: each part
    by itself would keep other rows than the whole batch does.

    Args:
        forget_rate: :math:`\tau`, the share of rows that is left out in the end, in [0, 1): about the share of wrong
            labels.
        warmup_epochs: T, the epochs over which the share rises from 0, >= 0.

    Raises:
        ValueError: ``forget_rate`` outside [0, 1), ``warmup_epochs < 0``, ``epoch < 0``, losses that are not ``(n,)``,
            that differ in shape or that hold NaN.

    Use it when labels are noisy, with two networks that were initialised differently. With clean labels it leaves out
    the hard rows.

    Epochs are counted from 0, so R is 0 in the first epoch and reaches :math:`\tau` in epoch T; in the authors' code it
    reaches :math:`\tau` one epoch earlier.

    Papers: han2018coteaching, chen2022compressing

    >>> losses = torch.tensor([0.1, 3.0, 0.2, 0.3]), torch.tensor([0.1, 0.2, 4.0, 0.3])
    >>> CoTeachingSelector(forget_rate=0.25)(*losses, epoch=5)
    _Picked(for_second=tensor([0, 2, 3]), for_first=tensor([0, 1, 3]))
    """

    papers = ("han2018coteaching", "chen2022compressing")
    helps = ("noisy labels",)
    rows = ("first", "second")
    picks = True

    def __init__(self, forget_rate: float = 0.2, warmup_epochs: int = 5) -> None:
        self.forget_rate = check_between("forget_rate", forget_rate, 0, 1, open_high=True)
        self.warmup_epochs = check_int("warmup_epochs", warmup_epochs, low=0)

    def rate(self, epoch: int) -> float:
        """The share of rows that is left out in this epoch, counted from 0."""
        check_int("epoch", epoch, low=0)
        return as_float(self.forget_rate) * min(epoch / self.warmup_epochs if self.warmup_epochs else 1.0, 1.0)

    @torch.no_grad()
    def __call__(self, first: Float[Tensor, " n"], second: Float[Tensor, " n"], epoch: int) -> _Picked:
        """Which rows each network learns from, by the losses that both have on them."""
        check_floating("first", first)
        check_floating("second", second)
        check_same_shape(first, second, names=("first", "second"))
        if first.ndim != 1:
            raise ValueError(f"first must have shape (n,), got {tuple(first.shape)}")
        for name, losses in (("first", first), ("second", second)):
            if readable(losses) and bool(losses.isnan().any()):
                raise ValueError(f"{name} must be numbers or inf, got nan in row {int(losses.isnan().nonzero()[0])}")
        # A little is added, because (1 - 0.9) * 10 is just below 1.
        kept = max(math.floor((1 - self.rate(epoch)) * len(first) + 1e-9), 1)
        return _Picked(*(losses.argsort(stable=True)[:kept] for losses in (first, second)))


@cite("han2018coteaching", "chen2022compressing", helps=("noisy labels",), changes=("models", "optimizers"))
def co_teaching_step(
    models: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Loss,
    selector: CoTeachingSelector,
    x: Tensor,
    target: Int[Tensor, " n"],
    epoch: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""One co-teaching step: trains two networks, each on the rows that the other picked.

    .. math:: \theta_1 \leftarrow \theta_1 - \eta \nabla_{\theta_1} \ell(\theta_1; S_2), \qquad
        \theta_2 \leftarrow \theta_2 - \eta \nabla_{\theta_2} \ell(\theta_2; S_1)

    Rows are picked in evaluation mode, that is, without dropout and with batch normalisation's running statistics; rows
    whose target is the loss's ``ignore_index`` are left out first. The networks' modes are restored afterwards.

    Args:
        models: Two models, each from an input ``(n, ...)`` to one output a row.
        optimizers: Two optimizers, each for one model's parameters.
        loss: A loss with one value a row and without a memory of rows.
        selector: Picks the rows that are kept.
        x: The batch, ``(n, ...)``.
        target: The targets that the loss takes, one a row.
        epoch: The epoch, counted from 0.

    Returns:
        The losses on which the two models were trained, ``()`` each.

    Raises:
        ValueError: not two models or optimizers, a loss with ``reduction="none"``, losses that are not one a row,
            whatever loss and selector refuse.
        TypeError: arguments of another type, a loss that needs ``index=``.

    Papers: han2018coteaching, chen2022compressing

    >>> from lossworks.losses import CrossEntropyLoss
    >>> models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    >>> optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    >>> x, target = torch.eye(2), torch.tensor([0, 1])
    >>> first, second = co_teaching_step(models, optimizers, CrossEntropyLoss(), CoTeachingSelector(), x, target, 0)
    >>> bool(first > 0)
    True
    """
    _check_pair("models", models, nn.Module)
    _check_pair("optimizers", optimizers, torch.optim.Optimizer)
    if not isinstance(loss, Loss) or loss.needs_index:
        raise TypeError(f"loss must be a lossworks Loss without a memory of rows, got {type(loss).__name__}")
    if loss.reduction == "none":
        raise ValueError("loss must have the reduction 'mean' or 'sum', got 'none'")
    if not isinstance(selector, CoTeachingSelector):
        raise TypeError(f"selector must be a CoTeachingSelector, got {type(selector).__name__}")
    check_tensor("x", x)
    check_tensor("target", target)
    if not x.ndim or not target.ndim or len(x) != len(target):
        raise ValueError(f"target must have one entry a row of x {tuple(x.shape)}, got {tuple(target.shape)}")
    losses = []
    for model in models:
        with torch.no_grad(), evaluating(model), evaluating(loss):
            own, kept = _losses(model, loss, x, target)
        if own.ndim != 1:
            raise ValueError(f"target must give one loss a row, it gives losses of shape {tuple(own.shape)}")
        if readable(own) and bool(own.isnan().any()):
            row = int(own.isnan().nonzero()[0])
            raise ValueError(f"models must give outputs whose losses are numbers or inf, got NaN in row {row}")
        losses.append(own)
    rows = torch.arange(len(x), device=x.device) if kept is None else kept.nonzero().flatten()
    picked = selector(losses[0][rows], losses[1][rows], epoch)
    values = []
    for model, optimizer, chosen in zip(models, optimizers, (picked.for_first, picked.for_second), strict=True):
        optimizer.zero_grad()
        value = loss(model(x[rows[chosen]]), target[rows[chosen]])
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return values[0], values[1]


def _losses(model: nn.Module, loss: Loss, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """The loss of each row, if model and loss take them."""
    with taken("x must be what models take"):
        output = model(x)
    with taken("target and models must give what loss takes"):
        return loss.rows(output, target)


def _check_pair(name: str, pair: Sequence[object], wanted: type) -> None:
    if isinstance(pair, str) or not isinstance(pair, (Sequence, nn.ModuleList)) or len(pair) != 2:
        raise ValueError(f"{name} must be two, one for each network, got {type(pair).__name__}")
    for one in pair:
        if not isinstance(one, wanted):
            raise TypeError(f"{name} must be two of {wanted.__name__}, got {type(one).__name__}")
