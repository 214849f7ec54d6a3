"""The trajectory loss, measured against an average of the weights instead of a memory of the rows."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.checks import check_floating, check_positive, check_same_shape
from lossworks.losses import CrossEntropyLoss, trajectory_divergence
from lossworks.objective import Objective
from lossworks.objective.states import resting
from lossworks.roles import Part

__all__ = ["EMATrajectoryObjective"]


class EMATrajectoryObjective(Objective):
    r"""MESA: cross-entropy plus a price on how far the outputs are from those of the weights' moving average.

    .. math::
        \tfrac1n \sum_i \mathrm{CE}\big(f_\theta(x_i), y_i\big) + \lambda \tau^2\, \mathrm{KL}\big(
            \mathrm{softmax}(f_{\bar\theta}(x_i) / \tau) \,\|\, \mathrm{softmax}(f_\theta(x_i) / \tau)\big)

    The average gives what the model predicted some epochs ago, as the memory of
    :class:`lossworks.losses.TrajectoryLoss` does. It costs one more forward pass and one more copy of the weights,
    instead of numbers for each row and class. The average is torch's own, updated after each step::

        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9998))
        objective = EMATrajectoryObjective(average)
        for x, target in batches:
            optimizer.zero_grad()
            objective(model, x, target).backward()
            optimizer.step()
            average.update_parameters(model)

    Call it like any :class:`~lossworks.Objective`. The average is part of its ``state_dict``. Its rows do not depend on
    each other, so a split changes nothing; ranks that hold the same model hold the same average.

    Args:
        average: The averaged model, from x to logits. It is called in evaluation mode and gets no gradient.
        lam: :math:`\lambda`, the weight of the price, >= 0; 0 is cross-entropy. The published code uses 0 for the first
            5 epochs.
        tau: The temperature, in logit units, > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The target of rows that are left out.

    Shape:
        - model: from x to logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``,
          int64. Returns ``()``, or the target's shape with ``reduction="none"``.

    Raises:
        ValueError: ``lam < 0``, ``tau <= 0``, an average whose outputs have another shape, a class out of range.
        TypeError: an average that is no module.

    Use it in place of :class:`lossworks.losses.TrajectoryLoss` where there are too many rows and classes to remember.

    Papers: du2022saf

    >>> average = nn.Linear(3, 2)
    >>> objective = EMATrajectoryObjective(average)
    >>> objective(nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    papers = ("du2022saf",)
    helps = ("overfitting", "noisy labels")
    needs = ("average",)
    settings = ({}, {"lam": 0.8})

    def __init__(
        self,
        average: nn.Module,
        lam: float | Tensor = 0.3,
        tau: float | Tensor = 5.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(CrossEntropyLoss(reduction=reduction, ignore_index=ignore_index))
        if not isinstance(average, nn.Module):
            raise TypeError(f"average must be a module, got {type(average).__name__}")
        self.average = average
        self.price = _Price(lam, tau)

    def _outputs(self, model: nn.Module, x: Tensor, changed: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        output = model(x)
        check_floating("model's output", output)
        if output.ndim < 2:
            raise ValueError(f"model must give logits (n, C) or (n, C, d1, ...), it gave {tuple(output.shape)}")
        with torch.no_grad(), resting(self.average):
            past = self.average(x)
        check_same_shape(output, past, names=("model's output", "average's output"))
        return output, self.price(*(_rows(self._counted(logits, target)) for logits in (output, past)))


class _Price(Part):
    """Each row's price of the distance from the average."""

    def __init__(self, lam: float | Tensor, tau: float | Tensor) -> None:
        super().__init__()
        self.lam = check_positive("lam", lam, allow_zero=True)
        self.tau = check_positive("tau", tau)

    def forward(self, output: Tensor, past: Tensor) -> Float[Tensor, " n"]:
        return self.lam * trajectory_divergence(output, past, self.tau)


def _rows(output: Tensor) -> Float[Tensor, "n classes"]:
    """The logits as rows, one for each place of a map."""
    return output.movedim(1, -1).flatten(0, -2)
