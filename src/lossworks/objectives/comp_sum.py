"""A smooth comp-sum loss that stays an upper bound under attack."""

from torch import Tensor

from lossworks.losses import CompSumLoss
from lossworks.objective import Objective
from lossworks.perturb import LargestMarginChange
from lossworks.roles import Perturbation


class SmoothAdversarialCompSumObjective(Objective):
    r"""Smooth adversarial comp-sum loss: bounds the loss under attack by the clean loss plus the margins' change.

    .. math::
        \Phi_\tau\Big(\sum_{k \ne y} e^{-(f_y - f_k)(x) / \rho}\Big)
        + \nu \max_{\|\delta\| \le \varepsilon} \| D(x + \delta) - D(x) \|_2,
        \qquad D = (f_y - f_k)_{k \ne y}, \quad \Phi_\tau(1/p_y - 1) = \frac{1 - p_y^{\tau - 1}}{\tau - 1}

    With :math:`\nu \ge \sqrt{C - 1} / \rho` it is at least
    :math:`\max_\delta \Phi_\tau\big(\sum_{k \ne y} \min(1, (1 - (f_y - f_k)(x + \delta) / \rho)_+)\big)`, the comp-sum
    loss of the ramps under attack, as far as the attack finds the maximum. An attack that begins at the clean input,
    such as :class:`~lossworks.perturb.FGSM`, is refused, as the change has no gradient there. Call it like any
    :class:`~lossworks.Objective`. Starting points are drawn for the rows at hand, so a batch that is split gets other
    ones than the whole batch.

    Args:
        tau: The comp-sum loss's exponent, >= 0; 1 is cross-entropy.
        rho: The scale of the margins, in logit units, > 0.
        nu: The price of the margins' change, >= 0, in loss units per logit unit.
        attack: The perturbation that looks for the worst change; :class:`lossworks.perturb.PGD` by default.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - model: from x to logits ``(n, C)``; target: classes ``(n,)``, int64. Returns ``()``, or ``(n,)`` with
          ``reduction="none"``.

    Raises:
        ValueError: ``tau < 0``, ``rho <= 0``, ``nu < 0``, ``attack`` begins at the clean input, a class outside
            ``[0, C)``.
        TypeError: ``attack`` is no perturbation.

    Use it against small changes of the input when there are many classes, as an alternative to
    :class:`lossworks.perturb.TRADES`; ``nu`` needs tuning.

    Papers: mao2023crossentropy

    >>> import torch
    >>> from lossworks.perturb import PGD
    >>> objective = SmoothAdversarialCompSumObjective(attack=PGD(0.1, steps=2))
    >>> objective(torch.nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    papers = ("mao2023crossentropy",)
    helps = ("attacks",)
    settings = ({},)

    def __init__(
        self,
        tau: float | Tensor = 1.0,
        rho: float | Tensor = 1.0,
        nu: float | Tensor = 1.0,
        attack: Perturbation | None = None,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__(CompSumLoss(tau, rho, reduction=reduction), perturb=LargestMarginChange(nu, attack))
