import pytest
import torch
from torch.testing import assert_close

from lossworks import Objective
from lossworks.losses import CrossEntropyLoss
from lossworks.weights import ClassBalanced, CompositionalEMA, GroupDRO, SampleWeights, UniformWeights

COUNTS = torch.tensor([60.0, 30.0, 10.0])


def weights_of(weighting, target):
    return weighting(torch.zeros(len(target)), target=target)


def test_inverse_frequency_gives_every_class_the_same_total():
    target = torch.repeat_interleave(torch.arange(3), COUNTS.long())
    weights = weights_of(ClassBalanced(COUNTS), target)
    totals = torch.zeros(3).index_add(0, target, weights)
    assert_close(totals, torch.full((3,), 100 / 3))


def test_effective_number_equals_the_geometric_series():
    beta = 0.9
    numbers = torch.tensor([sum(beta**i for i in range(int(n))) for n in COUNTS])
    weights = ClassBalanced(COUNTS, method="effective", beta=beta).class_weights()
    assert_close(weights / weights[0], numbers[0] / numbers)


def test_effective_number_runs_from_uniform_to_inverse_frequency():
    assert_close(ClassBalanced(COUNTS, method="effective", beta=0.0).class_weights(), torch.ones(3))
    near_one = ClassBalanced(COUNTS.double(), method="effective", beta=1 - 1e-9).class_weights()
    assert_close(near_one, ClassBalanced(COUNTS.double()).class_weights(), rtol=1e-6, atol=0)


def test_a_class_without_rows_is_harmless():
    weights = ClassBalanced(torch.tensor([3.0, 0.0, 1.0])).class_weights()
    assert weights[1] == 0
    assert bool(weights.isfinite().all())


def test_sample_weights_equal_repeated_rows(generator):
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    target, times = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 5])

    class Given(torch.nn.Module):
        def forward(self, x):
            return x

    objective = Objective(CrossEntropyLoss(), SampleWeights(times.double()))
    weighted = objective(Given(), logits, target, index=torch.arange(4))
    repeated = CrossEntropyLoss()(logits.repeat_interleave(times, 0), target.repeat_interleave(times))
    assert_close(weighted, repeated)


def test_uniform_weights_change_nothing(generator):
    logits, target = torch.randn(4, 3, generator=generator), torch.tensor([0, 1, 2, 0])
    assert_close(
        Objective(CrossEntropyLoss(), UniformWeights()).risk(logits, target), CrossEntropyLoss()(logits, target)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassBalanced(torch.tensor([1.0, -1.0])), "class_counts"),
        (lambda: ClassBalanced(COUNTS, beta=1.0), "beta"),
        (lambda: ClassBalanced(COUNTS, method="inverted"), "did you mean 'inverse'"),
        (lambda: SampleWeights(torch.zeros(3)), "sample_weights"),
        (lambda: weights_of(ClassBalanced(COUNTS), torch.tensor([3])), "target"),
        (lambda: ClassBalanced(COUNTS)(torch.zeros(2)), "target"),
        (lambda: SampleWeights(COUNTS)(torch.zeros(1), index=torch.tensor([7])), "index"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_is_remembered_follows_the_weightings_dtype_but_not_below_float32(dtype):
    losses, group = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 1, 1])
    for make in (lambda: GroupDRO(2, step_size=0.5), CompositionalEMA):
        exact, given = make(), make().to(dtype)
        for _ in range(2):
            wanted, found = exact(losses, group=group), given(losses, group=group)
        (memory,), (its_own,) = exact.buffers(), given.buffers()
        assert its_own.dtype == (memory.dtype if dtype == torch.float16 else dtype)
        assert_close(its_own.double(), memory, rtol=2e-3, atol=2e-3)
        assert_close(found, wanted, rtol=2e-3, atol=2e-3)
