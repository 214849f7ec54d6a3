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
    """A change of the input that makes ``risk(x) -> (n,)`` worse.

    A search that takes its first gradient at the clean input sets :attr:`begins_at_input`. It finds nothing where the
    risk has its minimum there, so a :class:`Consistency` refuses it.
    """

    role = "perturbation"
    begins_at_input: bool = False

    def forward(
        self, risk: Callable[[Tensor], Float[Tensor, " n"]], x: Float[Tensor, "n *features"]
    ) -> Float[Tensor, "n *features"]:
        """The changed input, in ``x``'s shape and dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(risk, x) -> x'")


class Consistency(Perturbation):
    """A perturbation whose effect is priced and not trained on: each row's loss is its clean loss plus a price.

    The price is ``strength`` times :meth:`per_sample`, how far the worst perturbed output is from the clean one. This
    distance is 0 and has gradient 0 at the clean input, so that an attack which begins there would follow the signs of
    rounding, or stay where it is.

    Args:
        attack: The perturbation that looks for the input whose output is furthest from the clean one. It must not begin
            its search at the clean input.
        strength: The price of the distance, >= 0, in loss units.

    Raises:
        TypeError: ``attack`` is no perturbation, or is a consistency itself.
        ValueError: ``attack`` begins at the clean input, or ``strength < 0``.
    """

    def __init__(self, attack: Perturbation, strength: float | Tensor) -> None:
        super().__init__()
        if not isinstance(attack, Perturbation) or isinstance(attack, Consistency):
            raise TypeError(f"attack must be a perturbation of the input, got {type(attack).__name__}")
        if attack.begins_at_input:
            raise ValueError(
                f"attack must not begin at the clean input, where what {type(self).__name__} prices has gradient 0; "
                f"use one with a random start, such as PGD(), got {attack}"
            )
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
