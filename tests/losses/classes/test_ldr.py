import math

import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp, rel_entr
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import AdaptiveLDRLoss, LDRLoss, ldr_label_weights, normalize_scores


@pytest.fixture
def batch(generator):
    return torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(5, (32,), generator=generator)


def differences(logits, target, margin):
    """d, by its definition, row by row."""
    return torch.stack(
        [z - z[y] + margin * (torch.arange(len(z)) != y).to(z.dtype) for z, y in zip(logits, target, strict=True)]
    )


def test_lam_one_without_margin_is_cross_entropy_less_log_classes(batch):
    logits, target = batch
    assert_close(LDRLoss(1.0, 0.0)(logits, target), cross_entropy(logits, target) - math.log(5))


def test_vanishing_lam_is_crammer_singer(batch):
    logits, target = batch
    hinge = differences(logits, target, 0.5).max(dim=1).values  # the target's own difference is 0
    assert_close(LDRLoss(1e-9, 0.5, reduction="none")(logits, target), hinge, atol=1e-6, rtol=0)


def test_infinite_lam_is_the_mean_margin(batch):
    logits, target = batch
    mean = differences(logits, target, 0.5).mean(dim=1)
    assert_close(LDRLoss(1e7, 0.5, reduction="none")(logits, target), mean, atol=1e-6, rtol=0)


def test_infinite_lam_is_symmetric_over_labels(batch):
    logits, _ = batch
    over_labels = sum(LDRLoss(1e9, 0.1, reduction="none")(logits, torch.full((32,), k)) for k in range(5))
    assert_close(over_labels, torch.full((32,), 0.1 * 4, dtype=torch.float64), atol=1e-5, rtol=0)


def worst_case(logits, target, lam, margin):
    d = differences(logits, target, margin)[0].numpy()

    def negative_value(q):
        return lam * rel_entr(q, 0.2).sum() - q @ d

    on_simplex = {"type": "eq", "fun": lambda q: q.sum() - 1}
    return minimize(negative_value, x0=[0.2] * 5, bounds=[(0, 1)] * 5, constraints=on_simplex, tol=1e-12)


def test_value_and_label_weights_are_the_worst_case_found_by_a_solver(batch):
    logits, target = (some[:1] for some in batch)
    worst = worst_case(logits, target, 0.7, 0.3)
    assert_close(LDRLoss(0.7, 0.3)(logits, target).item(), -worst.fun, atol=1e-6, rtol=0)
    weights = ldr_label_weights(logits, target, 0.7, 0.3)
    assert_close(weights[0], torch.from_numpy(worst.x), atol=1e-4, rtol=0)


def test_never_grows_with_lam(batch):
    logits, target = batch
    values = torch.stack([LDRLoss(lam, reduction="none")(logits, target) for lam in (0.1, 0.5, 1.0, 3.0, 10.0)])
    assert (values.diff(dim=0) <= 1e-12).all()


def test_gradient_is_label_weights_less_the_label(batch):
    logits, target = batch
    logits.requires_grad_()
    LDRLoss(0.7, 0.3, reduction="sum")(logits, target).backward()
    label = torch.eye(5, dtype=torch.float64)[target]
    assert_close(logits.grad, ldr_label_weights(logits, target, 0.7, 0.3) - label)


def test_stacked_margins_alone_equal_the_loop(batch):
    logits, target = batch
    margins = torch.tensor([0.0, 0.1, 2.0], dtype=torch.float64)
    loop = torch.stack([LDRLoss(0.7, margin)(logits, target) for margin in margins])
    template = LDRLoss(0.7, margins[0])
    assert_close(vmap(lambda margin: functional_call(template, {"margin": margin}, (logits, target)))(margins), loop)


@pytest.mark.parametrize("normalize", ["l1_mean", "softplus_mean"])
def test_normalized_scores_have_mean_size_one(batch, normalize):
    logits, target = batch
    scores = normalize_scores(logits, normalize)
    assert_close(scores.abs().mean(dim=1), torch.ones(32, dtype=torch.float64))
    assert_close(LDRLoss(10.0, normalize=normalize)(logits, target), LDRLoss(10.0)(scores, target))


def test_l1_normalization_removes_the_scale(batch):
    logits, target = batch
    loss = LDRLoss(10.0, normalize="l1_mean", reduction="none")
    assert_close(loss(100 * logits, target), loss(logits, target))


def test_prediction_is_the_label_distribution_where_the_loss_is_least(generator):
    truth = torch.rand(4, dtype=torch.float64, generator=generator).softmax(0)
    loss = LDRLoss(3.0, margin=0.0, reduction="none")
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=100, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def expected():
        optimizer.zero_grad()
        risk = truth @ loss(logits.expand(4, 4), torch.arange(4))
        risk.backward()
        return risk

    optimizer.step(expected)
    assert_close(loss.predict(logits)[0], truth, atol=1e-6, rtol=0)


def test_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match="normalize must be one of 'softplus_mean', 'l1_mean', got 'l1'"):
        LDRLoss(normalize="l1")


def reference_step(z, y, lam, lam0, alpha, margin):
    """One row of the authors' update, spelled out; returns the loss and the row's new lam."""
    k = len(z)
    z = z / z.abs().mean()
    q = (z / lam).exp() / (z / lam).exp().sum() + 1e-5
    q = q / q.sum()
    lam = lam0 - lam0 * float((q * (k * q).log()).sum()) / (alpha * math.log(k))
    d = z - z[y] + margin * (torch.arange(k) != y)
    return lam * (d / lam).exp().mean().log() - alpha * math.log(k) / (2 * lam0) * (lam - lam0) ** 2, lam


def test_one_step_equals_the_update_spelled_out_over_two_visits(batch):
    logits, target = batch
    loss = AdaptiveLDRLoss(100, lam0=2.0, alpha=1.5, margin=0.2, reduction="none").double()
    index, lam = torch.arange(60, 92), [2.0] * 32
    for scale in (1.0, -3.0):
        losses = loss(scale * logits + scale, target, index=index)
        for row in range(32):
            z = scale * logits[row] + scale
            wanted, lam[row] = reference_step(z, int(target[row]), lam[row], 2.0, 1.5, 0.2)
            assert_close(losses[row], wanted)
    assert_close(loss.lam[60:92], torch.tensor(lam, dtype=torch.float64))
    assert (loss.lam[:60] == 2).all()


def test_exact_is_the_best_lam_found_by_scipy(batch):
    logits, target = batch
    lam0, alpha = 1.0, 2.0
    loss = AdaptiveLDRLoss(32, lam0, alpha, normalize=None, mode="exact", reduction="none").double()
    losses = loss(3 * logits, target, index=torch.arange(32))

    def negative_value(lam, d):
        value = lam * (logsumexp(d / lam) - math.log(5))
        return -(value - alpha * math.log(5) / (2 * lam0) * (lam - lam0) ** 2)

    for row, d in enumerate(differences(3 * logits, target, 0.1)[:8].numpy()):
        grid = torch.linspace(lam0 * (1 - 1 / alpha), lam0, 51, dtype=torch.float64).tolist()
        start = min(grid, key=lambda lam: negative_value(lam, d))
        bounds = (max(start - 0.02, grid[0]), min(start + 0.02, grid[-1]))
        best = minimize_scalar(negative_value, args=(d,), bounds=bounds, method="bounded", options={"xatol": 1e-9})
        assert_close(losses[row].item(), max(-best.fun, -negative_value(start, d)), atol=1e-8, rtol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_the_exact_lam_is_exact_to_the_last_digits_whatever_the_model_rounds(generator, scale):
    """Where it is inside its interval, the entropy of the softmax at lam says lam itself."""
    logits = scale * torch.randn(200, 5, dtype=torch.float64, generator=generator)
    target, index, lam0, alpha = torch.randint(5, (200,), generator=generator), torch.arange(200), 1.0, 2.0
    found = []
    for nudge in (0.0, 1e-15, -1e-15):
        loss = AdaptiveLDRLoss(200, lam0, alpha, normalize=None, mode="exact").double()
        loss(logits * (1 + nudge), target, index=index)
        found.append(loss.lam)
        assert_close(found[-1], found[0], rtol=0, atol=1e-12)
    p = (differences(logits, target, 0.1) / found[0][:, None]).softmax(dim=1)
    wanted = lam0 * (1 - (math.log(5) + torch.special.xlogy(p, p).sum(dim=1)) / (alpha * math.log(5)))
    inside = (found[0] > lam0 * (1 - 1 / alpha) + 1e-9) & (found[0] < lam0 - 1e-9)
    assert inside.any() or scale == 100
    assert_close(found[0][inside], wanted[inside], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["one_step", "exact"])
def test_lam_stays_in_its_interval(generator, mode):
    loss = AdaptiveLDRLoss(16, lam0=0.5, alpha=1.25, mode=mode)
    for scale in (0.0, 1.0, 1e4):
        logits = scale * torch.randn(16, 7, generator=generator)
        loss(logits, torch.randint(7, (16,), generator=generator), index=torch.arange(16))
        assert (loss.lam >= 0.5 * (1 - 1 / 1.25) - 1e-6).all()
        assert (loss.lam <= 0.5 + 1e-6).all()


def test_a_confident_row_gets_a_smaller_lam_than_a_doubtful_one():
    loss = AdaptiveLDRLoss(2, lam0=1.0)
    loss(torch.tensor([[9.0, 0.0, 0.0], [1.0, 1.1, 0.9]]), torch.zeros(2, dtype=torch.int64), index=torch.arange(2))
    assert loss.lam[0] < loss.lam[1]


def test_evaluation_uses_the_remembered_lam_and_changes_none(batch):
    logits, target = batch
    loss = AdaptiveLDRLoss(32, lam0=2.0, normalize=None, reduction="none").double()
    loss(logits, target, index=torch.arange(32))
    remembered = loss.lam.clone()
    losses = loss.eval()(5 * logits, target, index=torch.arange(32))
    assert_close(loss.lam, remembered, atol=0, rtol=0)
    penalty = 2 * math.log(5) / (2 * 2.0) * (remembered - 2) ** 2
    each = [LDRLoss(float(lam))(5 * z[None], y[None]) for lam, z, y in zip(remembered, logits, target, strict=True)]
    assert_close(losses, torch.stack(each) - penalty)


def test_a_row_twice_in_a_batch_keeps_the_smaller_lam_in_any_order(batch):
    logits, target = batch
    alone = AdaptiveLDRLoss(32, lam0=1.0)
    alone(logits, target, index=torch.arange(32))
    for order in (torch.arange(32), torch.arange(32).flip(0)):
        twice = AdaptiveLDRLoss(32, lam0=1.0)
        twice(logits[order], target[order], index=torch.arange(32)[order] // 2)
        assert_close(twice.lam[:16], alone.lam.reshape(16, 2).min(dim=1).values, atol=0, rtol=0)


def test_ignored_rows_and_nan_rows_are_not_remembered(batch):
    logits, target = batch
    loss, index = AdaptiveLDRLoss(32, lam0=1.0), torch.arange(32)
    kept = index % 2 == 0
    loss(logits, torch.where(kept, target, -100), index=torch.where(kept, index, 0))  # padding that points at row 0
    alone = AdaptiveLDRLoss(32, lam0=1.0)
    alone(logits[kept], target[kept], index=index[kept])
    assert_close(loss.lam, alone.lam, atol=0, rtol=0)
    with pytest.raises(ValueError, match="output has NaN in row 0"):
        loss(logits * math.nan, target, index=index)
    assert_close(loss.lam, alone.lam, atol=0, rtol=0)


def test_stacked_memories_equal_the_loop(batch):
    logits, target = batch
    losses = [AdaptiveLDRLoss(40, torch.tensor(lam0)).double() for lam0 in (0.5, 1.0, 10.0)]
    index = torch.stack([torch.arange(32), torch.arange(32) + 8, torch.arange(32) // 2])
    _, memory = stack_module_state(losses)

    def stacked(buffers, rows):
        return functional_call(losses[0], buffers, (logits, target), {"index": rows})

    for _ in range(2):
        values = vmap(stacked)(memory, index)
        loop = torch.stack([loss(logits, target, index=rows) for loss, rows in zip(losses, index, strict=True)])
        assert_close(values, loop)
    assert_close(memory["lam"], torch.stack([loss.lam for loss in losses]))


def test_an_index_outside_the_memory_is_named(batch):
    logits, target = batch
    with pytest.raises(ValueError, match=r"index must be in \[0, 31\), got 0..31"):
        AdaptiveLDRLoss(31)(logits, target, index=torch.arange(32))


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="output must have at least 2 classes"):
        AdaptiveLDRLoss(1)(
            torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), index=torch.zeros(1, dtype=torch.int64)
        )
