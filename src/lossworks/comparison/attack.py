"""Attacks on trained models: the share of rows that stay right when each input is moved within a ball."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lossworks.certify import crown_bounds, margin_spec
from lossworks.checks import InputError, shown
from lossworks.comparison.read.encode import Encoder
from lossworks.perturb import PGD, cw_margin_loss
from lossworks.perturb.ball import NORMS

__all__ = [
    "ROBUST",
    "SHARES",
    "VERIFIED",
    "Attack",
    "accuracy_curve",
    "check_certified",
    "movable",
    "verified_accuracy",
]

ROBUST = "robust_accuracy"
"""The name in tables of the accuracy under attack."""
VERIFIED = "verified_accuracy"
"""The name in tables of the share of rows that no attack can make wrong."""
SHARES = (0.25, 0.5, 1.0, 1.5, 2.0)
"""The radii of a robustness curve, as multiples of the attack's radius."""
LARGEST = torch.finfo(torch.float32).max / SHARES[-1]
"""The largest radius of an attack, for which all radii of the curve are still finite in float32."""
STEPS, RESTARTS = 20, 5
TRAINING_STEPS = 7
ROWS = 1000
"""The largest number of rows of a test fold that are attacked."""
AT_ONCE = 4096


@dataclass(frozen=True)
class Attack:
    """An attack on the inputs: PGD within a ball, whose radius is in the units of the scaled columns.

    Attributes:
        norm: ``"linf"`` or ``"l2"``.
        eps: The ball's radius.
        columns: The encoded columns that the attack may change; None if it may change all.
        certify: Whether to also count the rows that no attack can make wrong.
    """

    norm: str
    eps: float
    columns: tuple[int, ...] | None = None
    certify: bool = False

    @classmethod
    def parse(cls, text: str, encoder: Encoder) -> "Attack":
        """Build the attack from ``NORM:RADIUS``, on those of the encoder's columns that can be moved.

        >>> from lossworks.comparison.read.encode import Encoder
        >>> Attack.parse("linf:0.1", Encoder(shape=(3,))).eps
        0.1
        """
        norm, _, radius = text.partition(":") if isinstance(text, str) else ("", "", "")
        try:
            eps = float(radius)
        except ValueError:
            eps = math.nan
        if norm not in NORMS or not 0 < eps <= LARGEST:
            raise InputError(
                f"attack must be linf:RADIUS or l2:RADIUS with a radius above 0 and at most {LARGEST:g}, "
                f"got {shown(text)}"
            )
        return cls(norm, eps, movable(encoder))

    def search(self, eps: float, *, steps: int, restarts: int, generator: torch.Generator | None) -> PGD:
        """The PGD that searches for the worst input within a ball of this radius."""
        return PGD(eps, steps, norm=self.norm, restarts=restarts, generator=generator, columns=self.columns)

    def settings(self) -> dict[str, object]:
        """The arguments of a :class:`~lossworks.perturb.PGD` that trains against this attack."""
        where = {} if self.columns is None else {"columns": self.columns}
        return {"eps": self.eps, "norm": self.norm, "steps": TRAINING_STEPS, **where}


def movable(encoder: Encoder) -> tuple[int, ...] | None:
    """The encoded columns that hold numbers or dates, or None if all do; categories and indicators cannot be moved."""
    if encoder.shape is not None:
        return None
    numbers: list[int] = []
    at = 0
    for column in encoder.columns:
        numbers += [at] if column.kind != "category" and column.varies else []
        at += len(column.names)
    if not numbers:
        raise InputError("attack: none of the columns holds numbers, and categories cannot be moved a little")
    return None if len(numbers) == at else tuple(numbers)


def accuracy_curve(
    module: nn.Sequential,
    x: Tensor,
    target: Int[Tensor, " n"],
    attack: Attack,
    radii: Sequence[float],
    *,
    seed: int,
    steps: int = STEPS,
    restarts: int = RESTARTS,
) -> list[tuple[float, float]]:
    """The accuracy under attack at each radius, as pairs (radius, accuracy) that begin with radius 0.

    A row that is made wrong at one radius counts as wrong at all larger radii.

    Args:
        module: A scaler, a network and a head, as an ``Architecture`` assembles them.
        x: The encoded rows.
        target: The classes of the rows.
        attack: The attack, whose norm and columns are used; its own radius is not.
        radii: The radii, > 0, in ascending order.
        seed: The seed of the restarts.
        steps: The number of steps of each search.
        restarts: The number of searches for each row.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    with torch.no_grad():
        scaled = torch.cat([module[0](rows) for rows in x.split(AT_ONCE)])
        answers = torch.cat([_logits(module, rows).argmax(dim=1) for rows in scaled.split(AT_ONCE)])
    right = answers == target
    curve = [(0.0, float(right.double().mean()))]
    for radius in radii:
        search = attack.search(radius, steps=steps, restarts=restarts, generator=generator)
        for rows in right.nonzero().flatten().split(AT_ONCE):
            right[rows] = _withstands(module, scaled[rows], target[rows], search)
        curve.append((float(radius), float(right.double().mean())))
    return curve


def _withstands(module: nn.Sequential, scaled: Tensor, target: Tensor, search: PGD) -> Tensor:
    """Which rows keep their class at the worst input that the search finds."""

    def risk(rows: Tensor) -> Tensor:
        return -cw_margin_loss(_logits(module, rows), target)

    found = search(risk, scaled)
    with torch.no_grad():
        return risk(found) < 0


def _logits(module: nn.Sequential, scaled: Tensor) -> Tensor:
    output: Tensor = module[1:](scaled)
    return output if output.ndim == 2 else torch.stack([torch.zeros_like(output), output], dim=1)


def check_certified(network: nn.Module, attack: Attack, shape: tuple[int, ...]) -> None:
    """Raise unless there are bounds for the layers of the network and for the attack's ball."""
    if attack.norm != "linf" and attack.columns is not None:
        raise InputError("certify: in l2 all columns must hold numbers; use --attack linf:RADIUS, or --drop the others")
    try:
        with torch.no_grad():
            _bounds(network.eval(), torch.zeros(1, *shape), attack)
    except (TypeError, ValueError) as error:
        raise InputError(f"certify: {error}") from error


@torch.no_grad()
def verified_accuracy(module: nn.Sequential, x: Tensor, target: Int[Tensor, " n"], attack: Attack) -> float:
    """The share of rows that linear bounds on the outputs prove right for every input in the ball."""
    sure = [
        _sure(module[1], module[0](rows), wanted, attack)
        for rows, wanted in zip(x.split(AT_ONCE), target.split(AT_ONCE), strict=True)
    ]
    return float(torch.cat(sure).double().mean())


def _sure(network: nn.Module, scaled: Tensor, target: Tensor, attack: Attack) -> Tensor:
    network, scaled = copy.deepcopy(network).double(), scaled.double()
    outputs = network(scaled[:1]).shape[1]
    if outputs == 1:  # the score of class 1
        low, high = _bounds(network, scaled, attack)
        return torch.where(target == 1, low[:, 0] > 0, high[:, 0] < 0)
    low, _ = _bounds(network, scaled, attack, margin_spec(target, outputs))
    return (low > 0).all(dim=1)


def _bounds(network: nn.Module, scaled: Tensor, attack: Attack, spec: Tensor | None = None) -> tuple[Tensor, Tensor]:
    moves = torch.ones_like(scaled)
    if attack.columns is not None:
        moves = torch.zeros_like(scaled).index_fill(1, torch.tensor(attack.columns, device=scaled.device), 1.0)
    box = (scaled - attack.eps * moves, scaled + attack.eps * moves) if attack.norm == "linf" else None
    return crown_bounds(network, scaled, attack.eps, norm=attack.norm, box=box, spec=spec)
