"""How sharp the loss is around the weights that training found."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.checks import check_floating, check_positive
from lossworks.diagnose.adversarial import output_of
from lossworks.losses import CrossEntropyLoss
from lossworks.objective.states import resting
from lossworks.optim.steps import moved, towards
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
    r"""SAM sharpness: by how much the loss grows after one step of length rho up its gradient.

    .. math::
        L\Big(\theta + \rho\, \frac{\nabla L(\theta)}{\|\nabla L(\theta)\|_2}\Big) - L(\theta), \qquad
        L(\theta) = \tfrac1n \sum_i \ell(f_\theta(x_i), y_i)

    with the gradient in all trainable weights; it is what sharpness-aware minimisation lowers. For small radii it
    approaches :math:`\rho \|\nabla L\|`, also where no minimum is reached yet. It can be below 0 where the step passes
    a maximum. Rescaling layers changes it, so compare models of the same architecture, trained on the same rows.

    Args:
        model: A module from x to what ``loss`` takes. It runs in evaluation mode; its weights are restored bit for bit.
        x: The rows, usually the training rows; all at once, as they share one gradient.
        target: The rows' targets, as the loss takes them.
        rho: The step's length, in the units of the weights, >= 0.
        loss: The loss that is measured, cross-entropy by default; it must neither draw random numbers nor have a
            memory.

    Returns:
        The sharpness ``()``, without a gradient; 0 where the gradient is zero.

    Raises:
        ValueError: ``rho < 0``, shapes that don't match, a model without trainable weights.
        TypeError: something that is no module, a loss that draws random numbers or has a memory.

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
        moves, _ = towards(parameters, gradients, float(rho))
        with torch.no_grad(), moved(moves):
            return _risk(model, loss, x, target) - here.detach()


def _risk(model: nn.Module, loss: Loss, x: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """The mean loss of the rows."""
    losses, kept = loss.rows(output_of(model, x), target)
    return weighted_reduction(losses, None if kept is None else kept.to(losses.dtype), "mean")
