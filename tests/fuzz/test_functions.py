"""Every public function, by its signature."""

import fuzzing
import pytest
from fuzzing import arguments, attempt, outcome, parameters

FUNCTIONS = fuzzing.functions()
HELPERS = ("lossworks.checks.", "lossworks.roles.")
"""Where the arguments that are not checked come from the library itself, and fit."""
CHECKED = ("value", "tensor", "output", "target", "sample_weight", "total")


@pytest.mark.parametrize("path", FUNCTIONS)
def test_function(path, fuzz):
    function = FUNCTIONS[path]
    helper = path.startswith(HELPERS)
    names = [*parameters(function), *(["argument"] if helper else [])]
    also = (KeyError,) if path == "lossworks.catalog.show" else ()
    strategy = (
        arguments(
            function, {"name": "argument", "names": ("output", "target"), "dim": "C", "low": 0, "high": 1}, CHECKED
        )
        if helper
        else arguments(function)
    )

    def check(given):
        return outcome(attempt(lambda: function(**given), names, *also))

    fuzz(strategy, check)
