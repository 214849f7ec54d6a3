"""Every named check of the contract has a broken part that it catches: those that the other files leave out."""

import warnings

import pytest
import torch
from jaxtyping import Float

import lossworks as lw
from lossworks.losses import CrossEntropyLoss
from lossworks.roles import cite
from lossworks.testing.calls import documented_call
from lossworks.testing.checks.every import same
from lossworks.testing.contract import CONTRACT, row_of, run_check
from lossworks.testing.subjects import subject_of
from tests.testing import test_broken, test_strangers
from tests.testing.strangers import (
    PowerLoss,
    PowerWeights,
    Scaled,
    Shift,
    SmallHalf,
    SmoothedObjective,
    Tempered,
    WeightSum,
    documented,
)


class Undocumented(PowerLoss):
    """Is not said."""


class Chatty(PowerLoss):
    def per_sample(self, output, target):
        warnings.warn("here I am", stacklevel=1)
        return super().per_sample(output, target)


class Moody(PowerLoss):
    """Is another at each call, by a number that no copy shares."""

    calls = 0

    def per_sample(self, output, target):
        type(self).calls += 1
        return super().per_sample(output, target) + type(self).calls


class Uncopied(PowerLoss):
    """Holds what cannot be pickled."""

    def __init__(self, power=2.0, *, reduction="mean"):
        super().__init__(power, reduction=reduction)
        self.changed = lambda value: value


class Remembering(PowerWeights):
    """Has a state that its ``state_dict`` leaves out."""

    def __init__(self, power=0.5):
        super().__init__(power)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, losses, **columns):
        self.seen = self.seen + 1
        return super().forward(losses, **columns) * 0 + self.seen


class Drawing(PowerLoss):
    def per_sample(self, output, target):
        return super().per_sample(output, target) + 0 * torch.rand(())


@documented("power")
class Unchecked(PowerLoss):
    def __init__(self, power=2.0, *, reduction="mean"):
        super().__init__(2.0, reduction=reduction)
        self.power = power


class SlightlyOff(PowerLoss):
    """Is off by a millionth that hangs on the number of rows."""

    def per_sample(self, output, target):
        return super().per_sample(output, target) + 1e-6 / len(output)


class Breaking(PowerLoss):
    def per_sample(self, output, target):
        torch._dynamo.graph_break()
        return super().per_sample(output, target)


@documented()
class ChunkCounting(lw.Loss):
    """Divides by the rows that it sees."""

    kind = "classes"
    rowwise = True

    def per_sample(self, output, target):
        return CrossEntropyLoss(reduction="none")(output, target) / len(target)


@documented()
class HalfSoft(CrossEntropyLoss):
    """Counts class probabilities for half."""

    def per_sample(self, output, target):
        return super().per_sample(output, target) * (0.5 if target.is_floating_point() else 1)


class Reading(PowerWeights):
    reads_losses = False


class PerBatch(PowerWeights):
    """Says that its mean is 1 over the data set, and reads the batch."""

    couples_batch = False
    over_data_set = True


class Vector(WeightSum):
    def forward(self, model, *, features=None):
        return super().forward(model)[None]


class Twice(WeightSum):
    """Pays for every place of a weight."""

    def forward(self, model, *, features=None):
        places = [w for module in model.modules() for w in module.parameters(recurse=False)]
        if not places:
            raise ValueError("model must have weights")
        return self.strength * sum(w.square().sum() for w in places)


class Negative(WeightSum):
    def forward(self, model, *, features=None):
        return super().forward(model) - 1e-3


class Doubling(SmoothedObjective):
    """Answers in float64."""

    def forward(self, *given, **columns):
        return super().forward(*given, **columns).double()


class Frozen(SmoothedObjective):
    def _outputs(self, model, x, changed, target):
        output, price = super()._outputs(model, x, changed, target)
        return output.detach().requires_grad_() + 0 * output.detach(), price


class Averaging(SmoothedObjective):
    """Takes the mean of its micro-batches, however large they are."""

    def micro_batches(self, model, parts, process_group=None):
        parts = list(parts)
        for part in parts:
            columns = dict(part) if isinstance(part, dict) else dict(zip(("x", "target"), part, strict=True))
            yield self(model, **columns) / len(parts)


class Totalless(SmoothedObjective):
    def forward(self, *given, total=None, **columns):
        return super().forward(*given, **columns)


class RowWeightless(SmoothedObjective):
    def forward(self, *given, row_weights=None, **columns):
        return super().forward(*given, **columns)


class Unchained(Tempered):
    def fit(self, logits, target):
        super().fit(logits, target)
        return Tempered()


class FirstRows(Tempered):
    """Is fitted to the first half of the rows."""

    def fit(self, logits, target):
        return super().fit(logits[: len(logits) // 2], target[: len(logits) // 2])


class Harmful(Tempered):
    def forward(self, logits):
        return 9 * logits


class Stacked(Tempered):
    """Gives two logits where one was given."""

    def forward(self, logits):
        return torch.stack([0 * logits, logits], dim=1) if logits.ndim == 1 else super().forward(logits)


class Widening(Tempered):
    def forward(self, logits):
        return super().forward(logits).double()


class Missing(SmallHalf):
    def __call__(self, losses):
        return super().__call__(losses)[:-1]


class Changing(SmallHalf):
    def __call__(self, losses):
        return super().__call__(losses.add_(1))


class Several(SmallHalf):
    """Has no answer to a single row."""

    def __call__(self, losses):
        if len(losses) < 2:
            raise RuntimeError("too few")
        return super().__call__(losses)


class Narrow(Scaled):
    def forward(self, x):
        return super().forward(x).float()


class AlwaysDrawing(Scaled):
    stochastic = True

    def forward(self, x):
        return super().forward(x) + torch.rand(())


class InPlace(Scaled):
    def forward(self, x):
        return x.mul_(2)


@cite(helps=("calibration",))
def unshaped(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, ""]:
    """The mean of scores of any shape, though it says one.

    >>> unshaped(torch.tensor([1.0, 3.0]))
    tensor(2.)
    """
    if not isinstance(scores, torch.Tensor) or not scores.is_floating_point():
        raise TypeError("scores must be floats")
    return scores.mean()


@cite(helps=("calibration",))
def unnumbered(scores: Float[torch.Tensor, " n"], power: float = 2.0) -> Float[torch.Tensor, " n"]:
    """Scores to a power, which may be NaN.

    >>> unnumbered(torch.tensor([1.0, 2.0]))
    tensor([1., 4.])
    """
    return scores**power


BROKEN = [
    (Undocumented(), "documented"),
    (Chatty(), "quiet"),
    (Moody(), "repeatable"),
    (Uncopied(), "copies_the_same"),
    (Remembering(), "state_round_trip"),
    (Drawing(), "torch_generator_left_alone"),
    (Unchecked(), "hyperparameters_checked"),
    (Breaking(), "compiles"),
    (SlightlyOff(), "split_exact"),
    (ChunkCounting(), "chunks_exact"),
    (HalfSoft(), "soft_targets_agree"),
    (Reading(), "reads_no_losses"),
    (PerBatch(), "over_the_data_set"),
    (Vector(), "scalar"),
    (Twice(), "tied_weights_count_once"),
    (Negative(), "never_negative"),
    (Doubling(), "dtype_kept"),
    (Frozen(), "gradient_reaches_the_weights"),
    (Averaging(), "micro_batches_add_up"),
    (Totalless(), "total_adds_up"),
    (RowWeightless(), "row_weights_count"),
    (Unchained(), "fit_returns_itself"),
    (FirstRows(), "fits_any_order"),
    (Harmful(), "helps_what_it_was_fitted_to"),
    (Stacked(), "one_logit"),
    (Widening(), "dtype_kept"),
    (Missing(), "answers_each_row"),
    (Changing(), "input_left_alone"),
    (Several(), "one_row"),
    (Narrow(), "dtype_kept"),
    (AlwaysDrawing(), "eval_is_fixed"),
    (InPlace(), "input_left_alone"),
    (unshaped, "names_a_bad_shape"),
    (unnumbered, "names_a_bad_number"),
]
LEFT = {
    "spatial_rows": "the base class of losses flattens the places",
    "gradient_stays_out": "the objective detaches the weights",
    "refuses_a_weighting": "a batch loss that takes a weighting cannot be built into an objective",
    "found_by_pickle": "driven in test_strangers.py by a function inside another",
    "price_of_nothing_is_nothing": "the role of a consistency is the library's own",
    "features_are_passed": "the objective that passes them is the library's own",
    "sharded_weights_count_once": "driven over processes in tests/penalties",
    "reduction_none": "the base class of objectives reduces",
    "refuses_rows": "the base class of objectives refuses",
    "written_out": "driven in test_strangers.py by another update",
}


@pytest.mark.parametrize(("part", "check"), BROKEN, ids=[f"{subject_of(part).name}-{check}" for part, check in BROKEN])
def test_a_broken_part_fails_the_check_for_its_fault(part, check):
    subject = subject_of(part)
    with pytest.raises(AssertionError, match=rf"^{check}\({subject.name}\)"):
        run_check(subject, check, row_of(subject.part).checks[check])


def test_no_check_is_without_a_part_that_it_catches():
    caught = {check for _, check in [*BROKEN, *test_broken.BROKEN]} | {check for _, check, _ in test_strangers.BROKEN}
    # The checks of optimizers are driven by the wrappers' own faults, in tests/optim.
    checks = {check for row in CONTRACT if row.role != "optimizer" for check in row.checks}
    assert checks - caught - set(LEFT) == set()


def test_what_they_are_made_of_passes():
    for base in (
        PowerLoss(),
        PowerWeights(),
        WeightSum(),
        SmoothedObjective(),
        Tempered(),
        SmallHalf(),
        Scaled(),
        Shift(),
    ):
        subject = subject_of(base)
        checks = row_of(subject.part).checks
        asked = {check for broken, check in BROKEN if isinstance(broken, type(base)) and check in checks}
        for check in asked:
            if checks[check].reason(subject) is None:
                assert run_check(subject, check, checks[check]) == "passed"


def test_a_difference_says_where_it_is():
    with pytest.raises(AssertionError, match=r"^called again other numbers come in \W*a\W*: "):
        same({"a": torch.ones(2), "b": torch.ones(1)}, {"a": torch.zeros(2), "b": torch.ones(1)}, "called again")
    with pytest.raises(AssertionError, match=r"^called again other numbers come: "):
        same(torch.ones(2), torch.zeros(2), "called again")
    subject = subject_of(test_broken.halved_in_float32)
    with pytest.raises(AssertionError, match=r"the answer is in torch\.float32"):
        run_check(subject, "precision_kept", row_of(subject.part).checks["precision_kept"])


def test_a_class_whose_calls_were_watched_has_its_own_methods_again():
    before = dict(vars(SmallHalf))
    documented_call(SmallHalf)
    assert dict(vars(SmallHalf)) == before
