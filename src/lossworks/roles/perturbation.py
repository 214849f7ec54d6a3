"""The role of a perturbation of the input."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from lossworks.checks import (
    check_positive,
)
from lossworks.roles.part import Part

__all__ = ["Consistency", "Perturbation"]


class Perturbation(Part):
    """A change of the input that makes ``risk(x) -> (n,)`` worse."""

    role = "perturbation"

    def forward(
        self, risk: Callable[[Tensor], Float[Tensor, " n"]], x: Float[Tensor, "n *features"]
    ) -> Float[Tensor, "n *features"]:
        """The changed input, in ``x``'s shape and dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(risk, x) -> x'")


class Consistency(Perturbation):
    """A perturbation whose effect is priced and not trained on: each row's loss is its clean loss plus a price.

    The price is ``strength`` times :meth:`per_sample`, how far the worst perturbed output is from the clean one.

    Args:
        attack: The perturbation that looks for the input whose output is furthest from the clean one.
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
        """The input that the attack finds."""
        return self.attack(risk, x)
