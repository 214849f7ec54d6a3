"""What a claim's experiment hands back."""

from dataclasses import dataclass, field

__all__ = ["Measurement"]


@dataclass(frozen=True)
class Measurement:
    """What was measured, and whether the claim's direction showed by the rule fixed beforehand.

    Every claim module has ``PAPER`` (its key in ``papers.toml``), ``RULE`` (the pass rule in one sentence, with its
    numbers) and ``measure() -> Measurement``. A claim that does not show is recorded as not shown; the rule is never
    bent to the result.

    Attributes:
        shown: Whether the pass rule holds.
        measured: The result in one sentence, with the numbers that decide.
        numbers: Everything measured, by name; a list has one number a seed (or a setting, as its name says).
        seeds: How many seeds were run.
    """

    shown: bool
    measured: str
    numbers: dict[str, float | list[float]] = field(default_factory=dict)
    seeds: int = 1
