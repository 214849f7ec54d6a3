"""What the parts are and where they come from: collected from the code, never kept twice."""

import functools
import importlib
import importlib.resources
import inspect
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lossworks.catalog.measured import Claim, claims, claims_text
from lossworks.catalog.vocabulary import HELPS
from lossworks.checks import check_int, nearest, shown

__all__ = ["HELPS", "Claim", "Entry", "Paper", "claims", "claims_text", "find", "papers", "parts", "show"]

ROLES = {
    "losses": "loss",
    "embed": "embedding loss",
    "distill": "distillation loss",
    "weights": "weighting",
    "perturb": "perturbation",
    "penalties": "penalty",
    "objectives": "objective",
    "layers": "layer",
    "optim": "optimizer",
    "select": "selector",
    "calibrate": "calibrator",
    "certify": "certificate",
    "diagnose": "diagnostic",
    "federated": "federated round",
    "fused": "fused form",
    "metrics": "metric",
    "verdict": "verdict",
}
"""The folders whose public names are parts, and the role of a part whose base class gives it none."""
NOT_FOR = re.compile(r"(?:^|[.;] )([Nn]ot (?:where|when|with|for) [^.;]*)")
"""A sentence, or the last half of one, that says where a part should not be used."""
REASON = re.compile(r", (?:because|since|as|where|for|which) [^,]*")


@dataclass(frozen=True)
class Paper:
    """One entry of ``papers.toml``."""

    key: str
    title: str
    authors: tuple[str, ...]
    year: int
    claim: str = ""
    note: str = ""
    arxiv: str = ""
    doi: str = ""
    venue: str = ""
    url: str = ""

    def cite(self) -> str:
        """Authors, year, title and where to find it, in one line."""
        names = ", ".join(self.authors[:3]) + (" and others" if len(self.authors) > 3 else "")
        where = f"arXiv {self.arxiv}" if self.arxiv else self.doi or self.venue or self.url
        return f"{names} ({self.year}). {self.title}.{f' {where}' if where else ''}"


@dataclass(frozen=True)
class Entry:
    """One part: its public name, its role in the formula, and what it says of itself."""

    name: str
    role: str
    folder: str
    part: Any
    papers: tuple[str, ...]
    helps: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.part) or "").split("\n", 1)[0]

    @functools.cached_property
    def warns(self) -> tuple[str, ...]:
        """The terms of the troubles with which it should not be used, by the sentences of its docstring that say so."""
        told = [
            sentence.partition(":")[0]
            for sentence in NOT_FOR.findall(" ".join((inspect.getdoc(self.part) or "").split()))
        ]
        against = REASON.sub("", " ".join(told)).casefold()
        return tuple(term for term in _terms(against) if term not in (*self.helps, "baseline"))

    @property
    def path(self) -> str:
        """How it is reached from Python."""
        return f"lossworks.{self.folder}.{self.name}"


@functools.cache
def papers() -> dict[str, Paper]:
    """Every paper by its key."""
    text = importlib.resources.files("lossworks.catalog").joinpath("papers.toml").read_text(encoding="utf-8")
    return {
        key: Paper(key=key, **{**fields, "authors": tuple(fields["authors"])})
        for key, fields in tomllib.loads(text).items()
    }


@functools.cache
def parts() -> dict[str, Entry]:
    """Every public part by its name."""
    found: dict[str, Entry] = {}
    for folder, role in ROLES.items():
        module = importlib.import_module(f"lossworks.{folder}")
        for name in module.__all__:
            part = getattr(module, name)
            if hasattr(part, "papers"):
                if name in found:
                    raise ValueError(f"two parts are called {name}: {found[name].path} and lossworks.{folder}.{name}")
                found[name] = Entry(
                    name, getattr(part, "role", "") or role, folder, part, tuple(part.papers), tuple(part.helps)
                )
    return dict(sorted(found.items()))


def show(name: str) -> Entry:
    """The part of that name, however it is capitalised; a ``KeyError`` suggests the nearest."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a part's name, got {shown(name)}")
    folded = {known.casefold(): known for known in parts()}
    if name.casefold() not in folded:
        raise KeyError(f"no part is called {shown(name)}{nearest(name, parts())}")
    return parts()[folded[name.casefold()]]


def find(text: str, limit: int = 10) -> list[tuple[Entry, tuple[str, ...]]]:
    """The parts that help with what ``text`` describes, best first, each with the terms it was found by.

    Losses and weights, which fit into any loop, come before the others, and so do parts whose paper's claim was
    measured and showed. A part that should not be used with one of the troubles comes last (:attr:`Entry.warns`).

    >>> entries = find("my labels are noisy and some classes are rare")
    >>> {term for _, terms in entries for term in terms} >= {"noisy labels", "imbalance"}
    True
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be words, got {shown(text)}")
    check_int("limit", limit, low=0)
    text = text.casefold()
    asked = set(_terms(text))
    scored: list[tuple[float, str, tuple[str, ...]]] = []
    for name, entry in parts().items():
        terms = tuple(term for term in entry.helps if term in asked)
        keyed = any(_says(text, key) for key in (name.casefold(), *entry.papers))
        wording = _overlap(text, entry)
        if terms or keyed or (not asked and wording):
            proven = any(key in claims() and claims()[key].shown for key in entry.papers)
            fits_in = entry.role in ("loss", "weighting")
            scored.append((10 * keyed + 2 * len(terms) + proven + fits_in + wording, name, terms))
    best = sorted(scored, key=lambda row: (-row[0], row[1]))
    warned = [row for row in best if row[0] < 10 and asked.intersection(parts()[row[1]].warns)]
    sound = [row for row in best if row not in warned]
    ordered = [*_every_term_first(sound, asked), *_every_term_first(warned, asked)]
    return [(parts()[name], terms) for _, name, terms in ordered[:limit]]


def _terms(text: str) -> list[str]:
    """The terms of the vocabulary to which this text, in small letters, leads."""
    return [term for term, words in HELPS.items() if term in text or any(_says(text, word) for word in words)]


def _says(text: str, word: str) -> bool:
    pattern = re.escape(word.removesuffix("*")) + (r"\w*" if word.endswith("*") else "")
    return re.search(rf"\b{pattern}\b", text) is not None


def _overlap(text: str, entry: Entry) -> float:
    """How much of the question's own words the part's summary and papers' titles share, in [0, 1]."""
    said = " ".join([entry.summary, *(papers()[key].title for key in entry.papers)]).casefold()
    asked = Counter(word for word in re.findall(r"[a-z]{4,}", text))
    return sum(word in said for word in asked) / max(len(asked), 1)


def _every_term_first(
    best: list[tuple[float, str, tuple[str, ...]]], asked: set[str]
) -> list[tuple[float, str, tuple[str, ...]]]:
    """The same list, turn by turn through the terms asked for, so that a crowded term does not bury another."""
    turns = {term: [row for row in best if term in row[2]] for term in sorted(asked)}
    mixed: dict[str, tuple[float, str, tuple[str, ...]]] = {
        row[1]: row for row in best if row[0] >= 10 or len(row[2]) > 1
    }
    for depth in range(len(best)):
        for rows in turns.values():
            if depth < len(rows):
                mixed.setdefault(rows[depth][1], rows[depth])
    for row in best:
        mixed.setdefault(row[1], row)
    return list(mixed.values())
