"""The loss of a mixture of a standard and a robust model, and of its choice between the two."""

from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lossworks.checks import check_floating, check_positive, check_real, check_total, readable, wide
from lossworks.distributed import ProcessGroup
from lossworks.losses.classes.cross_entropy import CrossEntropyLoss
from lossworks.roles import Loss, cleared, weighted_reduction

__all__ = ["MixingLoss"]


class MixingLoss(Loss):
    r"""Cross-entropy of a mixture of a standard and a robust model, plus a price on preferring the wrong one.

    .. math::
        \ell = c_{ce}\, C + c_{bce}\, B + c_{prod}\, B\, C, \qquad C = -\log p_y, \qquad
        B = -t \log \mathrm{sigmoid}(\gamma) - (1 - t) \log \mathrm{sigmoid}(-\gamma)

    :math:`\gamma` says how strongly the mixture prefers the robust model. t is 1 for rows that were attacked, where the
    robust model should be preferred, and 0 for clean rows. The product :math:`B\, C` makes a wrong preference cost more
    on rows that the mixture gets wrong. Without ``gamma`` the loss is :math:`c_{ce}\, C`, as for a mixture that reports
    no preference.

    Args:
        c_bce: The price :math:`c_{bce}` of B, a wrong preference, >= 0.
        c_ce: The price :math:`c_{ce}` of C, the mixture's cross-entropy, >= 0.
        c_prod: The price :math:`c_{prod}` of the product of the two, >= 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: the mixture's log-probabilities, or any logits, ``(n, C)`` or ``(n, C, d1, ...)``; target: classes
          ``(n,)`` or ``(n, d1, ...)``, int64, or class probabilities in the output's shape.
        - gamma: ``(n,)``; attacked (t): ``(n,)``, 0 or 1 in any real dtype. Give both or neither.
        - returns ``()``, or the target's shape (without the class axis) with ``reduction="none"``; at least 0.

    Raises:
        ValueError: a price < 0, shapes that don't match, a class outside ``[0, C)``, ``attacked`` other than 0 and 1,
            one of ``gamma`` and ``attacked`` without the other.

    Use it to train the mixer of :class:`lossworks.certify.AdaptiveMixedClassifier`, on clean rows and on attacks of
    several kinds. Not to train the two models.

    Papers: bai2024adaptive

    >>> import torch
    >>> loss = MixingLoss(c_bce=1.0, c_ce=0.0, c_prod=0.0)
    >>> gamma = torch.tensor([9.0])
    >>> target = torch.tensor([0])
    >>> [round(loss(torch.zeros(1, 2), target, gamma, torch.tensor([t])).item(), 3) for t in (0, 1)]
    [9.0, 0.0]
    """

    papers = ("bai2024adaptive",)
    helps = ("attacks",)
    beside = "two models, and which rows were attacked"
    rowwise = True
    soft_targets = True
    settings = ({}, {"c_bce": 0.1, "c_ce": 1.0, "c_prod": 1.0})

    def __init__(
        self,
        c_bce: float | Tensor = 1.0,
        c_ce: float | Tensor = 0.5,
        c_prod: float | Tensor = 0.1,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.c_bce = check_positive("c_bce", c_bce, allow_zero=True)
        self.c_ce = check_positive("c_ce", c_ce, allow_zero=True)
        self.c_prod = check_positive("c_prod", c_prod, allow_zero=True)

    def per_sample(
        self, output: Float[Tensor, "n classes"], target: Shaped[Tensor, "n *classes"]
    ) -> Float[Tensor, " n"]:
        """The loss of rows without ``gamma`` and ``attacked``."""
        return self.c_ce * CrossEntropyLoss().per_sample(output, target)

    def forward(
        self,
        output: Float[Tensor, "n classes *rest"],
        target: Shaped[Tensor, "n *rest2"],
        gamma: Float[Tensor, " n"] | None = None,
        attacked: Shaped[Tensor, " n"] | None = None,
        *,
        sample_weight: Float[Tensor, "n *rest"] | None = None,
        index: Tensor | None = None,
        total: float | Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> Tensor:
        """The reduced loss.

        Args:
            output: The mixture's log-probabilities.
            target: The classes.
            gamma: How strongly the mixture preferred the robust model, ``(n,)``.
            attacked: Which rows were attacked, ``(n,)``.
            sample_weight: One weight a row, as in every loss.
            index: Not used.
            total: What ``mean`` divides by, in place of the rows' total weight.
            process_group: The ranks that hold the other rows.
        """
        if gamma is None and attacked is None:
            return super().forward(
                output, target, sample_weight=sample_weight, total=total, process_group=process_group
            )
        for name, given, other in (("gamma", gamma, "attacked"), ("attacked", attacked, "gamma")):
            if given is None:
                raise ValueError(f"{name} must be given beside {other}, got None")
        assert gamma is not None
        assert attacked is not None
        if total is not None:
            check_total(total)
        surprise, weights = CrossEntropyLoss(ignore_index=self.ignore_index).weighted_rows(
            output, target, sample_weight=sample_weight
        )
        if weights is not None and not weights.requires_grad and gamma.shape == attacked.shape == weights.shape[:1]:
            uncounted = (weights[:, None] == 0).flatten(1).all(dim=1)
            gamma, attacked = cleared(gamma, uncounted), cleared(attacked, uncounted)
        wrong = _wrongly_asked(gamma, attacked, len(output)).to(surprise.dtype)
        wrong = wrong.reshape(-1, *(1 for _ in surprise.shape[1:]))
        losses = self.c_ce * surprise + (self.c_bce + self.c_prod * surprise) * wrong
        return weighted_reduction(losses, weights, self.reduction, total, process_group)


def _wrongly_asked(gamma: Tensor, attacked: Tensor, rows: int) -> Float[Tensor, " n"]:
    """B of each row: how much it costs to have preferred the wrong model by :math:`\\gamma`."""
    check_floating("gamma", gamma)
    check_real("attacked", attacked)
    for name, given in (("gamma", gamma), ("attacked", attacked)):
        if given.shape != (rows,):
            raise ValueError(f"{name} must have shape ({rows},), one number a row, got {tuple(given.shape)}")
    if readable(gamma) and bool(gamma.isnan().any()):
        raise ValueError(f"gamma has NaN in row {int(gamma.isnan().nonzero()[0])}")
    if readable(attacked) and not bool(((attacked == 0) | (attacked == 1)).all()):
        raise ValueError("attacked must be 0 or 1 in every row")
    gamma = wide(gamma)
    return binary_cross_entropy_with_logits(gamma, attacked.to(gamma.dtype), reduction="none")
