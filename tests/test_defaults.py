"""What a user gets without asking is changed on purpose only: every default of the public names is written down.

``python -m tests.test_defaults`` writes it anew after a change that is meant.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import lossworks
from lossworks.catalog import parts
from lossworks.comparison import Training
from lossworks.sklearn import ObjectiveClassifier, ObjectiveRegressor

WRITTEN = Path(__file__).with_name("defaults.json")
DECLARED = (
    *("settings", "modes", "helps", "papers", "needs", "needs_index", "couples_batch", "stochastic", "memories"),
    *("surrogate_gradient", "soft_targets", "masks", "reads_offset", "rowwise"),
)


def _said(value: Any) -> str:
    """The value in text, without addresses."""
    return re.sub(r" at 0x\w+", "", repr(value)).replace("\n", " ")


def _defaults(thing: Any) -> dict[str, str]:
    return {
        name: _said(parameter.default)
        for name, parameter in inspect.signature(thing).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def _of(thing: Any) -> dict[str, Any]:
    found: dict[str, Any] = dict(_defaults(thing))
    if inspect.isclass(thing):
        own = [module for module in thing.__mro__ if module.__module__.startswith("lossworks")]
        for name in sorted({name for each in own for name in vars(each) if not name.startswith("_")}):
            held = inspect.getattr_static(thing, name)
            if inspect.isfunction(held) and (defaults := _defaults(held)):
                found[f"{name}()"] = defaults
        found |= {f"[{name}]": _said(getattr(thing, name)) for name in DECLARED if hasattr(thing, name)}
    return found


def current() -> dict[str, dict[str, Any]]:
    """Every public name's defaults as they are."""
    named = {entry.path: entry.part for entry in parts().values()}
    named |= {"lossworks.compare": lossworks.compare, "lossworks.load": lossworks.load}
    named |= {"lossworks.Objective": lossworks.Objective, "lossworks.comparison.Training": Training}
    named |= {f"lossworks.sklearn.{each.__name__}": each for each in (ObjectiveClassifier, ObjectiveRegressor)}
    return {path: _of(named[path]) for path in sorted(named)}


def test_no_default_changed_unnoticed():
    written, found = json.loads(WRITTEN.read_text(encoding="utf-8")), current()
    assert set(found) == set(written), "run python -m tests.test_defaults"
    changed = {path: found[path] for path in found if found[path] != written[path]}
    assert not changed, "run python -m tests.test_defaults if that is meant"


if __name__ == "__main__":
    lines = [f"{json.dumps(path)}: {json.dumps(said)}" for path, said in current().items()]
    WRITTEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
