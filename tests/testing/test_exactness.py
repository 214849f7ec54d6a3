"""The invariance matrix over the whole catalog, and that the kit which draws it catches what is not exact."""

from pathlib import Path

import pytest
import torch

import lossworks as lw
from lossworks.roles.calibrator import Calibrator
from lossworks.testing import check_exactness
from lossworks.testing.exactness import (
    COLUMNS,
    catalog_parts,
    why_not_exact,
)
from lossworks.testing.inputs import Recipe
from lossworks.testing.optimizers import catalog_optimizers, optimizer_matrix
from lossworks.testing.page import catalog_page, said_of_splits

PAGE = Path(__file__).parents[2] / "docs" / "exactness.md"
SPLITS = ("2 processes", "3 processes", "micro-batches")


def test_every_part_is_exact_and_the_page_says_so(two_ranks, three_ranks):
    page = catalog_page([two_ranks, three_ranks])
    written = PAGE.read_text(encoding="utf-8")
    assert page == written, "draw it anew: python -m lossworks.testing --write docs/exactness.md"


def test_what_a_split_changes_or_must_see_whole_is_said_in_the_docstring():
    for name, settings in catalog_parts().items():
        changed = any(why_not_exact(settings[0], column) for column in SPLITS)
        whole = getattr(settings[0], "couples_batch", False) or getattr(settings[0], "memories", False)
        if (changed or whole) and not isinstance(settings[0], Calibrator):
            assert said_of_splits(settings[0]), name


def test_what_a_split_does_to_an_optimizer_is_said_in_the_docstring():
    for name, recipes in catalog_optimizers().items():
        assert said_of_splits(recipes[0]), name


def test_every_loss_and_weighting_is_exact_over_processes_and_every_part_when_it_is_resumed():
    for settings in catalog_parts().values():
        for part in settings:
            assert why_not_exact(part, "resume") is None
            if isinstance(part, (lw.Loss, lw.BatchLoss, lw.Weighting)):
                assert not any(why_not_exact(part, column) for column in SPLITS)


class Coupled(lw.Loss):
    """Compares its rows without saying so."""

    rowwise = True

    def per_sample(self, output, target):
        losses = torch.nn.functional.cross_entropy(output, target, reduction="none")
        return losses - losses.mean().detach() * losses


class Forgetful(lw.Loss):
    """Keeps a number where a checkpoint does not find it."""

    rowwise = True

    def __init__(self):
        super().__init__()
        self.steps = 0

    def per_sample(self, output, target):
        self.steps += 1
        return torch.nn.functional.cross_entropy(output, target, reduction="none") * self.steps


class PrivateMemory(lw.Loss):
    """Writes its memory by itself, so that other ranks do not hear of it."""

    needs_index = True
    memories = {"seen": "sum"}  # noqa: RUF012  (as a user would write it)

    def __init__(self, *, declared):
        super().__init__()
        self.seen = torch.zeros(12)
        self.declared = declared

    def per_sample(self, output, target, index):
        scale = 1 + self.seen[index].to(output.dtype)
        if self.training:
            ones = torch.ones(len(index))
            if self.declared:
                self.remember("seen", index, ones)
            else:
                self.seen.index_put_((index,), ones, accumulate=True)
        return torch.nn.functional.cross_entropy(output, target, reduction="none") / scale


class Averaged(lw.Weighting):
    """Weights by a running mean of the losses, asked about the whole batch because its mean of 1 is the batch's."""

    def __init__(self):
        super().__init__()
        self.level = torch.ones((), dtype=torch.float64)

    def forward(self, losses, *, index=None, group=None, target=None):
        if self.training:
            self.level.mul_(0.9).add_(0.1 * losses.mean())
        raw = losses + self.level.to(losses.dtype)
        return raw / raw.mean()


class Spread(lw.BatchLoss):
    """How much the outputs differ from each other, and from the target."""

    stochastic = False

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, output, target, *, sample_weight=None):
        difference = output - target
        return (self.scale * difference.var() + difference.mean().square()).to(output.dtype)


def test_a_hidden_coupling_is_caught(two_ranks):
    with pytest.raises(AssertionError, match=r"Coupled \(float64\) on rank 0 of 2: value of step 0 is off"):
        check_exactness(Coupled(), [two_ranks])


def test_a_number_that_a_checkpoint_loses_is_caught():
    with pytest.raises(AssertionError, match=r"Forgetful .* after a stop: value of step 2 is off"):
        check_exactness(Forgetful(), [])


def test_a_memory_that_is_not_shared_is_caught_and_one_that_is_declared_is_exact(two_ranks):
    with pytest.raises(AssertionError, match=r"PrivateMemory .* on rank 1 of 2: buffer objective.loss.seen of step 0"):
        check_exactness(PrivateMemory(declared=False), [two_ranks])
    assert check_exactness(PrivateMemory(declared=True), [two_ranks])["2 processes"] == "exact"


def test_a_strangers_weighting_and_batch_loss_are_exact(two_ranks, three_ranks):
    for part in (Averaged(), Spread()):
        said = check_exactness(part, [two_ranks, three_ranks])
        assert set(said) == set(COLUMNS)
        assert [said[column] for column in ("2 processes", "3 processes", "resume")] == ["exact"] * 3
        assert said["micro-batches"].startswith("exact: by `Objective.micro_batches`")


def test_starts_and_ends_processes_of_its_own():
    assert check_exactness(lw.weights.KLDRO(temperature=0.5))["3 processes"] == "exact"


def test_what_is_not_a_part_is_refused():
    with pytest.raises(TypeError, match="part must be a lossworks part, got CrossEntropyLoss"):
        check_exactness(torch.nn.CrossEntropyLoss(), [])


class UncountedNoise(lw.optim.AnnealedGradientNoise):
    """Doesn't save how many steps it has taken."""

    own = ()


class EachItsOwn(lw.optim.SAM):
    """Steps further on each further rank."""

    def step(self, closure=None):
        group = torch.distributed
        self.rho = 0.05 * (1 + (group.get_rank() if group.is_initialized() else 0))
        return super().step(closure)


def test_an_optimizer_that_forgets_a_number_at_a_stop_is_caught():
    with pytest.raises(AssertionError, match=r"Uncounted \(float64\) after a stop: weights of step 2 is off"):
        optimizer_matrix({"Uncounted": [Recipe(UncountedNoise, {})]}, [])


def test_an_optimizer_that_is_another_on_each_rank_is_caught(two_ranks):
    with pytest.raises(AssertionError, match=r"Own \(float64\) on rank 1 of 2: weights of step 0 is off"):
        optimizer_matrix({"Own": [Recipe(EachItsOwn, {})]}, [two_ranks])


def test_optimizers_that_step_from_gradients_are_exact_however_these_are_split(two_ranks):
    recipes = catalog_optimizers()
    assert set(recipes) == {"AnnealedGradientNoise", "GSAM", "IGNITE", "RSGS", "SAM"}
    matrix = optimizer_matrix({name: recipes[name] for name in ("GSAM", "AnnealedGradientNoise")}, [two_ranks])
    for cells in matrix.values():
        assert [cells[column].exact for column in COLUMNS] == [True, True, True, False, False, True]
