"""Weights that are known before training: all equal, or one for each training row."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_amounts, check_floating, check_rows
from lossworks.roles import Weighting


class UniformWeights(Weighting):
    r"""Uniform weights: every row counts the same, :math:`w_i = 1`, which gives the mean risk.

    Shape:
        - losses: ``(n,)``; returns ``(n,)``, all ones.

    Raises:
        TypeError: losses that are not floating-point.

    Use it as the reference against which another weighting is judged.

    Papers: none, it is the definition of empirical risk.

    >>> UniformWeights()(torch.tensor([0.1, 2.0]))
    tensor([1., 1.])
    """

    over_data_set = True
    reads_losses = False

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """Ones."""
        check_floating("losses", losses)
        return torch.ones_like(losses)


class SampleWeights(Weighting):
    r"""Fixed sample weights, one for each training row, looked up by its number: :math:`w_i = N v_i / \sum_j v_j`.

    Their mean is 1 over the data set and not over each batch, so a batch that is split has the same sum.

    Args:
        sample_weights: ``(N,)``, the rows' weights in any unit, finite, >= 0, with a positive sum. A buffer.

    Shape:
        - losses: ``(n,)``; index: ``(n,)`` int64 in ``[0, N)``; returns ``(n,)``.

    Raises:
        ValueError: negative or all-zero weights; ``index`` missing, of another shape, or out of range.

    Use it when each row comes with a known weight (survey weights, costs, repetition counts).

    Papers: none, it is the definition of a weighted risk.

    >>> weights = SampleWeights(torch.tensor([1.0, 3.0]))
    >>> weights(torch.zeros(1), index=torch.tensor([1]))
    tensor([1.5000])
    """

    needs = ("sample_weights",)
    needs_index = True
    over_data_set = True
    reads_losses = False

    def __init__(self, sample_weights: Float[Tensor, " rows"]) -> None:
        super().__init__()
        check_amounts("sample_weights", sample_weights, "N", least=1)
        self.sample_weights = sample_weights / sample_weights.mean()

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """The rows' weights."""
        index = self._required("index", index, losses)
        check_rows("index", index, len(self.sample_weights))
        return self._given(self.sample_weights[index], losses)
