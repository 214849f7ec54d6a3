"""Cross-entropy with a price on a batch's confidence, for federated training."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossworks.checks import check_positive
from lossworks.roles import Loss, cleared


class MarginControlLoss(Loss):
    r"""Cross-entropy plus a price on the batch's confidence, which keeps federated clients' models near each other.

    .. math::
        \frac1n \sum_i -\log p_{i, y_i} + \lambda \log\Big(1 + \sum_i \|p_i\|_2^2\Big), \qquad
        p_i = \mathrm{softmax}(z_i)

    The price is lowest where all predictions are uniform and highest where each is certain of one class. It is one
    number for the batch, added in full to each row's loss, so it depends on the batch's size. A batch that is split by
    hand has a price for each part; with ranks in a ``process_group``, and with
    :meth:`lossworks.Objective.micro_batches`, the price is that of the whole batch. Ignored rows do not count in it.

    Args:
        lam: :math:`\lambda`, the price, in loss units, >= 0; 0 is cross-entropy.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``lam < 0``, shapes that don't match, a class outside ``[0, C)``.

    Use it for the local steps of federated training on clients whose classes differ; elsewhere label smoothing or
    calibration does the same at less cost.

    Papers: zeng2024fedld

    >>> MarginControlLoss(lam=1.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(1.0986)
    """

    papers = ("zeng2024fedld",)
    helps = ("federated", "calibration")
    settings = ({}, {"lam": 0.03})
    couples_batch = True

    def __init__(self, lam: float | Tensor = 0.1, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.lam = check_positive("lam", lam, allow_zero=True)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Each row's cross-entropy, without the price, which depends on all rows together."""
        return cross_entropy(output, target, reduction="none")

    def rows(self, output: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Each row's cross-entropy plus the batch's price, and which rows are kept."""
        losses, kept = super().rows(output, target, index)
        assert kept is not None
        output = cleared(output, ~kept)
        sureness = output.to(losses.dtype).softmax(dim=1).square().sum(dim=1)
        price = self.lam * torch.where(kept, sureness, 0.0).sum().log1p()
        return torch.where(kept, losses + price, losses), kept
