"""Rows that do not count, as they are ignored or have weight 0, are as if absent, whatever they hold."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import lossworks as lw
from lossworks.embed import FeatureSeparationLoss
from lossworks.fused import FactoredSphericalHead, linear_kl, linear_log_probs, linear_loss
from lossworks.losses import BiTemperedLoss, CrossEntropyLoss, LDRLoss, MarginControlLoss, PoissonLoss, SquaredLoss
from lossworks.perturb import PGD, TRADES
from lossworks.roles import absent_rows, weighted_reduction
from lossworks.weights import KLDRO, CVaR, GroupDRO, PMDROWeights, SampleWeights, TrimmedWeights

KEEP = torch.tensor([True, False, True, True, False, True])
WEIGHT = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
TARGET = torch.tensor([0, 1, 2, 1, 0, 2])
IGNORED = TARGET.where(KEEP, -100)


def holed(rows, hole=math.nan):
    return torch.where(KEEP.reshape(-1, *(1 for _ in rows.shape[1:])), rows, hole)


@pytest.fixture
def logits(generator):
    return torch.randn(6, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_torchs_cross_entropy_of_the_other_rows_is_the_loss(logits, hole):
    leaf, own = holed(logits, hole).requires_grad_(), logits[KEEP].requires_grad_()
    each = F.cross_entropy(own, TARGET[KEEP], reduction="none")
    for given, wanted in (
        ({"target": IGNORED}, each.mean()),
        ({"target": TARGET, "sample_weight": WEIGHT}, (WEIGHT[KEEP] * each).sum() / 5),
    ):
        value = CrossEntropyLoss()(leaf, **given)
        assert_close(value, wanted)
        gradient = torch.autograd.grad(value, leaf)[0]
        assert_close(gradient[KEEP], torch.autograd.grad(wanted, own, retain_graph=True)[0])
        assert torch.equal(gradient[~KEEP], torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("loss", [CrossEntropyLoss(0.1), LDRLoss(), BiTemperedLoss()])
def test_second_derivatives_and_forward_mode_are_those_of_the_other_rows(logits, loss):
    def of_all(output):
        return loss(output, IGNORED)

    def of_present(output):
        return loss(output, TARGET[KEEP])

    along = torch.ones_like(logits)
    second = torch.func.hessian(of_all)(holed(logits))
    assert_close(second[KEEP][:, :, KEEP], torch.func.hessian(of_present)(logits[KEEP]))
    assert not bool(second[~KEEP].any())
    value, slope = torch.func.jvp(of_all, (holed(logits),), (along,))
    wanted, right = torch.func.jvp(of_present, (logits[KEEP],), (along[KEEP],))
    assert_close(value, wanted)
    assert_close(slope, right)
    leaf = holed(logits).requires_grad_()
    (first,) = torch.autograd.grad(of_all(leaf), leaf, create_graph=True)
    (again,) = torch.autograd.grad(first.square().sum(), leaf)
    assert bool(again.isfinite().all())
    assert not bool(again[~KEEP].any())


@pytest.mark.parametrize("given", [{"target": IGNORED}, {"target": TARGET, "sample_weight": WEIGHT}])
def test_stacked_and_compiled_losses_leave_them_out_too(logits, given):
    def loss(output):
        return CrossEntropyLoss()(output, **given)

    wanted = loss(logits)
    stacked = torch.stack([logits, holed(logits)])
    gradients, values = torch.func.vmap(torch.func.grad_and_value(loss))(stacked)
    assert_close(values, wanted.expand(2))
    assert_close(gradients[1], gradients[0])
    leaf = holed(logits).requires_grad_()
    value = torch.compile(loss, backend="eager", fullgraph=True)(leaf)
    assert_close(value, wanted)
    assert_close(torch.autograd.grad(value, leaf)[0], gradients[0])


@pytest.mark.parametrize(
    ("loss", "output", "target"),
    [(SquaredLoss(), 1e30, 0.0), (SquaredLoss(), math.nan, math.nan), (PoissonLoss(), 1e30, -1.0)],
)
def test_a_row_of_weight_0_may_have_an_infinite_loss_and_a_target_that_is_none(loss, output, target):
    outputs = torch.tensor([output, 0.5], requires_grad=True)
    value = loss(outputs, torch.tensor([target, 1.0]), sample_weight=torch.tensor([0.0, 3.0]))
    assert_close(value, loss(outputs[1:], torch.tensor([1.0])))
    assert torch.autograd.grad(value, outputs)[0][0] == 0


def test_class_probabilities_of_weight_0_are_not_looked_at(logits):
    soft = holed(logits.softmax(dim=1))
    leaf = holed(logits).requires_grad_()
    value = CrossEntropyLoss()(leaf, soft, sample_weight=WEIGHT)
    assert_close(value, CrossEntropyLoss()(logits[KEEP], soft[KEEP], sample_weight=WEIGHT[KEEP]))
    assert bool(torch.autograd.grad(value, leaf)[0].isfinite().all())


def test_weights_that_are_learned_get_the_slope_of_their_row_at_0(logits):
    weight = WEIGHT.clone().requires_grad_()
    each = F.cross_entropy(logits, TARGET, reduction="none")
    value = CrossEntropyLoss()(logits, TARGET, sample_weight=weight)
    wanted = (each - (WEIGHT * each).sum() / 5) / 5
    assert_close(torch.autograd.grad(value, weight)[0], wanted)
    hidden, layer = torch.eye(6, dtype=torch.float64), logits.T.contiguous()
    value = linear_loss(hidden, layer, TARGET, CrossEntropyLoss(), sample_weight=weight)
    assert_close(torch.autograd.grad(value, weight)[0], wanted)
    _, slope = torch.func.jvp(
        lambda w: CrossEntropyLoss()(logits, TARGET, sample_weight=w), (WEIGHT,), (torch.ones_like(WEIGHT),)
    )
    assert_close(slope, wanted.sum())
    broken = CrossEntropyLoss()(holed(logits), TARGET, sample_weight=weight)
    assert bool(torch.autograd.grad(broken, weight)[0][KEEP].isfinite().all())
    assert absent_rows(weight) is None


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), CrossEntropyLoss(0.1), LDRLoss(), BiTemperedLoss()])
@pytest.mark.parametrize("weights", [None, KLDRO()])
def test_hidden_rows_that_do_not_count_reach_no_weight(generator, loss, weights):
    hidden = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    layer = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    bias = torch.randn(3, dtype=torch.float64, generator=generator).requires_grad_()
    leaf, own = holed(hidden).requires_grad_(), hidden[KEEP].requires_grad_()
    given = {"bias": bias, "weights": weights, "chunk": 2}
    wanted = linear_loss(own, layer, TARGET[KEEP], loss, **given, sample_weight=WEIGHT[KEEP])
    right = torch.autograd.grad(wanted, (own, layer, bias))
    value = linear_loss(leaf, layer, TARGET, loss, **given, sample_weight=WEIGHT)
    assert_close(value, wanted)
    found = torch.autograd.grad(value, (leaf, layer, bias), create_graph=True)
    assert_close((found[0][KEEP], *found[1:]), right)
    assert not bool(found[0][~KEEP].any())
    if weights is None:
        (again,) = torch.autograd.grad(found[1].square().sum(), layer)
        assert bool(again.isfinite().all())


def test_a_divergence_leaves_rows_of_weight_0_out(generator):
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
    layer = torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    for direction in ("forward", "reverse"):
        wanted = linear_kl(student[KEEP], layer, teacher[KEEP], layer, direction=direction, sample_weight=WEIGHT[KEEP])
        value = linear_kl(
            holed(student), layer, holed(teacher, math.inf), layer, direction=direction, sample_weight=WEIGHT
        )
        assert_close(value, wanted)
        assert_close(torch.autograd.grad(value, layer), torch.autograd.grad(wanted, layer))


def test_log_probabilities_with_a_learned_temperature_do_not_see_ignored_rows(generator):
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    layer = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    broken = holed(hidden.flatten(0, 1)).reshape(2, 3, 4)
    value = linear_log_probs(broken, layer, IGNORED.reshape(2, 3), temperature=temperature, sequence="sum").sum()
    each = (hidden.flatten(0, 1)[KEEP] @ layer.T / temperature).log_softmax(dim=1)
    wanted = each.gather(1, TARGET[KEEP][:, None]).sum()
    assert_close(value, wanted)
    leaves = (layer, temperature)
    assert_close(torch.autograd.grad(value, leaves), torch.autograd.grad(wanted, leaves))


@pytest.mark.parametrize("given", [{"target": IGNORED}, {"target": TARGET, "sample_weight": KEEP.double()}])
def test_a_step_of_the_spherical_head_is_that_of_the_other_rows(generator, given):
    hidden = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    torch.manual_seed(0)
    head = FactoredSphericalHead(4, 5, dtype=torch.float64)
    other = FactoredSphericalHead.from_linear(head.to_linear())
    leaf = holed(hidden).requires_grad_()
    head.loss(leaf, **given).backward()
    other.loss(hidden[KEEP], TARGET[KEEP]).backward()
    for one in (head, other):
        one.step(0.1)
    assert_close(head.to_linear().weight, other.to_linear().weight)
    assert not bool(leaf.grad[~KEEP].any())


def by_hand(losses, weights):
    """The weighted mean of the rows that are present, by a weighting's own weights of these alone."""
    found = weights(losses[KEEP], group=TARGET[KEEP], index=torch.arange(6)[KEEP], target=TARGET[KEEP])
    return (WEIGHT[KEEP] * found * losses[KEEP]).sum() / 5


@pytest.mark.parametrize(
    "build",
    [
        KLDRO,
        lambda: KLDRO(radius=0.1),
        lambda: CVaR(0.5),
        lambda: TrimmedWeights(0.25),
        lambda: GroupDRO(3, step_size=0.5),
        lambda: PMDROWeights(6),
        lambda: SampleWeights(torch.tensor([1.0, 5.0, 2.0, 1.0, 9.0, 3.0], dtype=torch.float64)),
    ],
)
@pytest.mark.parametrize("parts", [None, 2])
def test_weightings_do_not_compare_with_rows_of_weight_0(logits, build, parts):
    own, model = build(), nn.Identity()
    wanted = by_hand(F.cross_entropy(logits, TARGET, reduction="none"), own)
    weights = build()
    objective = lw.Objective(CrossEntropyLoss(), weights)
    index = torch.arange(6).where(KEEP, -7)
    columns = {"x": holed(logits), "target": TARGET, "sample_weight": WEIGHT, "group": TARGET, "index": index}
    if parts is None:
        value = objective(model, **columns)
    else:
        batches = [{name: column[rows] for name, column in columns.items()} for rows in torch.arange(6).split(parts)]
        value = torch.stack(list(objective.micro_batches(model, batches))).sum()
    assert_close(value, wanted)
    for buffer, right in zip(weights.buffers(), own.buffers(), strict=True):
        assert_close(buffer, right)


@pytest.mark.parametrize("perturb", [TRADES(2.0, PGD(0.1, steps=2)), PGD(0.1, steps=2, random_start=False)])
def test_a_perturbed_objective_leaves_broken_rows_out(generator, perturb):
    x = torch.randn(6, 4, dtype=torch.float64, generator=generator)

    class Model(nn.Linear):
        def forward(self, rows):
            return super().forward(rows).where((rows.abs() < 50).all(dim=1)[:, None], math.nan)

    torch.manual_seed(0)
    model = Model(4, 3).double()
    objective = lw.Objective(CrossEntropyLoss(), perturb=perturb)
    values = []
    for given in (
        {"x": holed(x, 100.0), "target": TARGET, "sample_weight": WEIGHT},
        {"x": holed(x, 100.0), "target": IGNORED, "sample_weight": WEIGHT.where(KEEP, 1.0)},
        {"x": x[KEEP], "target": TARGET[KEEP], "sample_weight": WEIGHT[KEEP]},
    ):
        torch.manual_seed(1)
        value = objective(model, **given)
        values.append((value.detach(), *torch.autograd.grad(value, list(model.parameters()))))
    assert_close(values[0], values[2])
    assert all(bool(number.isfinite().all()) for number in values[1])
    if isinstance(perturb, PGD):  # an ignored row takes a draw of its own
        assert_close(values[0], values[1])


def test_an_attack_on_numbers_leaves_rows_of_weight_0_alone(generator):
    x = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    target = torch.randn(6, dtype=torch.float64, generator=generator)
    objective = lw.Objective(SquaredLoss(), perturb=PGD(0.1, steps=2))

    def model(rows):
        return rows.square().sum(dim=1).where((rows.abs() < 50).all(dim=1), math.nan)

    def whole(rows):
        torch.manual_seed(0)
        return objective(model, **{name: column[rows] for name, column in columns.items()})

    columns = {"x": holed(x, 100.0), "target": holed(target), "sample_weight": WEIGHT}
    every = torch.arange(6)
    assert_close(whole(every), whole(every[KEEP]))
    torch.manual_seed(0)
    parts = [{name: column[rows] for name, column in columns.items()} for rows in every.split(4)]
    assert_close(sum(objective.micro_batches(model, parts)), whole(every[KEEP]))


def test_a_weightings_weight_of_0_leaves_an_infinite_loss_out():
    logits = torch.tensor([[-math.inf, 0.0], [0.0, 0.0]], requires_grad=True)
    target, index = torch.tensor([0, 1]), torch.arange(2)
    weights = SampleWeights(torch.tensor([0.0, 1.0]))
    value = lw.Objective(CrossEntropyLoss(), weights).risk(logits, target, index=index)
    assert_close(value, torch.tensor(2.0).log())
    assert_close(torch.autograd.grad(value, logits)[0], torch.tensor([[0.0, 0.0], [0.5, -0.5]]))
    hidden, layer = torch.tensor([[1e38], [0.0]]), torch.tensor([[-1e38], [0.0]], requires_grad=True)
    for reduction, wanted in (("mean", 2 * math.log(2) / 2), ("none", None)):
        value = linear_loss(
            hidden, layer, target, CrossEntropyLoss(), weights=weights, index=index, reduction=reduction
        )
        assert bool(value.isfinite().all())
        if wanted is not None:
            assert_close(value, torch.tensor(wanted))


def over_ranks(logits, build):
    own = slice(0, 2) if dist.get_rank() == 0 else slice(2, 6)
    leaf = holed(logits)[own].requires_grad_()
    objective = lw.Objective(*build())
    columns = {"sample_weight": WEIGHT[own], "process_group": dist.group.WORLD}
    if objective.weights is not None:
        columns["group"] = TARGET[own]
    value = objective.risk(leaf, TARGET[own], **columns)
    (gradient,) = torch.autograd.grad(value / dist.get_world_size(), leaf)
    return value.detach(), gradient, [buffer.clone() for buffer in objective.buffers()]


def grouped():
    return CrossEntropyLoss(), GroupDRO(3, step_size=0.5)


def worst():
    return CrossEntropyLoss(), KLDRO(radius=0.1)


def margin():
    return (MarginControlLoss(),)


def separated():
    return (FeatureSeparationLoss(),)


@pytest.mark.parametrize("build", [grouped, worst, margin, separated])
def test_ranks_leave_them_out_together(two_ranks, logits, build):
    values, gradients, buffers = zip(*two_ranks.call(over_ranks, logits, build), strict=True)
    objective, leaf = lw.Objective(*build()), logits[KEEP].requires_grad_()
    columns = {} if objective.weights is None else {"group": TARGET[KEEP]}
    wanted = objective.risk(leaf, TARGET[KEEP], sample_weight=WEIGHT[KEEP], **columns)
    assert_close(torch.stack(values).mean(), wanted.detach())
    assert_close(torch.cat(gradients)[KEEP], torch.autograd.grad(wanted, leaf)[0])
    assert not bool(torch.cat(gradients)[~KEEP].any())
    for found in buffers:
        assert_close(found, list(objective.buffers()))


def test_a_compiled_and_a_stacked_linear_layer_leave_them_out(generator):
    hidden = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    layer = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()

    def loss(weight, rows):
        return linear_loss(rows, weight, IGNORED, CrossEntropyLoss())

    wanted = torch.autograd.grad(loss(layer, hidden), layer)[0]
    compiled = torch.compile(loss, backend="eager")
    assert_close(torch.autograd.grad(compiled(layer, holed(hidden)), layer)[0], wanted)
    stacked = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(layer.detach(), holed(hidden)[None])
    assert_close(stacked[0], wanted)


def test_means_over_many_rows_in_half_precision_do_not_overflow():
    losses = torch.full((70_000,), 2.0, dtype=torch.float16)
    ones = torch.ones(70_000, dtype=torch.float16)
    for weights in (None, ones):
        assert_close(weighted_reduction(losses, weights, "mean"), torch.tensor(2.0))
        assert_close(weighted_reduction(losses, weights, "sum"), torch.tensor(140_000.0))
    value = SquaredLoss()(losses.double(), torch.zeros(70_000).double(), sample_weight=ones)
    assert_close(value, torch.tensor(4.0, dtype=torch.float64))
