"""Weights by distributional robustness: the worst case over how the rows are distributed."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_floating, check_positive, readable
from lossworks.roles import Weighting


class KLDRO(Weighting):
    r"""Hard rows count more: the worst distribution of the rows, as far from uniform as its price in KL allows.

    .. math::
        w = n \arg\max_{q \in \Delta_n} \; \sum_i q_i \ell_i - T\, \mathrm{KL}(q \,\|\, 1/n), \qquad
        w_i = \frac{e^{\ell_i / T}}{\tfrac1n \sum_j e^{\ell_j / T}}

    The gradient of the weighted mean, the weights held fixed, is that of :math:`T \log \tfrac1n \sum_i e^{\ell_i / T}`,
    which lies between the mean (:math:`T \to \infty`) and the largest loss (:math:`T \to 0`).

    The weights compare the rows of a batch, so they are by definition others when the batch is split; an
    :class:`lossworks.Objective` with ``process_group=``, and its ``micro_batches``, find them on the whole batch.

    Args:
        temperature: The price :math:`T`, in units of the loss, > 0. Large counts all rows alike, small only the worst.

    Shape:
        - losses: ``(n,)``; returns ``(n,)``, of mean 1.

    Raises:
        ValueError: ``temperature <= 0``; a loss that is NaN or infinite, with its row.
        TypeError: losses are not floating-point.

    Use it when the worst rows matter, as with rare classes or groups that nobody labelled. Wrong labels are hard rows
    too, and it trusts them most: not where labels are noisy.

    Papers: sow2024doubly

    >>> KLDRO(temperature=1.0)(torch.tensor([0.0, 0.0, 2.0])) > 1
    tensor([False, False,  True])
    """

    papers = ("sow2024doubly",)
    helps = ("hard examples", "imbalance")
    settings = ({"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 2.0})
    couples_batch = True

    def __init__(self, *, temperature: float | Tensor = 1.0) -> None:
        super().__init__()
        self.temperature = check_positive("temperature", temperature)

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of these rows among each other."""
        check_floating("losses", losses)
        if readable(losses) and not bool(losses.isfinite().all()):
            row = int((~losses.isfinite()).nonzero()[0])
            raise ValueError(f"losses must be finite, got {losses[row].item():g} in row {row}")
        return (losses / self.temperature).softmax(dim=0) * len(losses)
