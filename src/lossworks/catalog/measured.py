"""The papers' claims as they were last measured: what ``claims.json`` holds."""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Claim", "claims", "claims_text"]

EXPERIMENTS = (
    "The experiments are in the folder claims/ of the source tree, not in the installed package: "
    "`python -m claims run KEY`, called in a clone, measures one anew."
)


@dataclass(frozen=True)
class Claim:
    """One paper's claim beside what its experiment measured.

    Attributes:
        paper: The paper's key in ``papers.toml``.
        claimed: What the paper claims, in our words.
        rule: The pass rule in one sentence, fixed before the experiment was run.
        measured: The result in one sentence, with the numbers that decide.
        shown: Whether the rule holds.
        seeds: How many seeds were run.
        seconds: How long the experiment took.
        numbers: Everything that was measured, by name; a list has one number a seed or a setting.
    """

    paper: str
    claimed: str
    rule: str
    measured: str
    shown: bool
    seeds: int
    seconds: float
    numbers: Mapping[str, float | list[float]] = field(repr=False)

    @property
    def verdict(self) -> str:
        """``"shown"`` or ``"not shown"``."""
        return "shown" if self.shown else "not shown"


@functools.cache
def claims() -> dict[str, Claim]:
    """The last measured result of every claim by its paper's key.

    >>> claims()["zhu2023ldr"].shown
    True
    """
    text = importlib.resources.files("lossworks.catalog").joinpath("claims.json").read_text(encoding="utf-8")
    return {key: Claim(**record) for key, record in json.loads(text).items()}


def claims_text() -> str:
    """Every claim with whether it showed, one a line, and where the experiments are.

    >>> print(claims_text().splitlines()[-1].split(":")[0])
    The experiments are in the folder claims/ of the source tree, not in the installed package
    """
    return "\n".join([*(f"{key}: {claim.verdict}" for key, claim in claims().items()), "", EXPERIMENTS])
