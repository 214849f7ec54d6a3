"""How steep the loss is around the weights that training found."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.checks import check_floating, check_positive
from lossworks.diagnose.adversarial import output_of
from lossworks.losses import CrossEntropyLoss
from lossworks.objective.states import resting
from lossworks.optim.steps import moved, norm_of
from lossworks.roles import Loss, cite, weighted_reduction

__all__ = ["sam_sharpness"]


@cite("foret2021sam", "du2022saf", helps=("overfitting",))
def sam_sharpness(
    model: nn.Module,
    x: Float[Tensor, "n *features"],
    target: Tensor,
    rho: float = 0.05,
    *,
    loss: Loss | None = None,
) -> Float[Tensor, ""]:
    r"""By how much the loss grows one step up its gradient: what sharpness-aware minimisation lowers.

    .. math::
        L\Big(\theta + \rho\, \frac{\nabla L(\theta)}{\|\nabla L(\theta)\|_2}\Big) - L(\theta), \qquad
        L(\theta) = \tfrac1n \sum_i \ell(f_\theta(x_i), y_i)

    with the gradient in all weights that learn. At small radii it goes to :math:`\rho \|\nabla L\|`, also where a
    minimum isn't reached yet, and it can be below 0 where the step goes beyond a top. Rescaling layers changes it, so
    compare models of one architecture, trained on the same rows.

    Args:
        model: From x to what ``loss`` takes. It is in evaluation mode meanwhile; its weights come back bit for bit.
        x: The rows, usually those of the training; all at once, as the gradient is theirs together.
        target: Their targets, see the loss.
        rho: The step's length, in the units of the weights, >= 0.
        loss: What is measured, cross-entropy by default; one that neither draws nor remembers.

    Returns:
        ``()``, without a gradient; 0 where there is none to follow.

    Raises:
        ValueError: ``rho < 0``, shapes that don't match, a model without weights that learn.
        TypeError: something that is no module, a loss that draws or remembers.

    Papers: foret2021sam, du2022saf

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(3.0)
    >>> from lossworks.losses import SquaredLoss
    >>> sam_sharpness(model, torch.ones(2, 1), torch.ones(2, 1), rho=0.5, loss=SquaredLoss())
    tensor(2.2500)
    """
    check_positive("rho", rho, allow_zero=True)
    check_floating("x", x)
    loss = CrossEntropyLoss() if loss is None else loss
    if not isinstance(loss, Loss) or loss.needs_index or loss.stochastic:
        raise TypeError(f"loss must be a Loss that neither draws nor remembers, got {type(loss).__name__}")
    with resting(model):
        with torch.enable_grad():
            here = _risk(model, loss, x, target)
            parameters = [p for p in model.parameters() if p.requires_grad]
            if not parameters:
                raise ValueError(f"model must have weights that learn, {type(model).__name__} has none")
            if not here.requires_grad:
                return torch.zeros_like(here)
            gradients = torch.autograd.grad(here, parameters, materialize_grads=True)
        norm = norm_of(gradients)
        scale = torch.where(norm > 0, float(rho) / norm, 0.0)
        with torch.no_grad(), moved(parameters, [scale.to(g) * g for g in gradients]):
            return _risk(model, loss, x, target) - here.detach()


def _risk(model: nn.Module, loss: Loss, x: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """The mean loss of the rows."""
    losses, kept = loss.rows(output_of(model, x), target)
    return weighted_reduction(losses, None if kept is None else kept.to(losses.dtype), "mean")
