"""The change of the input."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from lossworks.checks import (
    check_positive,
)
from lossworks.roles.part import Part

__all__ = ["Consistency", "Perturbation"]


class Perturbation(Part):
    """A change of the input: ``risk(x) -> (n,)`` is what it makes worse."""

    def forward(
        self, risk: Callable[[Tensor], Float[Tensor, " n"]], x: Float[Tensor, "n *features"]
    ) -> Float[Tensor, "n *features"]:
        """The changed input, in ``x``'s shape and dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(risk, x) -> x'")


class Consistency(Perturbation):
    """A perturbation that is paid for and not trained on: each row's loss is the clean one plus a price.

    The price is ``strength`` times :meth:`per_sample`, how far the worst perturbed output is from the clean one.

    Args:
        attack: What looks for the perturbed input that is furthest.
        strength: The price of the distance, >= 0, in loss units.
    """

    def __init__(self, attack: Perturbation, strength: float | Tensor) -> None:
        super().__init__()
        if not isinstance(attack, Perturbation) or isinstance(attack, Consistency):
            raise TypeError(f"attack must be a perturbation of the input, got {type(attack).__name__}")
        self.attack = attack
        self.strength = check_positive("strength", strength, allow_zero=True)

    def per_sample(self, perturbed: Tensor, clean: Tensor, target: Tensor) -> Float[Tensor, " n"]:
        """How far each row's perturbed output is from its clean one."""
        raise NotImplementedError(f"{type(self).__name__} must define per_sample(perturbed, clean, target) -> (n,)")

    def forward(
        self, risk: Callable[[Tensor], Float[Tensor, " n"]], x: Float[Tensor, "n *features"]
    ) -> Float[Tensor, "n *features"]:
        """What the attack finds."""
        return self.attack(risk, x)
