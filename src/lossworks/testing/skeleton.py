"""A new part, its test and its paper's entry, written from the skeleton of its role."""

import ast
import datetime
import importlib.resources
import json
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from lossworks.catalog import papers, parts
from lossworks.checks import InputError, nearest

__all__ = ["ROLES", "Role", "new"]

WIDTH = 120


@dataclass(frozen=True)
class Role:
    """The folder in which the parts of a role are kept, and the rule for their names.

    Attributes:
        folder: The folder of the part's file, below ``src/lossworks``; its first component is the part's package.
        ending: The ending of the role's names; empty if there is no rule.
        required: Whether a name must have this ending.
        function: Whether a part is a function instead of a class.
    """

    folder: str
    ending: str = ""
    required: bool = True
    function: bool = False

    @property
    def package(self) -> str:
        """The package that names the part."""
        return self.folder.split("/")[0]


ROLES: Mapping[str, Role] = {
    "batch-loss": Role("losses/real", "Loss"),
    "calibrator": Role("calibrate"),
    "diagnostic": Role("diagnose", function=True),
    "layer": Role("layers"),
    "loss": Role("losses/classes", "Loss"),
    "metric": Role("metrics", function=True),
    "objective": Role("objectives", "Objective"),
    "optimizer": Role("optim"),
    "penalty": Role("penalties", "Penalty"),
    "perturbation": Role("perturb"),
    "selector": Role("select", "Selector"),
    "weighting": Role("weights", "Weights", required=False),
}
"""The roles that have a skeleton, ``skeletons/ROLE.txt`` and ``skeletons/ROLE_test.txt``."""

ENTRY = """\
[{key}]
title = "REPLACE: the title of the paper"
authors = ["REPLACE: the first author", "REPLACE: the second author"]
year = {year}
arxiv = "REPLACE: its number on arXiv, or doi, venue or url instead"
claim = "REPLACE: what the paper claims, in our own words, with its number."
"""


def new(role: str, name: str, *, paper: str | None = None, root: Path | None = None) -> list[Path]:
    """Write the skeleton of a part, its test and, where the paper is new, the paper's entry.

    The part is a small one of its role that works and keeps the contract; what has to be written anew is marked by the
    word REPLACE. Its package names it, so that the catalog and the contract find it.

    Args:
        role: One of :data:`ROLES`.
        name: The part's public name, such as ``UnhingedLoss``.
        paper: The key of the paper in ``papers.toml``; one made of this year and the name by default.
        root: The top folder of the source tree; the current folder by default.

    Returns:
        The files that were written or changed.

    Raises:
        InputError: the role is unknown, the name is taken or breaks the role's naming rule, a file already exists, or
            ``root`` is not a source tree.
    """
    if role not in ROLES:
        raise InputError(f"role must be one of {', '.join(ROLES)}, got {role!r}{nearest(role, ROLES)}")
    place = ROLES[role]
    stem = _stem(role, name)
    key = paper or f"author{datetime.date.today().year}{stem.replace('_', '')}"
    if not re.fullmatch(r"[a-z]+\d{4}[a-z0-9]+", key):
        raise InputError(f"paper must be a key such as zhu2023ldr (author, year, word), got {key!r}")
    root = root or Path()
    package = root / "src" / "lossworks" / place.package / "__init__.py"
    if not package.is_file():
        raise InputError(f"{root.resolve()} is no source tree of lossworks: {package} is missing")
    words = {
        "name": name,
        "result": "".join(word.capitalize() for word in stem.split("_")),
        "paper": key,
        "package": f"lossworks.{place.package}",
    }
    public = [name, words["result"]] if role == "diagnostic" else [name]
    _check_free(public, _names(package))
    written = {
        root / "src" / "lossworks" / place.folder / f"{stem}.py": _filled(role, words),
        root / "tests" / place.folder / f"test_{stem}.py": _filled(f"{role}_test", words),
    }
    for path in written:
        if path.exists():
            raise InputError(f"{path} is there already: choose another name")
    module = f"lossworks.{place.folder.replace('/', '.')}.{stem}"
    written[package] = _with_names(package.read_text(encoding="utf-8"), module, public)
    if key not in papers():
        toml = root / "src" / "lossworks" / "catalog" / "papers.toml"
        written[toml] = _with_entry(toml.read_text(encoding="utf-8"), key)
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(written)


def _stem(role: str, name: str) -> str:
    """The name of the part's file, if the part's name follows the rule of its role."""
    place = ROLES[role]
    shape, like = (r"[a-z][a-z0-9_]*", "loss_gap") if place.function else (r"[A-Z][A-Za-z0-9]*", "UnhingedLoss")
    if not re.fullmatch(shape, name):
        raise InputError(f"name of a {role} must be written like {like}, got {name!r}")
    if place.required and not name.endswith(place.ending):
        raise InputError(f"name of a {role} must end in {place.ending}, got {name!r}")
    for ending, owner in ((other.ending, other_role) for other_role, other in ROLES.items() if other.ending):
        if name.endswith(ending) and ending != place.ending:
            raise InputError(f"name of a {role} must not end in {ending}, as that of a {owner} does, got {name!r}")
    plain = name.removesuffix(place.ending) if place.required else name
    stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", plain).lower()
    if not stem or keyword.iskeyword(stem):
        raise InputError(f"name must make a file that Python can import, {name!r} makes {stem + '.py'!r}")
    return stem


def _check_free(public: Sequence[str], package: Sequence[str]) -> None:
    known = {one.casefold(): one for one in (*parts(), *package)}
    for name in public:
        if name.casefold() in known:
            raise InputError(f"name {name!r} is taken by {known[name.casefold()]}")


def _filled(skeleton: str, words: Mapping[str, str]) -> str:
    text = importlib.resources.files("lossworks.testing").joinpath("skeletons", f"{skeleton}.txt")
    return Template(text.read_text(encoding="utf-8")).substitute(words)


def _all_of(text: str) -> ast.Assign:
    """The assignment of ``__all__`` in a module."""
    (found,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return found


def _names(package: Path) -> list[str]:
    """What a package names in ``__all__``."""
    names: list[str] = ast.literal_eval(_all_of(package.read_text(encoding="utf-8")).value)
    return names


def _with_names(text: str, module: str, public: Sequence[str]) -> str:
    """A package's text with these names imported from the module and in ``__all__``, both in the linter's order."""
    lines = text.splitlines()
    found = _all_of(text)
    names = sorted({*ast.literal_eval(found.value), *public}, key=_order)
    whole = f"__all__ = {json.dumps(names)}"
    if found.lineno != found.end_lineno or len(whole) > WIDTH:
        whole = "\n".join(["__all__ = [", *(f'    "{name}",' for name in names), "]"])
    lines[found.lineno - 1 : found.end_lineno] = [whole]
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    later = [node.lineno for node in imports if (node.module or "") > module]
    at = min(later) - 1 if later else max(node.end_lineno or 0 for node in imports)
    lines.insert(at, f"from {module} import {', '.join(sorted(public, key=_order))}")
    return "\n".join(lines) + "\n"


def _order(name: str) -> tuple[int, str]:
    """Constants first, then classes, then functions, each by the alphabet."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name


def _with_entry(text: str, key: str) -> str:
    """The papers' text with another entry, where the alphabet has it."""
    entry = ENTRY.format(key=key, year=datetime.date.today().year)
    for header in re.finditer(r"^\[(\w+)\]$", text, flags=re.MULTILINE):
        if header[1] > key:
            return f"{text[: header.start()]}{entry}\n{text[header.start() :]}"
    return f"{text}\n{entry}"
