"""The house: its floors, read from the imports of every file, and what an import brings in."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lossworks

ROOT = Path(lossworks.__file__).parent
FLOORS = (
    ("checks", "distributed", "pages"),
    ("roles",),
    ("metrics", "verdict"),
    ("losses", "embed", "distill", "weights", "perturb", "penalties", "optim", "layers", "calibrate", "select"),
    ("objective", "certify"),
    ("objectives", "fused", "federated", "diagnose"),
    ("catalog", "testing", "report", "runs"),
    ("comparison",),
    ("sklearn", "integrations", "cli"),
)
"""From the ground up. Folders on one floor do not know each other, but for one that a folder says it stands on."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
LONGEST_FILE, LONGEST_CLASS, FULLEST_FOLDER = 400, 200, 25
QUESTIONS: dict[str, str] = {}
"""What is longer or fuller than is asked about, each with the one idea that it is."""


def _files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, known: set[str]) -> Iterator[str]:
    """The modules of ours that a file imports, anywhere in it; a name of a package counts as the module it is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "lossworks")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lossworks":
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in known else str(node.module)


def _folder(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


GRAPH = {_module(path): set(_imported(path, {_module(file) for file in _files()})) for path in _files() if path.name}


def _stands_on(folder: str) -> str | None:
    path = ROOT / folder / "__init__.py"
    said = re.findall(r"Stands on ``(\w+)``", path.read_text(encoding="utf-8")) if path.exists() else []
    assert len(said) <= 1, f"{folder} may stand on one folder of its floor, it says {said}"
    return said[0] if said else None


def test_every_folder_has_its_floor():
    there = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.name not in ("__init__.py", "py.typed")}
    assert there - {"__pycache__"} == set(FLOOR)


def test_imports_only_go_down():
    wrong = []
    for module, imported in GRAPH.items():
        here = _folder(module)
        for other in sorted(imported):
            there = _folder(other)
            if not here or there == here:
                continue
            if not there:
                wrong.append(f"{module} imports lossworks itself")
            elif FLOOR[there] > FLOOR[here] or (FLOOR[there] == FLOOR[here] and _stands_on(here) != there):
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_no_files_import_each_other_in_a_circle():
    """A package's ``__init__`` only gathers what is in it, so what it imports is no reason of the files that use it."""
    gathering = {_module(path) for path in _files() if path.name == "__init__.py"}
    graph = {
        module: {other for other in imported if other in GRAPH and other not in gathering and other != module}
        for module, imported in GRAPH.items()
        if module not in gathering
    }
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            pytest.fail("a circle: " + " -> ".join([*way[way.index(module) :], module]))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, [*way, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_no_file_imports_the_package_that_it_is_in():
    """What a package gathers is for its users; among themselves its files name each other."""
    wrong = [
        f"{module} imports {other}"
        for module, imported in GRAPH.items()
        for other in imported
        if module.startswith(f"{other}.")
    ]
    assert not wrong


def test_files_classes_and_folders_that_are_large_are_one_idea(record_property):
    """A question, not a failure: whoever makes one answers it in QUESTIONS."""
    found: dict[str, int] = {}
    for path in _files():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        if (lines := text.count("\n")) > LONGEST_FILE:
            found[name] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_CLASS:
                found[f"{name}: {node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    for folder in {path.parent for path in _files()}:
        if (files := len(list(folder.glob("*.py")))) > FULLEST_FOLDER:
            found[folder.relative_to(ROOT).as_posix()] = files
    for name in sorted(found.keys() - QUESTIONS.keys()):
        record_property("one idea, or several?", f"{name} ({found[name]})")
    assert not QUESTIONS.keys() - found.keys(), "answers to what nobody asks any more"


HEAVY = (
    "sklearn",
    "polars",
    "pyarrow",
    "scipy",
    "rich",
    "typer",
    "jinja2",
    "pandas",
    *(f"lossworks.{name}" for name in FLOOR if name != "checks"),
    "transformers",
    "accelerate",
    "lightning",
)


def test_importing_the_library_imports_nothing_of_it_but_the_checks():
    code = "import sys, torch; before = set(sys.modules); import lossworks; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in loaded if name.startswith(HEAVY)]


def test_every_public_name_is_there_when_it_is_used_and_the_functions_are_functions():
    code = (
        "import lossworks as lw; print(all(hasattr(lw, name) for name in dir(lw)));"
        "import lossworks.comparison; print(type(lw.compare).__name__, type(lw.checks).__name__, callable(lw.load))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "function", "function", "True"]


def test_the_command_hears_ctrl_c_before_it_imports_the_library():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="lossworks")
    code = f"import sys, {command.module}; print('lossworks' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 2
