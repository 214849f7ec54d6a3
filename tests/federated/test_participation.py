import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossworks.federated import ParticipationWeights, fedau_aggregate


def intervals_by_hand(history, cutoff):
    """Each round's weights of one client, by its list of intervals."""
    found, intervals, since = [], [], 0
    for there in history:
        found.append((np.mean(intervals) if intervals else 1.0) if there else 0.0)
        since += 1
        if there or since >= cutoff:
            intervals.append(since)
            since = 0
    return found


@pytest.mark.parametrize("cutoff", [1, 2, 3, 7, 1000])
def test_equals_the_mean_of_a_list_of_intervals(cutoff, generator):
    present = torch.rand(200, 5, generator=generator) < torch.tensor([0.02, 0.1, 0.3, 0.9, 1.0])
    weights = ParticipationWeights(5, cutoff)
    found = torch.stack([weights(there) for there in present])
    expected = [intervals_by_hand(column.tolist(), cutoff) for column in present.T]
    assert_close(found, torch.tensor(expected, dtype=torch.float64).T)
    taken = found[present]
    assert bool(((taken >= 1) & (taken <= cutoff)).all())


def test_who_is_always_there_has_weight_one():
    weights = ParticipationWeights(2)
    assert all(weights(torch.ones(2, dtype=torch.bool)).tolist() == [1, 1] for _ in range(5))


def test_a_period_is_the_weight_from_its_first_interval_on():
    weights = ParticipationWeights(1, cutoff=4)
    found = [float(weights(torch.tensor([t % 4 == 3]))) for t in range(12)]
    assert [value for value in found if value] == [1, 4, 4]


@pytest.mark.parametrize("cutoff", [5, 10_000])
def test_tends_to_one_over_the_probability_less_what_the_cut_takes(cutoff, generator):
    p, clients = 0.2, 4000
    weights = ParticipationWeights(clients, cutoff)
    for _ in range(400):
        weights(torch.rand(clients, generator=generator) < p)
    last = weights(torch.ones(clients, dtype=torch.bool))
    assert abs(float(last.mean()) - (1 - (1 - p) ** cutoff) / p) < 0.02 * cutoff**0.25


def test_goes_on_from_its_state(generator):
    present = torch.rand(20, 3, generator=generator) < 0.4
    whole, first, second = (ParticipationWeights(3, 4) for _ in range(3))
    expected = [whole(there) for there in present]
    for there in present[:11]:
        first(there)
    second.load_state_dict(first.state_dict())
    assert_close(torch.stack([second(there) for there in present[11:]]), torch.stack(expected[11:]))


def test_the_aggregate_is_the_weighted_sum_over_all_clients(generator):
    updates = torch.randn(4, 3, generator=generator)
    weights = torch.tensor([1.0, 0.0, 2.5, 1.0])
    updates[1] = torch.nan
    expected = (updates[0] + 2.5 * updates[2] + updates[3]) / 4
    assert_close(fedau_aggregate(updates, weights), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParticipationWeights(0), "num_clients"),
        (lambda: ParticipationWeights(2**31), "num_clients"),
        (lambda: ParticipationWeights(2, 0), "cutoff"),
        (lambda: ParticipationWeights(2)(torch.ones(2)), "present must be bool"),
        (lambda: ParticipationWeights(2)(torch.ones(3, dtype=torch.bool)), r"present must have shape \(2,\)"),
        (lambda: fedau_aggregate(torch.ones(2), torch.ones(2)), r"updates must have shape \(N, size\)"),
        (lambda: fedau_aggregate(torch.ones(2, 1), torch.ones(3)), r"weights must have shape \(2,\)"),
        (lambda: fedau_aggregate(torch.ones(2, 1), torch.tensor([1.0, -1.0])), "weights must be finite"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
