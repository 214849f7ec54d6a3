"""Worst-case weights by mirror ascent, with one remembered number for each training row."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_int, check_positive, check_rows, readable
from lossworks.roles import Weighting
from lossworks.weights.worst_case import check_losses

__all__ = ["PMDROWeights"]


class PMDROWeights(Weighting):
    r"""Worst-case weights over the data set by mirror ascent, with one remembered number for each training row.

    .. math::
        v_i \leftarrow (1 - \eta\, \tau)\, v_i + \eta\, \ell_i, \qquad
        w_i = \frac{e^{v_i}}{\tfrac1n \sum_{j \in \text{batch}} e^{v_j}}

    v is remembered for each row and starts from 0. If the losses do not change, v converges to :math:`\ell_i / \tau`,
    so the weights converge to those of :class:`~lossworks.weights.KLDRO` at the temperature :math:`\tau`; until then
    they look back on the losses of about :math:`1 / (\eta \tau)` steps. The v of a row depends on that row's losses
    only. The authors' code also rescales it by the rows that share its batch, and divides the weighted sum by the
    batch's size once more.

    v changes in ``train()`` mode only, and for a row that is in a batch twice it changes once, to the mean of both. The
    weights compare the rows of a batch, so a batch that is split must be weighted as a whole:
    :class:`lossworks.Objective` does this, with ``process_group=`` and in its ``micro_batches``.

    Args:
        num_samples: N, the number of training rows.
        lr: The step size :math:`\eta`, in 1 / loss units, > 0.
        entropy: :math:`\tau`, the price on uneven weights, in loss units, >= 0; with 0 no loss is ever forgotten.
            ``lr * entropy`` must be at most 1.

    Buffers:
        log_weights: ``(N,)`` float64, v.

    Shape:
        - losses: ``(n,)``; index: ``(n,)`` int64 in ``[0, N)``, or -1 for a row that is not remembered; returns
          ``(n,)``, of mean 1.

    Raises:
        ValueError: ``num_samples < 1``, ``lr <= 0``, ``entropy < 0``, their product above 1; index missing or out of
            range; a loss that is NaN or infinite (the error names its row).

    Use it in place of :class:`~lossworks.weights.KLDRO` where a row's loss differs much from one epoch to the next, as
    with augmentation. Not where labels are noisy: wrongly labelled rows are hard too.

    Papers: fidon2021robust, dong2023adawac

    >>> weights = PMDROWeights(num_samples=9, lr=0.5)
    >>> weights(torch.tensor([0.0, 2.0]), index=torch.tensor([7, 3]))
    tensor([0.5379, 1.4621])
    """

    papers = ("fidon2021robust", "dong2023adawac")
    helps = ("worst case", "hard examples")
    needs = ("num_samples",)
    settings = ({}, {"lr": 0.1, "entropy": 1.0})
    needs_index = True
    couples_batch = True
    memories: ClassVar[Mapping[str, str]] = {"log_weights": "mean"}

    log_weights: Tensor

    def __init__(self, num_samples: int, lr: float | Tensor = 0.5, entropy: float | Tensor = 0.5) -> None:
        super().__init__()
        self.num_samples = check_int("num_samples", num_samples, low=1, high=2**31 - 1)
        self.lr = check_positive("lr", lr)
        self.entropy = check_positive("entropy", entropy, allow_zero=True)
        product = torch.as_tensor(lr * entropy).detach()
        if readable(product) and float(product) > 1:
            raise ValueError(f"lr * entropy must be at most 1, got {float(product):g}")
        self.log_weights = torch.zeros(num_samples, dtype=torch.float64)

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of these rows, after their step."""
        index = self._required("index", index, losses)
        check_losses(losses)
        check_rows("index", index, self.num_samples, low=-1)
        held = torch.where(index >= 0, self.log_weights[index.clamp(min=0)], 0)
        if self.training:
            held = (1 - self.lr * self.entropy) * held + self.lr * losses.detach().double()
            self.remember("log_weights", index, held)
        return self._given(held.softmax(dim=0) * len(losses), losses)
