import json

import pytest

import lossworks as lw


@pytest.fixture
def attacked(cli, finished):
    """Attack the finished run's model on its own rows, briefly."""
    places = (finished / "run", finished / "customers.csv")
    return lambda *options: cli("attack", *places, "--eps", "0.5", "--steps", "3", "--restarts", "1", *options)


def test_attack_prints_the_curve_that_python_gives(attacked, finished):
    curve = lw.load(finished / "run").robustness(finished / "customers.csv", 0.5, steps=3, restarts=1)
    document = json.loads(attacked("--json").out)
    assert document == {"norm": "linf", "steps": 3, "restarts": 1, "curve": curve.to_dicts()}
    printed = [tuple(map(float, line.split())) for line in attacked("--quiet").out.splitlines()]
    assert printed == [(float(f"{radius:g}"), round(accuracy, 3)) for radius, accuracy in curve.rows()]


def test_attack_says_the_norm_and_what_the_search_cannot_promise(attacked):
    result = attacked("--norm", "l2")
    assert result.code == 0
    assert result.out.splitlines()[0].split() == ["l2", "radius", "accuracy"]
    assert "upper bound" in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--norm", "l1"], "l1"),
        (["--eps", "-1"], "-1"),
        (["--steps", "0"], "steps must be an int >= 1"),
        (["--model", "none.py:build"], "no such file none.py"),
    ],
)
def test_attack_says_what_is_wrong_in_one_line(attacked, options, says):
    result = attacked(*options)
    assert result.code == 2
    assert says in result.one_line()
