"""For the checks of losses, weightings and perturbations one broken part each, that the check must not pass."""

import pytest
import torch
from jaxtyping import Float

from lossworks.losses import CrossEntropyLoss
from lossworks.roles import REAL, BatchLoss
from lossworks.testing.contract import row_of, run_check
from lossworks.testing.subjects import subject_of
from tests.testing.strangers import PowerLoss, PowerWeights, Shift


class CountingIgnored(CrossEntropyLoss):
    """Divides the mean by all rows, those that are to be ignored too."""

    def forward(self, output, target, *, total=None, **given):
        return super().forward(output, target, total=target.numel() if total is None else total, **given)


class LeavingNothing(CrossEntropyLoss):
    """Gives an ignored row the loss of class 0."""

    def rows(self, output, target, index=None):
        return super().rows(output, target.where(target != self.ignore_index, 0), index)


class ForgettingTotal(PowerLoss):
    def forward(self, output, target, *, total=None, **given):
        return super().forward(output, target, **given)


class ForgettingWeights(PowerLoss):
    def forward(self, output, target, *, sample_weight=None, **given):
        return super().forward(output, target, **given)


class DividingByRows(PowerLoss):
    """Divides the weighted sum by the number of rows and not by the sum of their weights."""

    def forward(self, output, target, *, total=None, **given):
        return super().forward(output, target, total=len(output) if total is None else total, **given)


class DetachedLoss(PowerLoss):
    def per_sample(self, output, target):
        return super().per_sample(output, target) * (1 + (output - target).detach().square())


class PlaceLoss(PowerLoss):
    def per_sample(self, output, target):
        return super().per_sample(output, target) * torch.arange(1, len(output) + 1)


class NumberLoss(CrossEntropyLoss):
    """Takes the classes' numbers for amounts."""

    def per_sample(self, output, target):
        return super().per_sample(output, target) * (1 + target)


class HalfPrecisionLoss(PowerLoss):
    """Computes in bfloat16 under autocast, and says the result in float32."""

    def per_sample(self, output, target):
        if not torch.is_autocast_enabled("cpu"):
            return super().per_sample(output, target)
        return super().per_sample(output.bfloat16(), target.bfloat16()).to(output.dtype)


class OverflowingLoss(PowerLoss):
    def per_sample(self, output, target):
        return (output - target).exp() - 1


class InfiniteSlopeLoss(PowerLoss):
    """Is finite everywhere, and has no slope at an output of 0."""

    def per_sample(self, output, target):
        return (output - target).square().clamp(max=1.0) + output.abs().sqrt().clamp(max=1.0)


class NotANumberLoss(PowerLoss):
    """The mean of no rows is 0 / 0."""

    def forward(self, output, target, *, total=None, **given):
        value = super().forward(output, target, total=total, **given)
        return value if len(output) else value * torch.nan


class UncheckedLoss(PowerLoss):
    def forward(self, output, target, *, sample_weight=None, index=None, total=None):
        each = self.per_sample(output, target.expand_as(output))
        return each if self.reduction == "none" else each.sum() if self.reduction == "sum" else each.mean()


class ReadingNumber(PowerLoss):
    """Refuses a hyperparameter that is a tensor in which gradients flow."""

    def per_sample(self, output, target):
        return ((output - target).square() + 1) ** (float(self.power) / 2 + isinstance(self.power, torch.Tensor)) - 1


class Branching(PowerLoss):
    """Takes a way that hangs on a value, which no graph and no ``vmap`` can follow."""

    def per_sample(self, output, target):
        return super().per_sample(output, target) * (2 if float(output.detach().sum()) > 0 else 1)


class Spread(BatchLoss):
    """The weighted mean of a batch's squared errors."""

    kind = REAL

    def forward(self, output, target, *, sample_weight=None):
        weight = torch.ones_like(output) if sample_weight is None else sample_weight
        return (weight * (output - target).square()).sum() / (weight.sum() if len(output) else 1)


class SpreadOfTheFirst(Spread):
    """Asks more of the row that comes first."""

    def forward(self, output, target, *, sample_weight=None):
        return super().forward(output, target, sample_weight=sample_weight) + (output[0] - target[0]).square()


class SpreadInOrder(Spread):
    """Takes the weights for those of rows in the order of their errors."""

    def forward(self, output, target, *, sample_weight=None):
        some = None if sample_weight is None else sample_weight[(output - target).argsort()]
        return super().forward(output, target, sample_weight=some)


class SummedSpread(Spread):
    """Does not divide by the weights' sum."""

    def forward(self, output, target, *, sample_weight=None):
        weight = torch.ones_like(output) if sample_weight is None else sample_weight
        return (weight * (output - target).square()).mean()


class NarrowSpread(Spread):
    def forward(self, output, target, *, sample_weight=None):
        return super().forward(output, target, sample_weight=sample_weight).float()


class RowSpread(Spread):
    def forward(self, output, target, *, sample_weight=None):
        return (output - target).square()


class InfiniteSpread(Spread):
    def forward(self, output, target, *, sample_weight=None):
        return super().forward(output, target, sample_weight=sample_weight) / 0


class NarrowShift(Shift):
    def forward(self, risk, x):
        return super().forward(risk, x).float()


class FlatShift(Shift):
    def forward(self, risk, x):
        return super().forward(risk, x).flatten(1)


class InfiniteShift(Shift):
    def forward(self, risk, x):
        return super().forward(risk, x) / 0


class ShiftWithGraph(Shift):
    def forward(self, risk, x):
        return super().forward(risk, x).requires_grad_()


class ShiftInPlace(Shift):
    def forward(self, risk, x):
        return x.add_(self.eps)


class TrainingShift(Shift):
    """Puts the model that it looks at into training mode."""

    def forward(self, risk, x):
        if isinstance(risk, torch.nn.Module):
            risk.train()
        return super().forward(risk, x)


class ClearingShift(Shift):
    """Throws the gradients away that the model has."""

    def forward(self, risk, x):
        if isinstance(risk, torch.nn.Module):
            risk.zero_grad()
        return super().forward(risk, x)


class LeavingGradients(Shift):
    """Leaves the gradients of its own pass in the model."""

    def forward(self, risk, x):
        with torch.enable_grad():
            value = risk(x.detach().requires_grad_()).sum()
        if isinstance(risk, torch.nn.Module):
            value.backward()
        return super().forward(risk, x)


class Helping(Shift):
    """Goes down the risk instead of up."""

    def forward(self, risk, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(risk(leaf).sum(), leaf)
        return x.detach() - self.eps * slope.sign()


class MeanShift(Shift):
    """Moves each row to the middle of its batch."""

    def forward(self, risk, x):
        return super().forward(risk, x) - self.eps * x.mean(dim=0)


class NeverEmpty(Shift):
    def forward(self, risk, x):
        return super().forward(risk, x) if len(x) else x.new_zeros((1, *x.shape[1:]))


class UncheckedShift(Shift):
    def forward(self, risk, x):
        return x + self.eps if isinstance(x, torch.Tensor) else x


class SummingWeights(PowerWeights):
    """Weights whose mean is not 1."""

    def forward(self, losses, **columns):
        return 2 * super().forward(losses, **columns)


def halved_in_float32(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """
    >>> halved_in_float32(torch.ones(2))
    tensor([0.5000, 0.5000])
    """
    return scores.float() / 2


def rounded_in_float64(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """
    >>> rounded_in_float64(torch.tensor([0.4, 0.6]))
    tensor([0.4000, 0.6000])
    """
    return scores.round() if scores.dtype == torch.float64 else scores


def noisy_without_a_word(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """
    >>> noisy_without_a_word(torch.zeros(2)).shape
    torch.Size([2])
    """
    return scores + torch.rand_like(scores)


def noisy(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """Scores with noise that is drawn anew.

    >>> noisy(torch.zeros(2)).shape
    torch.Size([2])
    """
    return scores + torch.rand_like(scores)


def with_a_root(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """
    >>> with_a_root(torch.tensor([0.0]))
    tensor([0.])
    """
    return scores.sqrt()


def of_nothing(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """
    >>> of_nothing(torch.tensor([1.0]))
    tensor([nan])
    """
    return scores * torch.nan


def doubled(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """
    >>> doubled(torch.tensor([1.0, 2.0]))
    tensor([1., 2., 1., 2.])
    """
    return torch.cat([scores, scores])


BROKEN = [
    (CountingIgnored(), "ignored_rows_do_not_count"),
    (LeavingNothing(), "ignored_rows_do_not_count"),
    (ForgettingTotal(), "reduction_consistent"),
    (ForgettingTotal(), "split_exact"),
    (ForgettingWeights(), "reduction_consistent"),
    (DividingByRows(), "reduction_consistent"),
    (DetachedLoss(), "gradcheck"),
    (PlaceLoss(), "permutation_equivariant"),
    (NumberLoss(), "class_permutation_equivariant"),
    (HalfPrecisionLoss(), "autocast_close"),
    (OverflowingLoss(), "finite_at_extremes"),
    (InfiniteSlopeLoss(), "finite_at_extremes"),
    (NotANumberLoss(), "empty_batch"),
    (UncheckedLoss(), "clear_errors"),
    (ReadingNumber(), "hyperparameters_may_be_tensors"),
    (Branching(), "vmaps"),
    (NarrowShift(), "same_shape_and_dtype"),
    (FlatShift(), "same_shape_and_dtype"),
    (InfiniteShift(), "same_shape_and_dtype"),
    (ShiftWithGraph(), "no_graph"),
    (ShiftInPlace(), "no_graph"),
    (TrainingShift(), "leaves_model_alone"),
    (ClearingShift(), "leaves_model_alone"),
    (LeavingGradients(), "leaves_model_alone"),
    (Helping(), "never_helps_the_model"),
    (MeanShift(), "rows_stand_alone"),
    (NeverEmpty(), "empty_batch"),
    (UncheckedShift(), "clear_errors"),
    (SummingWeights(), "mean_one"),
    (halved_in_float32, "precision_kept"),
    (rounded_in_float64, "precision_kept"),
    (noisy_without_a_word, "precision_kept"),
    (with_a_root, "finite_gradient"),
    (of_nothing, "no_nan"),
    (doubled, "shapes_as_annotated"),
    (SpreadOfTheFirst(), "order_of_rows_does_not_count"),
    (SpreadInOrder(), "order_of_rows_does_not_count"),
    (SummedSpread(), "sample_weights_are_relative"),
    (NarrowSpread(), "one_number"),
    (RowSpread(), "one_number"),
    (InfiniteSpread(), "one_number"),
]


@pytest.mark.parametrize(("part", "check"), BROKEN, ids=[f"{subject_of(part).name}-{check}" for part, check in BROKEN])
def test_a_broken_part_fails_the_check_for_its_fault(part, check):
    subject = subject_of(part)
    with pytest.raises(AssertionError, match=rf"^{check}\({subject.name}\)"):
        run_check(subject, check, row_of(subject.part).checks[check])


@pytest.mark.parametrize("part", [PowerLoss(), CrossEntropyLoss(), Spread(), PowerWeights(), Shift(), noisy])
def test_what_they_are_made_of_passes(part):
    subject = subject_of(part)
    checks = row_of(subject.part).checks
    made = [check for broken, check in BROKEN if isinstance(broken, type(part)) and check in checks]
    asked = {check for check in made if checks[check].reason(subject) is None}
    assert all(run_check(subject, check, checks[check]) == "passed" for check in asked)
