"""The contract, run on every part that the catalog finds, in every setting that it declares."""

import inspect

import pytest

from lossworks.catalog import parts
from lossworks.objective import Objective
from lossworks.roles import Part
from lossworks.testing import build, check_loss, check_part, unless
from lossworks.testing.losses import assert_documented, assert_no_hidden_state

WITHOUT_A_ROLE = ("optimizer", "selector", "certificate", "diagnostic", "federated round")
"""What is called around an objective and stands in none."""


def _in_an_objective(part):
    return inspect.isclass(part) and issubclass(part, (Part, Objective))


CLASSES = [
    pytest.param(entry.part, setting, id=f"{name}-{number}")
    for name, entry in parts().items()
    if _in_an_objective(entry.part)
    for number, setting in enumerate(entry.part.settings)
]
OTHERS = [pytest.param(entry.part, id=name) for name, entry in parts().items() if not _in_an_objective(entry.part)]


@pytest.mark.parametrize(("part", "setting"), CLASSES)
def test_keeps_the_contract(part, setting):
    assert all(check_part(build(part, setting)).values())


@pytest.mark.parametrize("other", OTHERS)
def test_public_functions_and_other_classes_are_documented(other):
    assert_documented(other)


@pytest.mark.parametrize(("part", "setting"), CLASSES)
def test_declares_at_most_four_settings_and_prints_itself(part, setting):
    assert 1 <= len(part.settings) <= 4
    assert part.__name__ in repr(build(part, setting))


def test_the_kit_catches_a_loss_that_breaks_the_contract():
    import torch

    from lossworks.roles import Loss

    class Hidden(Loss):
        r"""Counts its calls in a plain attribute, which a checkpoint loses."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def per_sample(self, output, target):
            self.calls += 1
            return torch.nn.functional.cross_entropy(output, target, reduction="none") * self.calls

    class Coupled(Loss):
        """Standardises over the batch without saying so."""

        def per_sample(self, output, target):
            losses = torch.nn.functional.cross_entropy(output, target, reduction="none")
            return losses - losses.mean()

    with pytest.raises(AssertionError, match="plain attribute"):
        assert_no_hidden_state(Hidden())
    with pytest.raises(AssertionError, match="assert_"):
        check_loss(Coupled())


def test_every_exception_to_the_contract_has_a_reason():
    for entry in parts().values():
        if not inspect.isclass(entry.part) or not hasattr(entry.part, "rowwise"):
            continue
        loss = build(entry.part)
        reasons = [reason(loss) for reason in unless.values()]
        assert all(reason is None or len(reason) > 10 for reason in reasons)
        if loss.couples_batch or loss.surrogate_gradient:
            assert "batch" in inspect.getdoc(entry.part) or "gradient" in inspect.getdoc(entry.part)


def test_every_part_is_a_part():
    assert all(
        _in_an_objective(e.part) or e.role in WITHOUT_A_ROLE for e in parts().values() if inspect.isclass(e.part)
    )
