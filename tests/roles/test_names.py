"""A class is called by its role, over everything in the package and not only what is public."""

import functools
import importlib
import inspect
import pkgutil

import lossworks
from lossworks.catalog import parts
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Loss, Penalty, Weighting

OWN_NAMES = {"KLDRO", "CVaR", "ChiSquareDRO", "GroupDRO", "ClassBalanced", "CompositionalEMA"}
"""The weightings that are known by their method's own name; every other ends in ``Weights``."""
WITHOUT_PARTS = ("lossworks.fused.kernels", "lossworks.fused.gpu", "lossworks.integrations", "lossworks.cli")
"""What has no part in it and takes a GPU or long to import."""


@functools.cache
def classes():
    """Every class that a module of the package defines, and every class of the catalog."""
    found = {entry.part for entry in parts().values() if inspect.isclass(entry.part)}
    for module in pkgutil.walk_packages(lossworks.__path__, "lossworks."):
        if not module.name.startswith(WITHOUT_PARTS) and not module.name.endswith("__main__"):
            there = vars(importlib.import_module(module.name))
            found |= {item for item in there.values() if inspect.isclass(item) and item.__module__ == module.name}
    return sorted(found - {Penalty, Objective, Loss, BatchLoss, Weighting}, key=lambda one: one.__qualname__)


def names_of(*roles):
    return [one.__name__ for one in classes() if issubclass(one, roles)]


def test_what_is_looked_at_is_there():
    """So that none of the rules below holds of nothing."""
    assert len(classes()) > 200
    for role, least in ((Loss, 40), (BatchLoss, 6), (Weighting, 12), (Penalty, 2), (Objective, 10)):
        assert len(names_of(role)) >= least, role


def test_a_penalty_is_called_so_and_nothing_else_is():
    assert {one.__name__ for one in classes() if one.__name__.endswith("Penalty")} == set(names_of(Penalty))


def test_an_objective_is_called_so_and_nothing_else_is():
    of_the_folder = [one for one in classes() if one.__module__.startswith("lossworks.objectives")]
    named = {one.__name__ for one in of_the_folder if one.__name__.endswith("Objective")}
    assert named == {one.__name__ for one in of_the_folder if issubclass(one, Objective)}
    assert [name for name in names_of(Objective) if not name.endswith("Objective")] == []


def test_a_loss_is_called_so():
    assert [name for name in names_of(Loss, BatchLoss) if not name.endswith("Loss")] == []


def test_a_weighting_is_called_so_or_by_its_method_s_own_name():
    other = {name for name in names_of(Weighting) if not name.endswith("Weights")}
    assert other == OWN_NAMES
