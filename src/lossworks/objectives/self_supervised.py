"""Robust training on unlabelled rows, which may come from elsewhere: it pushes the decision boundary off them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossworks.checks import check_choice, check_classes, check_floating, check_positive, check_real
from lossworks.losses import CrossEntropyLoss
from lossworks.objective.states import resting
from lossworks.objectives.relabelled import RelabelledObjective
from lossworks.perturb.transport import COSTS, PricedAscent, transport_cost
from lossworks.roles import Loss, Weighting, cite

__all__ = ["RSSObjective", "ramp_loss"]

_OWN = 2**32
"""The number added to a target that is the model's own answer, to mark it."""


class RSSObjective(RelabelledObjective):
    r"""Robust self-supervised training (RSS): robust losses of labelled rows, and of unlabelled rows with own labels.

    .. math::
        \tfrac1m \sum_{i \le m} \phi_\gamma(x_i, y_i; \theta)
        + \tfrac{\lambda}{n} \sum_{j \le n} \phi_{\gamma'}\big(x'_j, h_\theta(x'_j); \theta\big), \qquad
        \phi_\gamma(x, y; \theta) = \sup_z \ell(f_\theta(z), y) - \gamma\, c(z, x)

    with :math:`h_\theta` the model's own answer, through which no gradient goes. The unlabelled rows are those whose
    target is the loss's ``ignore_index``. Call it like any :class:`~lossworks.Objective`. When the batch is split over
    ranks or by ``micro_batches``, the two means are over the whole batch, so giving ``total=`` alone is not enough. A
    ``sample_weight`` is divided by the mean weight of all rows and then multiplies its row's loss.

    Args:
        gamma: :math:`\gamma`, the price of moving a labelled row, in loss units per unit of cost, > 0.
        gamma_u: :math:`\gamma'`, the price of moving an unlabelled row; ``gamma`` by default.
        lam: :math:`\lambda`, the weight of the unlabelled rows' mean beside that of the labelled ones, >= 0.
        cost: ``"sq_l2"`` or ``"l2"``, see :class:`~lossworks.perturb.PricedAscent`.
        steps: The number of ascent steps to z, >= 1.
        lr: The step size of the ascent, see :class:`~lossworks.perturb.PricedAscent`.
        loss: :math:`\ell`, a loss of classes; cross-entropy by default.

    Shape:
        - model: from x to logits ``(n, C)``; target: classes ``(n,)``, int64, ``ignore_index`` where there is none.
          Returns ``()``, or ``(n,)`` with ``reduction="none"``.

    Raises:
        ValueError: ``gamma``, ``gamma_u`` or ``lr`` not > 0, ``lam < 0``, ``steps < 1``, an unknown cost, a class
            outside ``[0, C)``.
        TypeError: ``loss`` is no loss of classes with one value per row.

    Use it when labelled rows are few and unlabelled rows are many, from the same or a somewhat shifted source. Start
    from a model trained on the labelled rows, as its own labels must be mostly right. For a linear model the supremum
    has a closed form, :func:`ramp_loss`.

    Papers: saberi2024outofdomain

    >>> objective = RSSObjective(gamma=5.0)
    >>> objective(nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, -100, -100])) > 0
    tensor(True)
    """

    papers = ("saberi2024outofdomain",)
    helps = ("shift", "overfitting")
    settings = ({}, {"gamma": 2.0, "gamma_u": 10.0, "lam": 0.5})
    modes = ({"cost": "l2"},)
    perturb: PricedAscent

    def __init__(
        self,
        gamma: float | Tensor = 5.0,
        gamma_u: float | Tensor | None = None,
        lam: float | Tensor = 1.0,
        *,
        cost: str = "sq_l2",
        steps: int = 15,
        lr: float | Tensor | None = None,
        loss: Loss | None = None,
    ) -> None:
        check_positive("lam", lam, allow_zero=True)
        loss = CrossEntropyLoss() if loss is None else loss
        if not isinstance(loss, Loss) or not loss.kind.has_classes or loss.couples_batch:
            raise TypeError(f"loss must be a Loss of classes with one value per row, got {type(loss).__name__}")
        super().__init__(
            _AnsweredLoss(loss), weights=_TwoMeansWeights(lam), perturb=PricedAscent(gamma, cost, steps, lr)
        )
        self.gamma_u = None if gamma_u is None else check_positive("gamma_u", gamma_u)

    def relabel(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The target, with the model's own answer, marked as such, where there is no label."""
        check_real("x", x)
        with resting(model):
            output = model(x)
        assert isinstance(self.loss, Loss)
        check_classes(output, target, ignore_index=self.loss.ignore_index)
        return torch.where(target == self.loss.ignore_index, output.argmax(dim=1) + _OWN, target)

    def _perturbed(self, model: nn.Module, x: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        with resting(model):
            return self.perturb.ascend(lambda z: self._seen(model(z), target, index), x, self._gamma(target, x))

    def _outputs(
        self, model: nn.Module, x: Tensor, changed: Tensor, target: Tensor
    ) -> tuple[Tensor, Float[Tensor, " n"] | None]:
        price = self._gamma(target, x) * transport_cost(changed, x.detach(), self.perturb.cost)
        return model(changed), -price

    def _gamma(self, target: Tensor, x: Tensor) -> float | Tensor:
        gamma = self.perturb.gamma
        if self.gamma_u is None:
            return gamma
        labelled, own = (torch.as_tensor(g, dtype=x.dtype, device=x.device) for g in (gamma, self.gamma_u))
        return torch.where(target >= _OWN, own, labelled)


class _AnsweredLoss(Loss):
    """A loss some of whose targets are the model's own answers, marked by adding a large number to them."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.reduction, ignore_index=loss.ignore_index)
        self.loss = loss

    def rows(self, output: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The row losses of the inner loss, with the marks removed from the targets."""
        check_real("target", target)
        if target.dtype != torch.int64 and not target.is_floating_point():
            raise TypeError(f"target must be int64 classes or floating-point, got {target.dtype}")
        return self.loss.rows(output, torch.where(target >= _OWN, target - _OWN, target), index)

    def output_size(self, num_classes: int = 1) -> int:
        """As many outputs as the inner loss needs."""
        return self.loss.output_size(num_classes)

    def predict(self, output: Tensor) -> Tensor:
        """The prediction of the inner loss."""
        return self.loss.predict(output)


class _TwoMeansWeights(Weighting):
    """Weights that turn the mean over all rows into the labelled rows' mean plus lam times the others' mean."""

    needs_target = True
    reads_losses = False
    couples_batch = True

    def __init__(self, lam: float | Tensor) -> None:
        super().__init__()
        self.lam = lam

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """Each row's share in its own mean, times the number of rows."""
        own = (self._required("target", target, losses) >= _OWN).to(losses.dtype)
        share = own * self.lam / own.sum().clamp(min=1) + (1 - own) / (1 - own).sum().clamp(min=1)
        return len(losses) * share


@cite("saberi2024outofdomain", helps=("shift", "margins"))
def ramp_loss(
    margin: Float[Tensor, "*shape"], gamma: float | Tensor = 1.0, cost: str = "l2"
) -> Float[Tensor, "*shape"]:
    r"""Ramp loss: the robust 0/1 loss of a linear classifier whose normal has length 1, at a price of moving.

    .. math::
        \sup_z \; [y \langle \theta, z \rangle \le 0] - \gamma\, c(z, x) = \min\big(1, (1 - \gamma\, m_+^a)_+\big),
        \qquad m = y \langle \theta, x \rangle

    with a = 1 for the distance ``"l2"`` and a = 2 for its square. A row without a label takes
    m = :math:`|\langle \theta, x \rangle|`, and is pushed off the boundary.

    Args:
        margin: m, the signed distance from the boundary in input units, i.e. divided by the length of the normal.
        gamma: The price of moving, in loss units per unit of cost, > 0.
        cost: ``"l2"`` or ``"sq_l2"``.

    Returns:
        The losses, in [0, 1], in the margin's shape.

    Raises:
        ValueError: ``gamma <= 0``, an unknown cost.
        TypeError: the margin is not floating-point.

    Papers: saberi2024outofdomain

    >>> ramp_loss(torch.tensor([-1.0, 0.5, 2.0]), gamma=1.0)
    tensor([1.0000, 0.5000, 0.0000])
    """
    check_floating("margin", margin)
    check_positive("gamma", gamma)
    check_choice("cost", cost, COSTS)
    right = margin.clamp(min=0)
    return (1 - gamma * (right if cost == "l2" else right.square())).clamp(min=0)
