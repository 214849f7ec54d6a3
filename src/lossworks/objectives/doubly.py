"""Adversarial training with row weights that look for the worst mixture of rows."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.checks import check_bool, check_positive
from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.perturb import PGD
from lossworks.perturb.ball import Ball
from lossworks.roles import Loss, Perturbation
from lossworks.weights import KLDRO, CompositionalEMA

_INSIDE = 1e-12
"""The smallest distance from the box's wall that is assumed for an attack's answer."""


class DoublyRobustATObjective(Objective):
    r"""Doubly robust adversarial training: the worst input of each row, and the worst mixture of rows.

    .. math::
        \min_\theta \max_{w} \; \tfrac1n \sum_i w_i\, \ell\big(f_\theta(x_i + \delta_i^*), y_i\big)
        - r\, \mathrm{KL}(w),
        \qquad \delta_i^*(\theta) = \arg\max_{\delta \in C_i} \ell^{att}\big(f_\theta(x_i + \delta), y_i\big)

    Where the attack maximises another loss than the one that is trained (a bilevel problem), its answer moves with
    :math:`\theta`. With ``implicit`` that movement is part of the gradient. It is computed within the box
    :math:`C_i = [a_i, b_i]`, which a log-barrier of weight c enforces, and with the attack's loss taken as linear up to
    a curvature :math:`\lambda`:

    .. math::
        \nabla_\theta \ell_i + \nabla^2_{\theta \delta}\, \ell^{att}_i \; H_i^{-1} \; \nabla_\delta \ell_i, \qquad
        H_i = \lambda I + c\, \mathrm{diag}\big((b_i - \delta_i)^{-2} + (\delta_i - a_i)^{-2}\big)

    Call it like any :class:`~lossworks.Objective`. When the batch is split, the weights are those of the whole batch.
    Where the attack draws random starting points, a batch that is split gets other ones than the whole batch. For a
    loss that couples the rows of its batch, the attack and ``implicit`` see only the rows at hand.

    Args:
        loss: :math:`\ell`; cross-entropy by default.
        attack: The perturbation that looks for :math:`\delta^*`; :class:`~lossworks.perturb.PGD` by default.
        r: The price of unequal weights, in loss units, > 0; the smaller, the more the worst rows count.
        attack_loss: :math:`\ell^{att}`, the loss that the attack maximises; ``loss`` by default.
        momentum: The share of the newest batch in a remembered normaliser of the weights
            (:class:`~lossworks.weights.CompositionalEMA`); with None each batch uses its own normaliser.
        implicit: Whether the gradient follows the attack's answer; needs a :class:`~lossworks.perturb.PGD` in linf.
        barrier: c, in loss units, >= 0.
        curvature: :math:`\lambda`, in loss units per squared input unit, > 0.

    Shape:
        - model: from x to what ``loss`` takes. Returns ``()``, or the rows' shape with ``reduction="none"``.

    Raises:
        ValueError: ``r <= 0``, ``momentum`` outside (0, 1], ``barrier < 0``, ``curvature <= 0``.
        TypeError: a part in the wrong role, or ``implicit`` without a linf PGD over all columns.

    Use it in adversarial training where rare classes or hard rows are the weak spot. ``implicit`` costs a second-order
    pass, and our measurements show no gain from it.

    Papers: sow2024doubly

    >>> from lossworks.losses import CrossEntropyLoss
    >>> objective = DoublyRobustATObjective(CrossEntropyLoss(), PGD(0.1, steps=2), r=0.5)
    >>> objective(torch.nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    papers = ("sow2024doubly",)
    helps = ("attacks", "worst case", "imbalance")
    settings = ({}, {"r": 0.5})
    modes = ({"implicit": True}, {"momentum": 0.5})

    def __init__(
        self,
        loss: Loss | None = None,
        attack: Perturbation | None = None,
        r: float | Tensor = 1.0,
        *,
        attack_loss: Loss | None = None,
        momentum: float | Tensor | None = None,
        implicit: bool = False,
        barrier: float = 1e-3,
        curvature: float = 1.0,
    ) -> None:
        check_positive("r", r)
        check_bool("implicit", implicit)
        weights = KLDRO(temperature=r) if momentum is None else CompositionalEMA(r, momentum)
        attack = PGD() if attack is None else attack
        if not isinstance(attack, Perturbation):
            raise TypeError(f"attack must be a Perturbation, got {type(attack).__name__}")
        super().__init__(CrossEntropyLoss() if loss is None else loss, weights=weights, perturb=attack)
        if attack_loss is not None and not isinstance(attack_loss, Loss):
            raise TypeError(f"attack_loss must be a Loss, got {type(attack_loss).__name__}")
        if implicit and not (isinstance(attack, PGD) and attack.norm == "linf" and attack.columns is None):
            raise TypeError(f"implicit needs a PGD in linf over all columns, whose box it knows, got {attack}")
        self.attack_loss = attack_loss
        self.implicit = implicit
        self.barrier = check_positive("barrier", barrier, allow_zero=True)
        self.curvature = check_positive("curvature", curvature)

    def _losses(self, output: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        if self.attack_loss is None:
            return super()._losses(output, target, index)
        return self.attack_loss.rows(output, target, index)[0]

    def _outputs(
        self, model: nn.Module, x: Tensor, changed: Tensor, target: Tensor
    ) -> tuple[Tensor, Float[Tensor, " n"] | None]:
        output, price = super()._outputs(model, x, changed, target)
        return (output, self._movement(model, x, changed, target)) if self.implicit else (output, price)

    def _movement(self, model: nn.Module, x: Tensor, changed: Tensor, target: Tensor) -> Float[Tensor, " n"]:
        """Zero in value; its gradient is what the attack's movement adds to that of each row's loss."""
        assert isinstance(self.perturb, PGD)
        assert isinstance(self.loss, Loss)
        leaf = changed.detach().requires_grad_()
        with torch.enable_grad():
            output = model(leaf)
            with self._unmoved(output):
                own = self.loss.rows(output, target)[0]
                attacked = own if self.attack_loss is None else self.attack_loss.rows(output, target)[0]
            (pull,) = torch.autograd.grad(own.sum(), leaf, retain_graph=True)
            (slope,) = torch.autograd.grad(attacked.sum(), leaf, create_graph=True)
        ball = Ball(x, self.perturb.eps, bounds=(self.perturb.low, self.perturb.high))
        below, above = ((changed - ball.low).clamp(min=_INSIDE), (ball.high - changed).clamp(min=_INSIDE))
        stiffness = self.curvature + self.barrier * (below**-2 + above**-2)
        along = (slope * (pull / stiffness)).flatten(1).sum(dim=1)
        return along - along.detach()
