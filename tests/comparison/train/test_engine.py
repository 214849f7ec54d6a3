"""The engine: what it trains is what a plain loop would train, whoever is trained beside it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.models.scaling import Scaler
from lossworks.comparison.tasks.multiclass import Multiclass
from lossworks.comparison.tasks.real import Real
from lossworks.comparison.train.engine import Trained, train
from lossworks.comparison.train.feed import Order
from lossworks.comparison.train.jobs import Job, Training, seed_from
from lossworks.losses import (
    AdaptiveLDRLoss,
    CrossEntropyLoss,
    GeneralRobustLoss,
    HLGaussLoss,
    LDRLoss,
    SquaredLoss,
    TruncatedGeneralizedCrossEntropyLoss,
)
from lossworks.metrics.registry import find_metric
from lossworks.objective import Objective
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.perturb import GaussianNoise
from lossworks.roles import CLASSES, Loss
from lossworks.weights import ClassBalanced

ROWS = 240
ACCURACY = find_metric("accuracy")
RMSE = find_metric("rmse")
MANY, REAL = Multiclass(), Real()
SHORT = Training(batch_size=16, max_steps=30, eval_every=10, lr=3e-3, race_after=0.0)


class ScaledLogistic(Loss):
    """The logistic loss times a number, which may be absurd."""

    kind = "binary"
    rowwise = True

    def __init__(self, scale: float | torch.Tensor = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def per_sample(self, output, target):
        return self.scale * F.binary_cross_entropy_with_logits(output, target, reduction="none")


class SlopedCrossEntropy(Loss):
    """Cross-entropy of the scores times a slope: a negative one unlearns."""

    rowwise = True

    def __init__(self, slope: float | torch.Tensor = 1.0) -> None:
        super().__init__()
        self.slope = slope

    def per_sample(self, output, target):
        return F.cross_entropy(self.slope * output, target, reduction="none")


class Turning(Loss):
    """Cross-entropy that turns against the label after a number of calls, which a new tensor counts each time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = torch.zeros(())

    def per_sample(self, output, target):
        self.calls = self.calls + 1
        return torch.where(self.calls <= 12, 1.0, -0.5) * F.cross_entropy(output, target, reduction="none")


class Branching(nn.Module):
    """Control flow that depends on the data, which ``vmap`` refuses."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.layer(x) if bool(x.sum() > 0) else self.layer(-x)


@pytest.fixture
def x(generator) -> torch.Tensor:
    return torch.randn(ROWS, 6, generator=generator)


@pytest.fixture
def y(x) -> torch.Tensor:
    return (x[:, :3] + 0.3 * x[:, 3:]).argmax(dim=1)


def jobs(objectives: list[Objective], contests: list[int] | None = None) -> list[Job]:
    """Each on rows and a seed of its own; the inner rows differ in number."""
    return [
        Job(
            objective,
            fit=torch.arange(number, 180),
            inner=torch.arange(180, 220 - number % 3),
            seed=number,
            contest=contests[number] if contests else number,
        )
        for number, objective in enumerate(objectives)
    ]


def everywhere(trained: Trained) -> torch.Tensor:
    return torch.stack([trained.outputs(number, torch.arange(ROWS)) for number in range(len(trained.curves))])


def alike(count: int) -> list[Objective]:
    return [Objective(CrossEntropyLoss()) for _ in range(count)]


def ldr(count: int) -> list[Objective]:
    return [Objective(LDRLoss(torch.tensor(1.0 + number))) for number in range(count)]


def adaptive(count: int) -> list[Objective]:
    return [Objective(AdaptiveLDRLoss(ROWS, torch.tensor(2.0 + number))) for number in range(count)]


def truncated(count: int) -> list[Objective]:
    return [
        Objective(TruncatedGeneralizedCrossEntropyLoss(k=torch.tensor(0.1 * (number + 1)))) for number in range(count)
    ]


def balanced(count: int) -> list[Objective]:
    counts = [torch.tensor([10.0, 20.0, 30.0 + number]) for number in range(count)]
    return [Objective(CrossEntropyLoss(), ClassBalanced(number)) for number in counts]


def penalised(count: int) -> list[Objective]:
    strengths = [torch.tensor(0.01 * number) for number in range(count)]
    return [Objective(CrossEntropyLoss(), penalties=[WeightMagnitudePenalty(strength)]) for strength in strengths]


STACKED = [alike, ldr, adaptive, truncated, balanced, penalised]


@pytest.mark.parametrize("make", STACKED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("model", ["mlp", "linear"])
def test_hand_written_gradients_equal_automatic_ones(x, y, make, model):
    by_hand, automatic = (
        train(x, y, jobs(make(3)), Architecture(model, width=20, generic=generic), SHORT, ACCURACY, task=MANY)
        for generic in (False, True)
    )
    assert_close(everywhere(by_hand), everywhere(automatic), atol=1e-5, rtol=1e-5)
    assert by_hand.best_step == automatic.best_step


@pytest.mark.parametrize("make", STACKED, ids=lambda make: make.__name__)
def test_a_replica_does_not_depend_on_who_is_trained_beside_it(x, y, make):
    together = train(x, y, jobs(make(3)), Architecture(width=20), SHORT, ACCURACY, task=MANY)
    alone = [train(x, y, [job], Architecture(width=20), SHORT, ACCURACY, task=MANY) for job in jobs(make(3))]
    assert_close(everywhere(together), torch.cat([everywhere(one) for one in alone]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [alike, adaptive, penalised], ids=lambda make: make.__name__)
def test_the_same_arguments_give_the_same_bits(x, y, make):
    torch.manual_seed(1)
    first = train(x, y, jobs(make(3)), Architecture(width=20), SHORT, ACCURACY, task=MANY)
    torch.manual_seed(2)
    second = train(x, y, jobs(make(3)), Architecture(width=20), SHORT, ACCURACY, task=MANY)
    assert torch.equal(everywhere(first), everywhere(second))
    assert first.curves == second.curves


def test_the_number_of_threads_changes_no_bit(generator):
    x = torch.randn(40_000, 8, generator=generator)
    y = (x[:, 0] + x[:, 1:].square().sum(dim=1)).double()
    many = [Job(Objective(SquaredLoss()), torch.arange(39_000), torch.arange(39_000, 40_000), n, n) for n in range(24)]
    training = Training(batch_size=64, max_steps=4, eval_every=2)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(train(x, y, many, Architecture(width=32), training, RMSE, task=REAL))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert found[0].curves == found[1].curves
    assert torch.equal(found[0].module(7)[1][1].weight, found[1].module(7)[1][1].weight)


def test_leaves_torchs_generator_and_the_objectives_as_they_were(x, y):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    objectives = adaptive(2)
    train(x, y, jobs(objectives), Architecture(width=8), SHORT, ACCURACY, task=MANY)
    assert torch.equal(torch.rand(3), wanted)
    assert bool((objectives[0].loss.lam == 2).all())


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("loss", [LDRLoss, Turning])
def test_is_the_plain_loop(x, y, loss, generic):
    pair = jobs([Objective(loss()), Objective(loss())])
    architecture = Architecture(width=20, generic=generic)
    trained = train(x, y, pair, architecture, SHORT, ACCURACY, task=MANY)
    job, loss = pair[1], loss()
    torch.manual_seed(seed_from(job.seed, 0))
    network = architecture.sized((6,), 3, CLASSES).network()
    order = Order(job.fit, torch.Generator().manual_seed(seed_from(job.seed, 1)))
    scaled = Scaler.fit(x, job.fit, "robust")(x)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    states, scores = [], []
    for step in range(30):
        rows = order.take(16)
        optimizer.zero_grad()
        loss(network(scaled[rows]), y[rows]).backward()
        optimizer.step()
        if (step + 1) % 10 == 0:
            states.append(network(scaled).detach())
            scores.append(float((states[-1][job.inner].argmax(1) == y[job.inner]).double().mean()))
    best = int(np.argmax(scores))
    assert trained.best_step[1] == 10 * (best + 1)
    assert_close([score for _, score in trained.curves[1]], scores, atol=1e-6, rtol=0)
    assert_close(trained.outputs(1, torch.arange(ROWS)), states[best], atol=1e-5, rtol=1e-5)


def test_the_best_state_is_kept_and_scores_what_its_curve_says(x, y):
    trained = train(x, y, jobs(alike(3)), Architecture(width=20), SHORT, ACCURACY, task=MANY)
    for number, job in enumerate(jobs(alike(3))):
        right = trained.outputs(number, job.inner).argmax(dim=1) == y[job.inner]
        assert float(right.float().mean()) == pytest.approx(trained.best_score[number], abs=1e-6)
        assert max(score for _, score in trained.curves[number]) == trained.best_score[number]


def test_a_metric_of_groups_scores_each_replicas_worst_group_of_its_inner_rows(x, y):
    group = torch.arange(ROWS) % 4
    inner = [torch.arange(100, 160), torch.arange(100, 160)[group[100:160] < 2]]
    jobs = [Job(Objective(CrossEntropyLoss()), torch.arange(100), rows, 0, contest=i) for i, rows in enumerate(inner)]
    trained = train(
        x, y, jobs, Architecture("linear"), SHORT, find_metric("worst_group_accuracy"), task=MANY, group=group
    )
    for number, rows in enumerate(inner):
        right = trained.outputs(number, rows).argmax(dim=1) == y[rows]
        worst = min(right[group[rows] == g].double().mean() for g in group[rows].unique())
        assert trained.best_score[number] == pytest.approx(float(worst))


def test_a_replica_that_does_not_improve_stops_and_the_others_go_on(x, y):
    objectives = [Objective(SlopedCrossEntropy(torch.tensor(slope))) for slope in (1.0, 0.0, 1.0)]
    training = Training(batch_size=16, max_steps=60, eval_every=5, patience=2, weight_decay=0.0, race_after=0.0)
    trained = train(x, y, jobs(objectives), Architecture(width=20), training, ACCURACY, task=MANY)
    assert [step for step, _ in trained.curves[1]] == [5, 10, 15]
    assert trained.best_step[1] == 5
    assert trained.curves[0][-1][0] > 15
    alone = train(x, y, jobs(objectives)[2:], Architecture(width=20), training, ACCURACY, task=MANY)
    assert_close(trained.outputs(2, torch.arange(ROWS)), alone.outputs(0, torch.arange(ROWS)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("race_after", [0.5, 0.0])
def test_only_a_setting_clearly_behind_in_its_own_contest_is_dropped(x, y, race_after):
    objectives = [Objective(SlopedCrossEntropy(torch.tensor(slope))) for slope in (1.0, 0.8, 0.0, 0.0)]
    training = Training(batch_size=16, max_steps=80, eval_every=10, lr=1e-2, weight_decay=0.0, race_after=race_after)
    trained = train(
        x, y, jobs(objectives, contests=[0, 0, 0, 1]), Architecture(width=20), training, ACCURACY, task=MANY
    )
    so_far = [max(score for _, score in curve[:4]) for curve in trained.curves]
    assert so_far[0] != so_far[1]
    assert trained.dropped == [False, False, race_after > 0, False]
    assert len(trained.curves[2]) == (4 if race_after else 8)


def test_the_module_gives_the_outputs_and_loads_into_an_empty_one(x, y):
    trained = train(x, y, jobs(ldr(2)), Architecture(width=20), SHORT, ACCURACY, task=MANY)
    module = trained.module(1)
    assert_close(module(x), trained.outputs(1, torch.arange(ROWS)), atol=1e-5, rtol=1e-5)
    architecture = Architecture.from_json(trained.architectures[1].to_json())
    empty = architecture.empty_module(Multiclass().empty_head(architecture.kind, architecture.outputs))
    empty.load_state_dict(module.state_dict())
    assert torch.equal(empty(x), module(x))


def test_real_targets_are_standardised_inside_and_come_back_in_their_own_unit(x):
    y = x[:, 0].double() + 0.1 * x[:, 1].double()
    make = [Objective(SquaredLoss()), Objective(GeneralRobustLoss())]
    plain, moved = (
        train(x, target, jobs(make), Architecture(width=20), SHORT, RMSE, task=REAL) for target in (y, 1000 + 50 * y)
    )
    assert_close(everywhere(moved), 1000 + 50 * everywhere(plain), atol=0.01, rtol=1e-4)
    assert_close(moved.best_score[0], 50 * plain.best_score[0], rtol=1e-3, atol=0)
    assert everywhere(plain).shape == (2, ROWS)


def test_logits_over_bins_are_read_as_values(x):
    y = 10 + 3 * x[:, 0]
    losses = [HLGaussLoss(torch.tensor(-3.0), torch.tensor(3.0 + number), num_bins=21) for number in range(2)]
    training = Training(batch_size=32, max_steps=150, eval_every=30, lr=1e-2)
    trained = train(x, y, jobs([Objective(loss) for loss in losses]), Architecture(width=20), training, RMSE, task=REAL)
    assert min(trained.best_score) > -1.5
    bins = trained.module(1)[:2](x)
    job = jobs([Objective(losses[1])] * 2)[1]
    fit = y[job.fit].double()
    wanted = losses[1].predict(bins).double() * fit.std(correction=0) + fit.mean()
    assert_close(trained.outputs(1, torch.arange(ROWS)), wanted.float(), atol=1e-4, rtol=1e-5)


def test_one_score_serves_a_binary_loss(x):
    y = (x[:, 0] > 0).long()
    training = Training(batch_size=16, max_steps=60, eval_every=20, lr=1e-2)
    trained = train(
        x,
        y,
        jobs([Objective(ScaledLogistic()) for _ in range(2)]),
        Architecture(width=20),
        training,
        ACCURACY,
        task=MANY,
    )
    assert trained.outputs(0, torch.arange(5)).shape == (5,)
    assert min(trained.best_score) > 0.8


@pytest.mark.parametrize("same", [True, False])
def test_a_replica_that_diverges_does_not_stop_the_others(x, y, same):
    scales = [torch.tensor(1.0), torch.tensor(1.0 if same else float("nan"))]
    x = x.clone()
    if same:
        x[180:, 0] = 1.0
    objectives = [Objective(SlopedCrossEntropy(scale)) for scale in scales]
    training = Training(batch_size=16, max_steps=30, eval_every=10, lr=1e30 if same else 3e-3, race_after=0.0)
    trained = train(x, y, jobs(objectives), Architecture(width=20), training, ACCURACY, task=MANY)
    assert trained.best_score[1] == float("-inf")
    assert trained.best_step[1] == 0
    assert len(trained.curves[1]) == 1
    assert bool(trained.outputs(1, torch.arange(ROWS)).isfinite().all())
    assert same or trained.best_score[0] > 0.5


def test_what_a_loss_learns_is_trained_for_each_replica(x):
    y = x[:, 0] + torch.where(torch.arange(ROWS) % 7 == 0, 20.0, 0.0)
    objectives = [Objective(GeneralRobustLoss(alpha=1.5, learn=True)) for _ in range(2)]
    alone, together = (
        train(x, y, jobs(objectives)[:count], Architecture(width=20), SHORT, RMSE, task=REAL) for count in (1, 2)
    )
    assert_close(everywhere(together)[:1], everywhere(alone), atol=1e-5, rtol=1e-5)


def test_unlike_objectives_are_trained_side_by_side(x, y):
    objectives = [*alike(1), *ldr(2), *penalised(1)]
    trained = train(x, y, jobs(objectives), Architecture(width=20), SHORT, ACCURACY, task=MANY)
    alone = [train(x, y, [job], Architecture(width=20), SHORT, ACCURACY, task=MANY) for job in jobs(objectives)]
    assert_close(everywhere(trained), torch.cat([everywhere(one) for one in alone]), atol=1e-5, rtol=1e-5)


def test_images_through_the_convolutional_network(generator):
    images = torch.randn(ROWS, 1, 6, 6, generator=generator)
    y = (images[:, 0, :3].mean(dim=(1, 2)) > images[:, 0, 3:].mean(dim=(1, 2))).long()
    training = Training(batch_size=32, max_steps=60, eval_every=20, lr=1e-2)
    trained = train(images, y, jobs(ldr(2)), Architecture("cnn", width=8), training, ACCURACY, task=MANY)
    assert trained.notes == []
    assert min(trained.best_score) > 0.7
    assert_close(trained.module(0)(images[:9]), trained.outputs(0, torch.arange(9)), atol=1e-5, rtol=1e-5)


def batch_normed(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, outputs))


def test_running_statistics_are_each_replicas_own(x, y):
    trained = train(x, y, jobs(ldr(2)), Architecture(batch_normed), SHORT, ACCURACY, task=MANY)
    alone = train(x, y, jobs(ldr(2))[1:], Architecture(batch_normed), SHORT, ACCURACY, task=MANY)
    assert_close(trained.outputs(1, torch.arange(ROWS)), alone.outputs(0, torch.arange(ROWS)), atol=1e-5, rtol=1e-5)
    norm = trained.module(1)[1][1]
    assert int(norm.num_batches_tracked) == trained.best_step[1]
    assert bool((norm.running_mean != 0).all())


def test_what_vmap_cannot_stack_is_trained_one_at_a_time_and_says_so(x, y):
    architecture = Architecture(lambda shape, outputs: Branching(shape[0], outputs))
    trained = train(x, y, jobs(ldr(3)), architecture, SHORT, ACCURACY, task=MANY)
    assert len(trained.notes) == 1
    assert "one at a time" in trained.notes[0]
    assert min(trained.best_score) > 0


def test_random_perturbations_are_drawn_from_the_seed(x, y):
    objectives = [Objective(CrossEntropyLoss(), perturb=GaussianNoise(torch.tensor(0.5))) for _ in range(8)]
    wide = Architecture(width=128)
    first, second = (train(x, y, jobs(objectives), wide, SHORT, ACCURACY, task=MANY) for _ in range(2))
    clean = train(x, y, jobs(alike(8)), wide, SHORT, ACCURACY, task=MANY)
    assert torch.equal(everywhere(first), everywhere(second))
    assert not torch.allclose(everywhere(first), everywhere(clean), atol=1e-3)


def test_progress_rises_to_the_total_and_stop_ends_with_what_there_is(x, y):
    seen = []
    trained = train(
        x,
        y,
        jobs(ldr(2)),
        Architecture(width=8),
        SHORT,
        ACCURACY,
        task=MANY,
        progress=lambda *now: seen.append(now),
    )
    assert [done for done, _, _ in seen] == [20, 40, 60]
    assert {total for _, total, _ in seen} == {60}
    assert seen[-1][2] == max(trained.best_score)
    assert trained.complete
    answers = iter([False, True])
    stopped = train(x, y, jobs(ldr(2)), Architecture(width=8), SHORT, ACCURACY, task=MANY, stop=lambda: next(answers))
    assert not stopped.complete
    assert [len(curve) for curve in stopped.curves] == [1, 1]


def test_each_time_round_is_a_permutation_of_the_rows():
    order = Order(torch.arange(10, 17), torch.Generator().manual_seed(0))
    taken = torch.cat([order.take(5) for _ in range(7)]).view(5, 7)
    assert torch.equal(taken.sort(dim=1).values, torch.arange(10, 17).expand(5, 7))
    assert not torch.equal(taken[0], taken[1])


def test_robust_scaling_uses_the_fit_rows_quartiles_and_is_bounded(x):
    x = x.clone()
    x[:40, 2] = float("nan")
    x[3, 0], x[200, 0], x[:, 4] = 1e30, -1e30, 7.0
    x[:, 5] = (torch.arange(ROWS) % 10 == 0).float()
    rows = torch.arange(0, 181)
    scaler = Scaler.fit(x, rows, "robust")
    low, middle, high = np.nanpercentile(x[rows, :4].double().numpy(), [25, 50, 75], axis=0, method="nearest")
    assert_close(scaler.center[:4].numpy(), middle.astype(np.float32), rtol=1e-5, atol=1e-6)
    assert_close(1 / scaler.inverse[:4].numpy(), ((high - low) / 1.349).astype(np.float32), rtol=1e-5, atol=1e-6)
    assert_close(1 / scaler.inverse[5], x[rows, 5].std(correction=0), rtol=1e-4, atol=0)
    scaled = scaler(x)
    assert bool((scaled.abs() <= 3).all())
    assert bool((scaled[:40, 2] == 0).all())
    assert bool((scaled[:, 4] == 0).all())
    z = (x[50, 1] - scaler.center[1]) * scaler.inverse[1]
    assert_close(scaled[50, 1], z / (1 + (z / 3) ** 2).sqrt())


def test_images_are_scaled_by_channel(generator):
    images = torch.randn(50, 2, 4, 4, generator=generator) * torch.tensor([1.0, 9.0]).view(2, 1, 1)
    scaled = Scaler.fit(images, torch.arange(50), "robust")(images)
    assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    assert_close(scaled.std(dim=(0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, y: (x, y[:-1], jobs(alike(1))), r"y must have shape \(240,\)"),
        (lambda x, y: (x, y, []), "jobs must not be empty"),
        (
            lambda x, y: (x, y, jobs([Objective(CrossEntropyLoss(reduction="none"))])),
            r"jobs\[0\].objective must reduce",
        ),
        (
            lambda x, y: (x, y, [Job(alike(1)[0], torch.zeros(0).long(), torch.arange(3), 0, 0)]),
            r"jobs\[0\].fit must be",
        ),
    ],
)
def test_wrong_arguments_are_named(x, y, wrong, message):
    x, y, given = wrong(x, y)
    with pytest.raises(ValueError, match=message):
        train(x, y, given, Architecture(), SHORT, ACCURACY, task=MANY)


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        Architecture("linaer")
