"""Two networks that tell each other which rows to learn from."""

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
from lossworks.roles import Loss, cite, evaluating

__all__ = ["CoTeachingSelector", "co_teaching_step"]


class _Picked(NamedTuple):
    """Rows ``(k,)`` int64, those of the smallest loss first: by the first network for the second, and the other way."""

    for_second: Tensor
    for_first: Tensor


class CoTeachingSelector:
    r"""Each of two networks keeps the rows whose loss is smallest for it, and hands them to the other.

    .. math::
        S_1 = \{\lfloor (1 - R(t))\, n \rfloor \text{ rows with the smallest } \ell^{(1)}\}, \qquad
        R(t) = \tau \min(t / T, 1)

    and :math:`S_2` in the same way. The first network learns from :math:`S_2`, the second from :math:`S_1`: what one of
    them takes for right by mistake, the other still doubts. At least one row is kept.

    It is asked about a batch; one that is split over ranks or micro-batches keeps others, so gather its losses first.

    Args:
        forget_rate: :math:`\tau`, the share of rows that is left out in the end, in [0, 1): about that of wrong labels.
        warmup_epochs: T, the epochs over which the share rises from 0, >= 0.

    Raises:
        ValueError: ``forget_rate`` outside [0, 1), ``warmup_epochs < 0``, ``epoch < 0``, losses that are not ``(n,)``,
            of two shapes or hold NaN.

    Use it when labels are noisy, with two networks that started apart. With clean labels it leaves out what is hard.

    Epochs count from 0, so R is 0 in the first and full in epoch T; the authors' code has it full one epoch earlier.

    Papers: han2018coteaching, chen2022compressing

    >>> losses = torch.tensor([0.1, 3.0, 0.2, 0.3]), torch.tensor([0.1, 0.2, 4.0, 0.3])
    >>> CoTeachingSelector(forget_rate=0.25)(*losses, epoch=5)
    _Picked(for_second=tensor([0, 2, 3]), for_first=tensor([0, 1, 3]))
    """

    papers = ("han2018coteaching", "chen2022compressing")
    helps = ("noisy labels",)

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
        # A hair more, as (1 - 0.9) * 10 is just below 1.
        kept = max(math.floor((1 - self.rate(epoch)) * len(first) + 1e-9), 1)
        return _Picked(*(losses.argsort(stable=True)[:kept] for losses in (first, second)))


@cite("han2018coteaching", "chen2022compressing", helps=("noisy labels",))
def co_teaching_step(
    models: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Loss,
    selector: CoTeachingSelector,
    x: Tensor,
    target: Int[Tensor, " n"],
    epoch: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""One step of two networks, each on the rows that the other picked.

    .. math:: \theta_1 \leftarrow \theta_1 - \eta \nabla_{\theta_1} \ell(\theta_1; S_2), \qquad
        \theta_2 \leftarrow \theta_2 - \eta \nabla_{\theta_2} \ell(\theta_2; S_1)

    Rows are picked in evaluation mode, without dropout and from batch normalisation's running statistics; rows whose
    target is the loss's ``ignore_index`` are left out first. The modes are afterwards as they were.

    Args:
        models: Two, from an input ``(n, ...)`` to one output a row.
        optimizers: Two, each of one model's parameters.
        loss: With one value a row and no memory of rows.
        selector: Which rows are kept.
        x: The batch, ``(n, ...)``.
        target: What the loss takes, one a row.
        epoch: The epoch, counted from 0.

    Returns:
        The losses that the two were trained on, ``()`` each.

    Raises:
        ValueError: not two models or optimizers, a loss with ``reduction="none"``, losses that are not one a row, what
            loss and selector refuse.
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
        raise ValueError(f"{name} must be two, got {type(pair).__name__}")
    for one in pair:
        if not isinstance(one, wanted):
            raise TypeError(f"{name} must be two of {wanted.__name__}, got {type(one).__name__}")
