"""The skeletons of new parts: one of each role, written into a copy of the tree, keeps the contract as it stands."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lossworks.checks import InputError
from lossworks.testing.__main__ import main
from lossworks.testing.skeleton import ROLES, new

ROOT = Path(__file__).parents[2]
NAMES = {
    "batch-loss": "UnexplainedLoss",
    "calibrator": "ShrinkScaling",
    "diagnostic": "loss_share",
    "layer": "RowBound",
    "loss": "QRDoubtLoss",
    "metric": "median_error",
    "objective": "DecayedObjective",
    "optimizer": "ClippedSteps",
    "penalty": "LogWeightPenalty",
    "perturbation": "SignStep",
    "selector": "NearMedianSelector",
    "weighting": "SOFT",
}
CHECK = """
import json, sys
import pytest

ended = pytest.main(["-q", "-p", "no:cacheprovider", "tests", *sys.argv[2:]])

from lossworks.catalog import papers, parts
from lossworks.roles import Wrapper
from lossworks.testing import build, check_part

def checked(part):
    if not isinstance(part, type) or issubclass(part, Wrapper):
        return check_part(part)
    made = [build(part, setting) if hasattr(part, "needs") else part(**setting) for setting in part.settings]
    return [check_part(one) for one in made][-1]

results = {}
for name in json.loads(sys.argv[1]):
    part = parts()[name].part
    assert all(key in papers() for key in part.papers)
    try:
        results[name] = checked(part)
    except AssertionError as error:
        results[name] = str(error)
print("\\n" + json.dumps({"results": results, "tests": int(ended)}))
"""


def run(*command, cwd, **environment):
    """What a command in a process of its own says, which must be of no error."""
    ran = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the source tree without tests."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", root / "tests")
    return root


@pytest.fixture(scope="module")
def written(tree):
    """The files that were written or changed, a part of each role, by role."""
    return {role: new(role, name, root=tree) for role, name in NAMES.items()}


@pytest.fixture(scope="module")
def checked(tree, written):
    """What the tests and the contract say of the new parts, which the copy's catalog must find."""
    modules = [str(files[0]) for files in written.values()]
    said = run(
        sys.executable, "-c", CHECK, json.dumps([*NAMES.values()]), *modules, cwd=tree, PYTHONPATH=str(tree / "src")
    )
    return json.loads(said.splitlines()[-1]), said


@pytest.mark.parametrize("role", ROLES)
def test_a_skeleton_keeps_the_contract_and_is_in_the_catalog(checked, role):
    told, _ = checked
    results = told["results"][NAMES[role]]
    assert isinstance(results, dict), results
    assert "passed" in results.values()


def test_the_tests_and_the_doctests_of_the_skeletons_pass(checked):
    told, said = checked
    assert told["tests"] == 0, said


def test_skeletons_pass_the_formatter_the_linter_and_the_type_checker(tree, written, tmp_path):
    files = [str(path) for paths in written.values() for path in paths if path.suffix == ".py"]
    ruff = (sys.executable, "-m", "ruff")
    run(*ruff, "format", "--check", *files, cwd=tree)
    run(*ruff, "check", *files, cwd=tree)
    for paths in written.values():  # beside the tree, so that what they import is type-checked but once
        shutil.copy(paths[0], tmp_path)
    run(sys.executable, "-m", "mypy", *map(str, tmp_path.glob("*.py")), cwd=ROOT, MYPYPATH=str(ROOT / "src"))


def test_every_role_writes_a_part_its_test_its_name_and_its_paper(tree, written):
    for role, (part, test, package, papers) in written.items():
        assert part.relative_to(tree / "src" / "lossworks").parent.as_posix() == ROLES[role].folder
        assert test.relative_to(tree / "tests").parent.as_posix() == ROLES[role].folder
        assert package.name == "__init__.py"
        assert papers.name == "papers.toml"
        assert "REPLACE" in part.read_text(encoding="utf-8")
    keys = [line for line in papers.read_text(encoding="utf-8").splitlines() if line.startswith("[")]
    assert keys == sorted(keys)


def test_the_paper_of_a_known_key_is_left_as_it_is(tree):
    papers = tree / "src" / "lossworks" / "catalog" / "papers.toml"
    before = papers.read_bytes()
    files = new("layer", "Doubler", paper="zhu2023ldr", root=tree)
    assert papers not in files
    assert papers.read_bytes() == before
    assert 'papers = ("zhu2023ldr",)' in files[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("role", "name", "options", "says"),
    [
        ("los", "UnhingedLoss", {}, "role must be one of .*'los'; did you mean 'loss'"),
        ("loss", "Unhinged", {}, "name of a loss must end in Loss, got 'Unhinged'"),
        ("layer", "UnhingedLoss", {}, "name of a layer must not end in Loss"),
        ("loss", "unhinged_loss", {}, "must be written like UnhingedLoss, got 'unhinged_loss'"),
        ("metric", "Unhinged", {}, "must be written like loss_gap, got 'Unhinged'"),
        ("loss", "LdrLoss", {}, "'LdrLoss' is taken by LDRLoss"),
        ("metric", "rmse", {}, "'rmse' is taken by rmse"),
        ("loss", "LambdaLoss", {}, "'LambdaLoss' makes 'lambda.py'"),
        ("loss", "Loss", {}, "'Loss' makes '.py'"),
        ("loss", "Cross_Loss", {}, "must be written like UnhingedLoss"),
        ("loss", "FOCALLoss", {}, "is taken by FocalLoss"),
        ("layer", "Prototypes", {}, r"prototypes\.py is there already"),
        ("loss", "UnhingedLoss", {"paper": "van Rooyen"}, "paper must be a key such as zhu2023ldr .*'van Rooyen'"),
    ],
)
def test_what_cannot_be_a_part_is_refused_before_anything_is_written(tree, role, name, options, says):
    def everything():
        return {path: path.stat().st_mtime_ns for path in tree.rglob("*") if "__pycache__" not in path.parts}

    before = everything()
    with pytest.raises(InputError, match=says):
        new(role, name, root=tree, **options)
    assert everything() == before


def test_a_folder_that_is_no_source_tree_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no source tree of lossworks"):
        new("loss", "UnhingedLoss", root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote_and_what_to_run(tree, monkeypatch, capsys):
    monkeypatch.chdir(tree)
    main(["new", "weighting", "CalmWeights", "--paper", "zhu2023ldr"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "src/lossworks/weights/calm_weights.py"
    assert (tree / lines[1]).is_file()
    assert lines[-1].endswith("pytest -k CalmWeights")
    with pytest.raises(SystemExit, match="2"):
        main(["new", "weighting", "CalmWeights"])
    assert "is taken" in capsys.readouterr().err


def test_nothing_of_a_skeleton_is_left_in_the_library():
    """Whoever begins with a skeleton replaces all that it marks."""
    folders = [ROOT / "src", ROOT / "tests"]
    left = [
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".py", ".toml")
        and "skeleton" not in path.stem
        and "REPLACE:" in path.read_text(encoding="utf-8")
    ]
    assert not left
