import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import lossworks as lw
from lossworks.losses import TrajectoryLoss, trajectory_divergence

N, C = 6, 4


def epochs(generator, number, scale=3.0):
    return scale * torch.randn(number, N, C, generator=generator, dtype=torch.float64)


@pytest.fixture
def target(generator):
    return torch.randint(C, (N,), generator=generator)


def in_double(loss):
    """The memory as exact as the outputs, so that tests needn't allow for it."""
    return loss.double()


def test_is_the_papers_ring_of_epochs_worked_through_with_scipy(generator, target):
    lag, lam, tau = 2, 0.7, 5.0
    loss = in_double(TrajectoryLoss(N, C, lam, tau, lag, reduction="none"))
    ring = np.zeros((N, lag + 1, C))
    for epoch, z in enumerate(epochs(generator, 7)):
        found = torch.empty(N, dtype=torch.float64)
        for rows in torch.randperm(N, generator=generator).split(4):
            found[rows] = loss(z[rows], target[rows], index=rows)
        ring[:, epoch % (lag + 1)] = z
        expected = -log_softmax(z.numpy(), axis=1)[np.arange(N), target]
        if epoch >= lag:
            past = softmax(ring[:, (epoch - lag) % (lag + 1)] / tau, axis=1)
            expected = expected + lam * tau**2 * rel_entr(past, softmax(z.numpy() / tau, axis=1)).sum(axis=1)
        assert_close(found, torch.from_numpy(expected))


def test_the_gradient_is_its_closed_form_and_none_goes_to_the_past(generator, target):
    before, z = epochs(generator, 2)
    loss = in_double(TrajectoryLoss(N, C, 0.4, 3.0, 1, reduction="sum"))
    leaf, index = before.clone().requires_grad_(), torch.arange(N)
    loss(leaf, target, index=index)
    now = z.clone().requires_grad_()
    loss(now, target, index=index).backward()
    expected = z.softmax(1) - torch.eye(C)[target] + 0.4 * 3.0 * ((z / 3).softmax(1) - (before / 3).softmax(1))
    assert_close(now.grad, expected)
    assert leaf.grad is None
    assert torch.autograd.gradcheck(lambda out: trajectory_divergence(out, before, 2.0), now)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_fused_form_is_the_plain_one_and_remembers_the_same(generator, target, reduction, twice):
    weight = torch.randn(C, 3, generator=generator, dtype=torch.float64).requires_grad_()
    plain, fused = (in_double(TrajectoryLoss(N, C, 0.7, 1.3, 1)) for _ in range(2))
    for step in range(4):
        hidden = torch.randn(N, 3, generator=generator, dtype=torch.float64).requires_grad_()
        index, target_ = torch.randperm(N, generator=generator), target.clone()
        index[-1 - step] = index[0] if twice else -1
        target_[step] = -100
        upstream = torch.rand(() if reduction == "mean" else N, generator=generator, dtype=torch.float64)
        plain.reduction = reduction
        expected = plain(hidden @ weight.T, target_, index=index)
        found = lw.fused.linear_loss(hidden, weight, target_, fused, index=index, reduction=reduction, chunk=2)
        assert_close(found, expected)
        wanted = torch.autograd.grad(expected, (hidden, weight), upstream)
        for _ in range(2):
            gradients = torch.autograd.grad(found, (hidden, weight), upstream, retain_graph=True)
            assert_close(gradients, wanted, rtol=1e-12, atol=1e-12)
        assert_close(fused.history, plain.history)
        assert torch.equal(fused.visits, plain.visits)
    assert bool((fused.visits >= 2).any())


def test_a_second_reading_after_the_rows_next_visit_is_refused(generator, target):
    loss, index = in_double(TrajectoryLoss(N, C, lag_epochs=1)), torch.arange(N)
    hidden, weight = torch.randn(N, 3, dtype=torch.float64).requires_grad_(), torch.randn(C, 3, dtype=torch.float64)
    values = [lw.fused.linear_loss(hidden, weight, target, loss, index=index, reduction="none").sum() for _ in range(3)]
    values[0].backward()
    values[2].backward()
    with pytest.raises(RuntimeError, match="seen these rows again since"):
        values[1].backward()


def test_outputs_that_are_no_numbers_are_no_visit(generator, target):
    loss = in_double(TrajectoryLoss(N, C, lag_epochs=1))
    (z,) = epochs(generator, 1)
    z[1, 2], z[2, 3] = torch.inf, -torch.inf
    loss(z, target, index=torch.arange(N))
    assert loss.visits.tolist() == [1, 0, 1, 1, 1, 1]
    assert bool(loss.history.isfinite().all())
    assert loss.history.view(N, 2, C)[:, 0].any(dim=1).tolist() == [True, False, True, True, True, True]


@pytest.mark.parametrize("index", [torch.arange(N), torch.tensor([0, 1, 2, 1, 3, 4])])
def test_a_call_that_is_refused_is_no_visit(generator, target, index):
    loss = in_double(TrajectoryLoss(N, C, lag_epochs=1))
    before, z = epochs(generator, 2)
    loss(before, target, index=torch.arange(N))
    held = copy.deepcopy(loss.state_dict())
    with pytest.raises(ValueError, match="sample_weight must be finite"):
        loss(z, target, index=index, sample_weight=-torch.ones(N))
    z[3, 1] = torch.nan
    with pytest.raises(ValueError, match="output has NaN in row 3"):
        loss(z, target, index=index)
    assert_close(loss.state_dict(), held, rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_class_that_is_out_of_the_question_adds_nothing(generator, target, fused):
    weight = torch.randn(C, 3, generator=generator, dtype=torch.float64)
    loss, without = (in_double(TrajectoryLoss(N, classes, lag_epochs=1)) for classes in (C, C - 1))
    bias, kept = torch.tensor([0, 0, 0, -torch.inf], dtype=torch.float64), target.clamp(max=C - 2)
    for _ in range(3):
        hidden = torch.randn(N, 3, generator=generator, dtype=torch.float64).requires_grad_()
        if fused:
            value = lw.fused.linear_loss(hidden, weight, kept, loss, bias=bias, index=torch.arange(N))
        else:
            value = loss(hidden @ weight.T + bias, kept, index=torch.arange(N))
        expected = without(hidden @ weight[:-1].T, kept, index=torch.arange(N))
        assert_close(value, expected)
        assert_close(torch.autograd.grad(value, hidden), torch.autograd.grad(expected, hidden))


def test_digits_are_kept_where_logits_share_an_offset(generator, target):
    now, past = epochs(generator, 2)
    single = TrajectoryLoss(N, C, lag_epochs=1)
    single(past.float(), target, index=torch.arange(N))
    expected = cross_entropy(now, target, reduction="none") + 0.3 * trajectory_divergence(now, past)
    shifted = (now + 1024).float()
    exact = shifted.double() - 1024  # what is left of the logits beside their offset
    expected = cross_entropy(exact, target, reduction="none") + 0.3 * trajectory_divergence(exact, past)
    memory = single.eval().recall(shifted, target, torch.arange(N))
    value, _ = single.closed_form(C).value_and_gradient(shifted, target, memory)
    assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_memory_of_more_digits_than_the_outputs_is_written(generator, target):
    loss = in_double(TrajectoryLoss(N, C, lag_epochs=1))
    for z in epochs(generator, 3):
        value = loss(z.float(), target, index=torch.arange(N))
    assert value.dtype == torch.float32
    assert bool(value.isfinite())


def test_a_copy_of_a_row_that_is_no_number_does_not_make_the_other_stale(generator, target):
    loss, index = in_double(TrajectoryLoss(N, C, lag_epochs=1)), torch.zeros(N, dtype=torch.int64)
    first, second = epochs(generator, 2)
    loss(first, target, index=index)
    second[1, 0] = torch.inf
    with lw.checks(False):
        loss(second, target, index=index)
    assert loss.visits.tolist() == [2] + [0] * (N - 1)


def test_an_output_that_stays_is_free(generator, target):
    (z,) = epochs(generator, 1)
    loss = in_double(TrajectoryLoss(N, C, lag_epochs=1))
    for shift in (0.0, 7.0):
        leaf = (z + shift).requires_grad_()
        value = loss(leaf, target, index=torch.arange(N))
        assert_close(value, cross_entropy(z, target))
        assert_close(*torch.autograd.grad(value, leaf), (z.softmax(1) - torch.eye(C)[target]) / N)


def test_is_never_below_zero_and_shifts_change_nothing(generator):
    now, past = epochs(generator, 2, scale=30)
    found = trajectory_divergence(now, past)
    assert bool((found > 0).all())
    assert_close(trajectory_divergence(now + 50, past - 20), found)


def test_goes_to_half_the_mean_squared_distance_of_centred_logits(generator):
    now, past = epochs(generator, 2)
    gap = now - past
    centred = gap - gap.mean(dim=1, keepdim=True)
    assert_close(trajectory_divergence(now, past, 1e5), centred.square().mean(dim=1) / 2, rtol=1e-4, atol=1e-6)


def test_the_price_counts_between_start_and_end(generator, target):
    before, z = epochs(generator, 2)
    index = torch.arange(N)
    loss = in_double(TrajectoryLoss(N, C, lag_epochs=1, start=0.2, end=0.7))
    for _ in range(2):
        loss(before, target, index=index)
    loss.eval()
    plain = cross_entropy(z, target)
    for fraction, counts in ((0.0, False), (0.2, False), (0.21, True), (0.7, True), (0.71, False), (1.0, False)):
        loss.set_progress(fraction)
        value = loss(z, target, index=index)
        assert bool(value > plain + 1e-3) is counts
        assert counts or torch.equal(value, plain)


def test_a_row_has_no_price_before_it_was_seen_lag_times(generator, target):
    loss = in_double(TrajectoryLoss(N, C, lag_epochs=2, reduction="none"))
    seen = torch.zeros(N, dtype=torch.int64)
    for z in epochs(generator, 6):
        rows = torch.randperm(N, generator=generator)[:4]
        found = loss(z[rows], target[rows], index=rows)
        plain = cross_entropy(z[rows], target[rows], reduction="none")
        assert torch.equal(found > plain + 1e-9, seen[rows] >= 2)
        seen[rows] += 1


def test_rows_without_a_number_and_ignored_rows_are_not_remembered(generator, target):
    loss = TrajectoryLoss(N, C, lag_epochs=1)
    target[2] = -100
    index = torch.arange(N)
    index[1] = -1
    before, z = epochs(generator, 2)
    loss(before, target, index=index)
    seen = [1, 0, 0] + [1] * (N - 3)
    assert loss.visits.tolist() == seen
    assert loss.history.view(N, 2, C).any(dim=2).int().tolist() == [[visited, 0] for visited in seen]
    each = copy.deepcopy(loss)
    each.reduction = "none"
    assert_close(each(z, target, index=index)[1], cross_entropy(z[1], target[1]))


def test_a_row_that_comes_twice_counts_as_one_visit_with_the_mean_of_both(generator, target):
    before, z = epochs(generator, 2)
    twice, once = (in_double(TrajectoryLoss(N, C, lag_epochs=1)) for _ in range(2))
    index = torch.arange(N)
    index[5] = 0
    twice(before, target, index=index)
    centred = before - before.amax(dim=1, keepdim=True)
    mixed = centred.clone()
    mixed[0] = (centred[0] + centred[5]) / 2
    once(mixed[:5], target[:5], index=index[:5])
    assert_close(twice(z[:5], target[:5], index=index[:5]), once(z[:5], target[:5], index=index[:5]))


def test_evaluation_reads_the_rows_own_past_and_changes_nothing(generator, target):
    loss, index = in_double(TrajectoryLoss(N, C, lag_epochs=1)), torch.arange(N)
    first, second, z = epochs(generator, 3)
    loss(first, target, index=index)
    loss(second, target, index=index)
    kept = loss.history.clone()
    expected = cross_entropy(z, target) + 0.3 * trajectory_divergence(z, second).mean()
    assert_close(loss.eval()(z, target, index=index), expected)
    assert torch.equal(loss.history, kept)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_the_memory_is_nearly_as_good(generator, target, dtype, off):
    small = TrajectoryLoss(N, C, lag_epochs=1, storage_dtype=dtype)
    exact = in_double(TrajectoryLoss(N, C, lag_epochs=1))
    assert small.history.nbytes == N * 2 * C * 2
    index = torch.arange(N)
    for z in epochs(generator, 3):
        assert_close(small(z, target, index=index), exact(z, target, index=index), rtol=off, atol=0)
    small(1e6 * z, target, index=index)
    wanted = (1e6 * (z - z.amax(dim=1, keepdim=True))).clamp(min=torch.finfo(dtype).min).to(dtype)
    assert_close(small.history.view(N, 2, C)[:, 1], wanted)
    assert bool(small(z, target, index=index).isfinite())


def test_trains_the_same_inside_an_objective_and_in_a_plain_loop(generator, target):
    x = torch.randn(N, 3, generator=generator)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, C)
    twin = copy.deepcopy(model)
    alone, inside = TrajectoryLoss(N, C, lag_epochs=1), lw.Objective(TrajectoryLoss(N, C, lag_epochs=1))
    for trained, value in (
        (model, lambda rows: alone(model(x[rows]), target[rows], index=rows)),
        (twin, lambda rows: inside(twin, x[rows], target[rows], index=rows)),
    ):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
        for _ in range(4):
            for rows in torch.arange(N).split(4):
                optimizer.zero_grad()
                value(rows).backward()
                optimizer.step()
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(alone.history, inside.loss.history)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"num_classes": 1}, "num_classes"),
        ({"lam": -1.0}, "lam"),
        ({"tau": 0.0}, "tau"),
        ({"lag_epochs": 0}, "lag_epochs"),
        ({"start": 1.0}, "start"),
        ({"end": 0.0}, "end"),
        ({"start": 0.5, "end": 0.5}, "end must be above start"),
        ({"storage_dtype": torch.int64}, "storage_dtype"),
        ({"storage_dtype": np.arange(3)}, "storage_dtype"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TrajectoryLoss(**({"num_samples": N, "num_classes": C} | options))


def test_a_temperature_whose_square_is_no_number_leaves_no_distance():
    now = torch.eye(2, dtype=torch.float64)
    assert trajectory_divergence(now, 1 - now, tau=1.5e154).tolist() == [0, 0]


def test_bad_batches_are_named(target):
    loss = TrajectoryLoss(N, C)
    with pytest.raises(ValueError, match=r"output must have shape \(n, 4\)"):
        loss(torch.zeros(N, 5), target, index=torch.arange(N))
    with pytest.raises(ValueError, match=r"index must be in \[0, 6\)"):
        loss(torch.zeros(N, C), target, index=torch.arange(N) + 1)
    with pytest.raises(ValueError, match="past must have the shape of output"):
        trajectory_divergence(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"output must have shape \(n, C\)"):
        trajectory_divergence(torch.zeros(3), torch.zeros(3))
