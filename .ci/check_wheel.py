"""Check a wheel in the environment where it alone is installed: what is in it, and that its command works.

.venv-wheel/bin/python -I .ci/check_wheel.py dist/lossworks-0.1.0-py3-none-any.whl
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

SOURCE = Path(__file__).resolve().parents[1] / "src"
ENVIRONMENT = Path(sys.prefix).resolve()
DATA = ("anes96.csv", "papers.toml", "claims.json", "report.html.j2", "py.typed")


def check_contents(wheel: Path) -> None:
    """The wheel holds exactly the package's files: no experiment, no test, and nothing is missing."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    folders = {part for name in held for part in PurePosixPath(name).parts[:-1]}
    assert not folders & {"claims", "tests", "bench"}, f"the wheel has folders of the source tree: {sorted(folders)}"
    files = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and not {"__pycache__", "lossworks.egg-info"} & set(path.parts)
    }
    assert held == files, f"only in the wheel: {sorted(held - files)}; missing in it: {sorted(files - held)}"
    missing = [name for name in DATA if not any(PurePosixPath(held_name).name == name for held_name in held)]
    assert not missing, f"the wheel lacks {missing}"


def check_place() -> None:
    """What is imported is the wheel's, not the source tree's."""
    place = Path(_said(sys.executable, "-I", "-c", "import lossworks; print(lossworks.__file__)").strip()).resolve()
    assert place.is_relative_to(ENVIRONMENT), f"lossworks is imported from {place}, outside of {ENVIRONMENT}"
    assert not place.is_relative_to(SOURCE), f"lossworks is imported from the source tree: {place}"


def check_commands() -> None:
    """``lossworks show`` and a small comparison on the embedded data, in a folder that has nothing."""
    command = str(ENVIRONMENT / "bin" / "lossworks")
    told = _said(command, "show", "LDRLoss")
    assert "lossworks.losses.LDRLoss" in told, told
    assert "measured: shown" in told, told
    small = ("--objectives", "LDRLoss", "--folds", "2", "--repeats", "1", "--out", "run", "--json")
    result = json.loads(_said(command, "compare", *small))
    names = {row["objective"] for row in result["ranking"]}
    assert {"LDRLoss", "CrossEntropyLoss"} <= names, names
    for name in ("report.html", "results.parquet", "model.safetensors", "recipe.py"):
        assert (Path("run") / name).stat().st_size, f"the comparison wrote no {name}"


def _said(*command: str) -> str:
    """What the command prints, in an environment that names no other place to import from."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    ran = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    assert ran.returncode == 0, f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def main() -> None:
    """Run every check on the wheel that is named."""
    (wheel,) = sys.argv[1:]
    check_contents(Path(wheel))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        check_place()
        check_commands()
        os.chdir("/")
    print(f"{Path(wheel).name}: contents, place and commands are right")  # noqa: T201


if __name__ == "__main__":
    main()
