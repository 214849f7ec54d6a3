"""Multi-sample dropout: several draws of dropout at little cost, as only the head runs again."""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from lossworks.checks import (
    check_batch,
    check_between,
    check_floating,
    check_generator,
    check_int,
    check_tensor,
    check_total,
)
from lossworks.roles import Loss, Part, cite, weighted_reduction

__all__ = ["MultiSampleDropout", "multi_sample_dropout_loss"]


class MultiSampleDropout(Part):
    r"""Multi-sample dropout: a head behind several draws of dropout, each of which gets its own loss.

    .. math::
        z_i^m = \mathrm{head}\Big(\frac{b^m \odot h_i}{1 - p}\Big), \qquad b^m \sim \mathrm{Bernoulli}(1 - p), \qquad
        m = 1, \dots, M

    The losses of the draws are averaged, not their logits (see :func:`multi_sample_dropout_loss`): by Jensen's
    inequality a convex loss of the mean logits is lower and leaves less to learn. One draw is ordinary dropout. With M
    draws the gradient's expectation is the same, and the variance that the masks add to it is divided by M.

    All draws pass through the head as one batch of :math:`M n` rows, and a batch normalisation in the head sees that
    batch. In evaluation mode the layer is the head alone. Masks are drawn for the rows at hand, so a batch that is
    split gets other masks.

    Args:
        head: The module after the dropout, usually the last linear layer; the draws share its parameters.
        num_samples: M, the number of draws, >= 1; more than 8 gain little.
        p: The share of features that are dropped, in [0, 1).
        generator: Where the masks are drawn from; torch's own generator by default.

    Shape:
        - x: features ``(n, ...)``, floating-point; returns the head's outputs, ``(M, n, ...)`` in training mode and
          ``(n, ...)`` in evaluation mode.

    Raises:
        ValueError: ``num_samples < 1``, ``p`` outside [0, 1), a head that does not give one output per row.
        TypeError: a head that is no module, x is not floating-point.

    Use it where dropout is used anyway and the layers before it cost the most: training needs fewer steps, which cost
    nearly the same. Do not use it where the head is most of the model.

    Papers: inoue2019multisample

    >>> layer = MultiSampleDropout(nn.Linear(3, 2), num_samples=4)
    >>> layer(torch.ones(5, 3)).shape, layer.eval()(torch.ones(5, 3)).shape
    (torch.Size([4, 5, 2]), torch.Size([5, 2]))
    """

    papers = ("inoue2019multisample",)
    helps = ("overfitting",)
    starts_as_identity = True
    stochastic = True
    settings = ({"head": nn.Identity()}, {"head": nn.Identity(), "num_samples": 2, "p": 0.3})

    def __init__(
        self,
        head: nn.Module,
        num_samples: int = 8,
        p: float | Tensor = 0.5,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(head, nn.Module):
            raise TypeError(f"head must be a module, got {type(head).__name__}")
        self.head = head
        self.num_samples = check_int("num_samples", num_samples, low=1)
        self.p = check_between("p", p, 0, 1, open_high=True)
        self.generator = check_generator("generator", generator)

    def forward(self, x: Float[Tensor, "n *features"]) -> Float[Tensor, "*outputs"]:
        """The head's outputs: one per draw in training mode, without dropout in evaluation mode."""
        check_batch("x", x)
        if not self.training:
            output: Tensor = self.head(x)
            return output
        # The kept features are scaled, not the sums, so that one draw equals torch's dropout bit for bit.
        noise = self._mask(x.expand(self.num_samples, *x.shape)) / (1 - self.p)
        stacked: Tensor = self.head((x * noise.to(x.dtype)).flatten(0, 1))
        if stacked.shape[:1] != (self.num_samples * len(x),):
            wanted = self.num_samples * len(x)
            raise ValueError(f"head must give an output for each of {wanted} rows, it gave {tuple(stacked.shape)}")
        return stacked.unflatten(0, (self.num_samples, len(x)))

    def _mask(self, like: Tensor) -> Tensor:
        if isinstance(self.p, Tensor):
            return torch.bernoulli((1 - self.p).expand(like.shape), generator=self.generator)
        # Made from the input, so that vmap knows that each of its examples has a mask of its own.
        return torch.empty_like(like, memory_format=torch.contiguous_format).bernoulli_(
            1 - self.p, generator=self.generator
        )


@cite("inoue2019multisample", helps=("overfitting",))
def multi_sample_dropout_loss(
    output: Float[Tensor, "m n *rest"],
    target: Shaped[Tensor, "n *rest2"],
    loss: Loss,
    *,
    sample_weight: Float[Tensor, "n *rest2"] | None = None,
    index: Int[Tensor, "n *rest2"] | None = None,
    total: float | Tensor | None = None,
) -> Tensor:
    r"""Multi-sample dropout loss: each row's loss, averaged over the draws of :class:`MultiSampleDropout`.

    .. math:: \ell_i = \frac1M \sum_{m=1}^M \ell(z_i^m, y_i)

    Args:
        output: The head's outputs in training mode, ``(M, n, ...)``.
        target: The target that the loss takes for an output of ``(n, ...)``.
        loss: A loss with one value per row; its ``reduction`` is applied to the means over draws.
        sample_weight: One weight per row, >= 0.
        index: The rows' numbers in the training data, for losses with a memory per row. The memory of a row is updated
            as for a row that comes M times in the batch.
        total: The divisor of the mean when the batch is a micro-batch: ``loss.total_of`` summed over all micro-batches.

    Returns:
        The reduced loss, ``()``, or one mean per row with ``reduction="none"``.

    Raises:
        ValueError: outputs without a dimension of draws, no draws, or arguments that the loss refuses.
        TypeError: a loss that is no :class:`lossworks.Loss`.

    Papers: inoue2019multisample

    >>> from lossworks.losses import CrossEntropyLoss
    >>> multi_sample_dropout_loss(torch.zeros(4, 1, 2), torch.tensor([0]), CrossEntropyLoss())
    tensor(0.6931)
    """
    if not isinstance(loss, Loss):
        raise TypeError(f"loss must be a lossworks Loss with one value per row, got {type(loss).__name__}")
    check_floating("output", output)
    check_tensor("target", target)
    if output.ndim < 2 or not len(output):
        raise ValueError(f"output must have shape (M, n, ...) with M >= 1, got {tuple(output.shape)}")
    draws, rows = output.shape[:2]
    columns = {"target": target, "sample_weight": sample_weight, "index": index}
    repeated: dict[str, Any] = {}
    for name, column in columns.items():
        if column is None:
            continue
        check_tensor(name, column)
        if column.shape[:1] != (rows,):
            raise ValueError(f"{name} must have one entry for each of {rows} rows, got shape {tuple(column.shape)}")
        repeated[name] = column.expand(draws, *column.shape).flatten(0, 1)
    if total is not None:
        check_total(total)
    losses, weights = loss.weighted_rows(output.flatten(0, 1), **repeated)
    losses = losses.unflatten(0, (draws, rows)).mean(dim=0)
    return weighted_reduction(losses, None if weights is None else weights[:rows], loss.reduction, total)
