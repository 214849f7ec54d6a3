"""Weights that leave out the rows whose remembered losses look noisy."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_between, check_floating, check_int, check_rows
from lossworks.roles import Weighting
from lossworks.weights.mixture import probability_of_high

__all__ = ["SmallLossWeights"]


class SmallLossWeights(Weighting):
    r"""Small-loss weights: leave out the rows whose last losses look noisy, so that wrong labels are not learned.

    .. math::
        w_i = \frac{[\, i \text{ not noisy} \,]}{\tfrac1N \sum_j [\, j \text{ not noisy} \,]}

    All rows count the same until the fraction ``warmup`` of the training is over. Then the mixture of
    :class:`lossworks.select.SmallLossGMMSelector`, which finds the noisy rows, is fitted to the remembered losses, and
    again each time that another fraction ``every`` has passed. Between two fits the weights do not change, so they do
    not depend on how a batch is split. A row that has not been seen yet counts as clean.

    The fraction of the training that is done is told by :meth:`set_progress` (or
    :meth:`lossworks.Objective.set_progress`); if it is never called, nothing is left out. Losses are remembered in
    ``train()`` mode only; if a row is in a batch twice, the mean of its two losses is.

    Args:
        num_samples: N, the number of training rows.
        threshold: The probability of being noisy above which a row is left out, in [0, 1).
        warmup: The fraction of the training in which nothing is left out, in [0, 1].
        every: The fraction of the training between two fits, in (0, 1].

    Buffers:
        losses: ``(N,)`` float64, each row's last loss; infinite where there is none.
        kept: ``(N,)`` float64, the weights, of mean 1.
        fitted: ``()`` float64, the progress at the last fit; -1 before the first.

    Shape:
        - losses: ``(n,)``; index: ``(n,)`` int64 in ``[0, N)``, or -1 for a row that is not remembered, which counts as
          clean; returns ``(n,)``, of mean 1 over the data set.

    Raises:
        ValueError: ``num_samples < 1``, a fraction or the threshold out of range; index missing or out of range.

    Use it where labels are wrong and the network would memorise them, with a warm-up in which the clean rows are
    learned. Hard and rare rows have large losses too, and are left out with the wrongly labelled ones.

    Papers: albert2024accurate

    >>> import torch
    >>> weights = SmallLossWeights(6, warmup=0.5)
    >>> losses, index = torch.tensor([0.1, 0.2, 0.1, 0.2, 5.0, 5.1]), torch.arange(6)
    >>> before = weights(losses, index=index)
    >>> weights.set_progress(0.5)
    >>> before, weights(losses, index=index)
    (tensor([1., 1., 1., 1., 1., 1.]), tensor([1.5000, 1.5000, 1.5000, 1.5000, 0.0000, 0.0000]))
    """

    papers = ("albert2024accurate",)
    helps = ("noisy labels",)
    needs = ("num_samples",)
    settings = ({}, {"threshold": 0.5})
    needs_index = True
    over_data_set = True
    memories: ClassVar[Mapping[str, str]] = {"losses": "mean"}

    losses: Tensor
    kept: Tensor
    fitted: Tensor

    def __init__(self, num_samples: int, threshold: float = 0.95, warmup: float = 0.25, every: float = 0.05) -> None:
        super().__init__()
        self.num_samples = check_int("num_samples", num_samples, low=1, high=2**31 - 1)
        self.threshold = check_between("threshold", threshold, 0, 1, open_high=True)
        self.warmup = check_between("warmup", warmup, 0, 1)
        self.every = check_between("every", every, 0, 1, open_low=True)
        self.losses = torch.full((num_samples,), torch.inf, dtype=torch.float64)
        self.kept = torch.ones(num_samples, dtype=torch.float64)
        self.fitted = torch.tensor(-1.0, dtype=torch.float64)

    def set_progress(self, fraction: float) -> None:
        """Fit the mixture to the remembered losses, if the next fit is due at this fraction of the training."""
        check_between("fraction", fraction, 0, 1)
        if fraction < self.warmup or 0 <= fraction - float(self.fitted) < self.every:
            return
        seen = self.losses.isfinite()
        kept = torch.ones_like(self.kept)
        kept[seen] = (probability_of_high("losses", self.losses[seen]) <= self.threshold).to(kept.dtype)
        self.kept = kept / kept.mean()
        self.fitted = torch.full_like(self.fitted, fraction)

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of these rows; their losses are remembered."""
        check_floating("losses", losses)
        if losses.ndim != 1:
            raise ValueError(f"losses must have shape (n,), got {tuple(losses.shape)}")
        index = self._required("index", index, losses)
        check_rows("index", index, self.num_samples, low=-1)
        if self.training:
            self.remember("losses", index, losses.detach().double())
        found = torch.where(index >= 0, self.kept[index.clamp(min=0)], self.kept.amax())
        return self._given(found, losses)
