"""What an import brings in, asked of a fresh interpreter."""

import subprocess
import sys

HEAVY = (
    "sklearn",
    "polars",
    "pyarrow",
    "scipy",
    "rich",
    "typer",
    "jinja2",
    "pandas",
    "lossworks.compare",
    "lossworks.testing",
    "lossworks.integrations",
    "transformers",
    "accelerate",
    "lightning",
)


def test_importing_the_library_imports_nothing_of_the_tool():
    code = "import sys, torch; before = set(sys.modules); import lossworks; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in loaded if name.startswith(HEAVY)]


def test_the_tool_is_there_when_it_is_used():
    code = "import lossworks as lw; print(callable(lw.compare), callable(lw.load), callable(lw.testing.check_loss))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3


def test_the_command_hears_ctrl_c_before_it_imports_the_library():
    import importlib.metadata

    (command,) = importlib.metadata.entry_points(group="console_scripts", name="lossworks")
    code = f"import sys, {command.module}; print('lossworks' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 2


def test_nothing_in_the_package_imports_upwards():
    """The floors of the house, read from the imports that stand at the top of each file."""
    import ast
    from pathlib import Path

    import lossworks

    floors = {
        "checks": 0,
        "distributed": 0,
        "memories": 0,
        "roles": 1,
        "metrics": 2,
        "losses": 3,
        "weights": 3,
        "perturb": 3,
        "penalties": 3,
        "calibrate": 3,
        "layers": 3,
        "optim": 3,
        "select": 3,
    }
    floors |= {
        "objective": 4,
        "robust": 5,
        "certify": 5,
        "diagnose": 5,
        "federated": 6,
        "fused": 4,
        "catalog": 5,
        "testing": 5,
        "report": 5,
        "compare": 6,
        "claims": 7,
        "sklearn": 7,
        "integrations": 7,
        "cli": 8,
    }
    root = Path(lossworks.__file__).parent
    wrong = []
    for path in root.rglob("*.py"):
        here = path.relative_to(root).parts[0].removesuffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lossworks.") and here in floors:
                there = (node.module or "").split(".")[1]
                sideways = floors[there] == floors[here] and there != here
                if floors[there] > floors[here] or (sideways and floors[here] == 3):
                    wrong.append(f"{path.relative_to(root)} imports {node.module}")
    assert not wrong
