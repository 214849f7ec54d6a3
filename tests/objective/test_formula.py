"""The formula on one batch."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close

import lossworks as lw
from lossworks.losses import CrossEntropyLoss, EnsLoss, LogisticLoss, MarginControlLoss, PseudoHuberLoss, SquaredLoss
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.perturb import PGD, GaussianNoise
from lossworks.weights import ClassBalanced, SampleWeights
from tests.objective.parts import Counting, Hardest, Spread, assert_refused, cut


def test_is_the_formula_term_by_term(model, batch):
    x, target = batch
    counts = torch.bincount(target, minlength=3).double()
    objective = lw.Objective(
        CrossEntropyLoss(),
        ClassBalanced(counts),
        GaussianNoise(0.2),
        [WeightMagnitudePenalty(0.1), WeightMagnitudePenalty(0.2)],
    )
    torch.manual_seed(1)
    value = objective(model, x, target)
    torch.manual_seed(1)
    moved = x + 0.2 * torch.randn_like(x)
    losses = nn.functional.cross_entropy(model(moved), target, reduction="none")
    weights = (10 / (3 * counts))[target]
    by_hand = (weights * losses).sum() / 10 + 0.3 * model.weight.pow(2).sum() / 2
    assert_close(value, by_hand)


def test_micro_batches_with_total_sum_to_the_whole(model, batch):
    x, target = batch
    objective = lw.Objective(CrossEntropyLoss(), SampleWeights(torch.arange(1.0, 11).double()))
    index, own = torch.arange(10), torch.linspace(0.1, 2, 10).double()
    whole = objective(model, x, target, index=index, sample_weight=own)
    parts = sum(
        objective(model, x[rows], target[rows], index=index[rows], sample_weight=own[rows], total=own.sum())
        for rows in index.split(3)
    )
    assert_close(parts, whole)


def test_ignored_rows_have_no_weight(model, batch):
    x, target = batch
    counts = torch.bincount(target, minlength=3).double()
    objective = lw.Objective(CrossEntropyLoss(), ClassBalanced(counts))
    masked = torch.where(torch.arange(10) < 4, -100, target)
    kept = objective(model, x[4:], target[4:])
    assert_close(objective(model, x, masked), kept)


def test_no_gradient_flows_through_the_weights(batch):
    class Hardest(lw.Weighting):
        def forward(self, losses, **_):
            return losses / losses.mean()

    _, target = batch
    logits = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    losses = nn.functional.cross_entropy(logits, target, reduction="none")
    wanted = torch.autograd.grad(((losses / losses.mean()).detach() * losses).mean(), logits)[0]
    value = lw.Objective(CrossEntropyLoss(), Hardest()).risk(logits, target)
    assert_close(torch.autograd.grad(value, logits)[0], wanted)


def test_saves_and_loads_as_one(batch):
    counts = torch.tensor([3.0, 4.0, 3.0])
    one = lw.Objective(CrossEntropyLoss(), ClassBalanced(counts))
    other = lw.Objective(CrossEntropyLoss(), ClassBalanced(counts.flip(0) * 2))
    other.load_state_dict(one.state_dict())
    logits = torch.randn(10, 3)
    assert_close(other.risk(logits, batch[1]), one.risk(logits, batch[1]))


def test_parts_in_wrong_roles_are_named():
    with pytest.raises(TypeError, match="loss must be a lossworks loss part, got NoneType"):
        lw.Objective(None)
    with pytest.raises(TypeError, match="loss must be a lossworks loss part, got CrossEntropyLoss"):
        lw.Objective(nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match="weights"):
        lw.Objective(CrossEntropyLoss(), weights=CrossEntropyLoss())
    with pytest.raises(TypeError, match="perturb"):
        lw.Objective(CrossEntropyLoss(), perturb=CrossEntropyLoss())
    with pytest.raises(TypeError, match="penalties"):
        lw.Objective(CrossEntropyLoss(), penalties=[CrossEntropyLoss()])


def test_a_weighting_on_a_batch_loss_is_refused():
    class Spread(lw.BatchLoss):
        def forward(self, output, target, sample_weight=None):
            return output.var()

    with pytest.raises(TypeError, match="Spread couples the whole batch"):
        lw.Objective(Spread(), weights=lw.weights.UniformWeights())
    assert_close(lw.Objective(Spread())(nn.Identity(), torch.tensor([1.0, 3.0]), torch.ones(2)), torch.tensor(2.0))


def test_a_missing_argument_is_named(batch):
    with pytest.raises(ValueError, match="SampleWeights needs index="):
        lw.Objective(CrossEntropyLoss(), SampleWeights(torch.ones(10))).risk(torch.zeros(10, 3), batch[1])


def test_weights_found_before_are_not_asked_for_again(model, batch):
    x, target = batch
    objective = lw.Objective(CrossEntropyLoss(), Hardest(), penalties=[WeightMagnitudePenalty(0.3)])
    with torch.no_grad():
        losses, _ = objective.loss.rows(model(x), target)
    weights = objective.weigh(losses, target=target)
    assert_close(weights, losses / losses.mean())
    total = objective.loss.total_of(target)
    pieces = [
        objective(model, x[rows], target[rows], row_weights=weights[rows], total=total)
        for rows in torch.arange(10).split(4)
    ]
    assert_close(sum(pieces), objective(model, x, target))
    with pytest.raises(ValueError, match=r"row_weights must have shape \(10,\), got \(9,\)"):
        objective(model, x, target, row_weights=weights[1:])


def test_an_attack_leaves_the_memories_alone(model, batch):
    class Nearby(lw.Perturbation):
        def forward(self, risk, x):
            return x + 0.1 * torch.func.grad(lambda moved: risk(moved).sum())(x).sign()

    x, target = batch
    index = torch.arange(10)
    attacked = lw.Objective(lw.losses.AdaptiveLDRLoss(num_samples=10), perturb=Nearby())
    plain = lw.Objective(lw.losses.AdaptiveLDRLoss(num_samples=10))
    leaf = x.clone().requires_grad_()
    risk = copy.deepcopy(plain).risk(model(leaf), target, index=index)
    moved = x + 0.1 * torch.autograd.grad(risk, leaf)[0].sign()
    assert_close(attacked(model, x, target, index=index), plain(model, moved, target, index=index))
    assert_close(attacked.loss.lam, plain.loss.lam)


def test_weights_on_rows_of_a_grid_are_those_of_flat_rows(generator):
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (2, 4), generator=generator)
    target[0, 1] = -100
    objective = lw.Objective(CrossEntropyLoss(), Hardest())
    flat = objective.risk(logits.movedim(1, -1).reshape(8, 3), target.flatten())
    assert_close(objective.risk(logits, target), flat)


def test_a_loss_says_what_its_mean_divides_by(generator):
    target = torch.tensor([[0, -100, 2], [1, 1, -100]])
    assert CrossEntropyLoss().total_of(target) == 4
    assert CrossEntropyLoss().total_of(target, torch.arange(6.0).reshape(2, 3)) == 0 + 2 + 3 + 4
    assert CrossEntropyLoss().total_of(torch.rand(5, 3, 2, generator=generator)) == 10
    assert lw.losses.SquaredLoss().total_of(torch.rand(5, 2)) == 10
    assert lw.losses.PseudoHuberLoss().total_of(torch.rand(5, 2)) == 5
    assert lw.losses.PseudoHuberLoss().total_of(torch.rand(0, 2)) == 0


def test_what_cannot_be_split_is_refused(model, batch):
    x, target = batch
    with pytest.raises(ValueError, match="total splits a mean over rows, and Spread couples the whole batch"):
        lw.Objective(Spread())(model, x, target, total=10)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum'"):
        next(lw.Objective(CrossEntropyLoss(reduction="none")).micro_batches(model, [(x, target)]))
    with pytest.raises(ValueError, match="index must have one entry for each of 10 losses, got 9"):
        lw.Objective(CrossEntropyLoss(), SampleWeights(torch.ones(10))).risk(model(x), target, index=torch.arange(9))


def test_every_part_with_a_schedule_is_told_of_the_progress():
    objective = lw.Objective(lw.losses.TruncatedGeneralizedCrossEntropyLoss())
    objective.set_progress(0.25)
    assert float(objective.loss.progress) == 0.25


def priced_over_ranks(output, target, price):
    own = slice(0, 3) if dist.get_rank() == 0 else slice(3, 4)
    output, price = output[own].requires_grad_(), price[own].requires_grad_()
    value = lw.Objective(MarginControlLoss()).risk(output, target[own], price=price, process_group=dist.group.WORLD)
    return value.detach(), *torch.autograd.grad(value / dist.get_world_size(), [output, price])


def test_a_price_is_that_of_all_ranks_rows_where_the_loss_couples_them(two_ranks, generator):
    output, target = torch.randn(4, 3, generator=generator, requires_grad=True), torch.tensor([0, 1, 2, 0])
    price = torch.linspace(-1, 2, 4, requires_grad=True)
    wanted = MarginControlLoss()(output, target) + price.mean()
    values, outputs, prices = zip(
        *two_ranks.call(priced_over_ranks, output.detach(), target, price.detach()), strict=True
    )
    assert_close(list(values), [wanted.detach()] * 2)
    assert_close((torch.cat(outputs), torch.cat(prices)), torch.autograd.grad(wanted, [output, price]))


def test_a_price_without_rows_is_refused():
    with pytest.raises(ValueError, match="price must be None: Spread couples its batch and has no rows to price"):
        lw.Objective(Spread()).risk(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), price=torch.ones(4))


class Scores(nn.Module):
    """One output a row, as a vector."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1).double()

    def forward(self, x):
        return self.layer(x).squeeze(1)


@pytest.mark.parametrize("parts", [1, 3])
def test_an_attack_moves_no_buffer_of_the_loss_and_no_generator(batch, parts):
    x, target = batch
    attack, model = PGD(0.1, steps=5, random_start=False), nn.Linear(4, 3).double()
    objective = lw.Objective(Counting(), perturb=attack)
    list(objective.micro_batches(model, cut({"x": x, "target": target}, [10 - 2 * (parts - 1), *[2] * (parts - 1)])))
    again = torch.Generator().manual_seed(0)
    for rows in (10 - 2 * (parts - 1), *[2] * (parts - 1)):
        torch.rand(rows, generator=again, dtype=x.dtype)
    assert objective.loss.calls == parts
    assert torch.equal(objective.loss.generator.get_state(), again.get_state())

    score, binary = Scores(), (target > 0).double()
    torch.manual_seed(1)
    loss = EnsLoss(resample_lambda_every=2)
    lw.Objective(loss, perturb=attack)(score, x, binary)
    after = torch.rand(())
    torch.manual_seed(1)
    EnsLoss(resample_lambda_every=2)(score(x), binary)
    assert torch.rand(()) == after
    assert loss.calls == 1


def ens_over_ranks(x, target):
    torch.manual_seed(2)
    own = slice(0, 7) if dist.get_rank() == 0 else slice(7, 10)
    objective, model = lw.Objective(EnsLoss(resample_lambda_every=1), perturb=PGD(0.1, 5, random_start=False)), Scores()
    for _ in range(2):
        objective(model, x[own], target[own], process_group=dist.group.WORLD)
    return objective.loss.calls, objective.loss.drawn_lambda


def test_a_drawn_loss_stays_one_on_all_ranks_under_attack(two_ranks, batch):
    x, target = batch
    (calls, drawn), (others, other) = two_ranks.call(ens_over_ranks, x, (target > 0).double())
    assert calls == others == 2
    assert drawn == other != 0


class Seeing(Hardest):
    """It keeps the targets that it is given."""

    def forward(self, losses, *, index=None, group=None, target=None):
        self.seen = target
        return super().forward(losses)


@pytest.mark.parametrize(
    ("loss", "target", "seen"),
    [
        (SquaredLoss(), torch.linspace(-1, 1, 12).reshape(4, 3), lambda t: t.flatten()),
        (LogisticLoss(), torch.tensor([0.0, 1, 1]).expand(4, 3), lambda t: t.flatten()),
        (LogisticLoss(), torch.tensor([0, 1, 1]).expand(4, 3), lambda t: t.flatten()),
        (PseudoHuberLoss(), torch.linspace(-1, 1, 12).reshape(4, 3), lambda t: t),
        (CrossEntropyLoss(), torch.eye(3)[[0, 2, 1, 1]], lambda t: t),
        (CrossEntropyLoss(), torch.eye(3)[[0, 2, 1, 1] * 5].reshape(4, 5, 3).mT, lambda t: t.mT.reshape(20, 3)),
    ],
)
def test_weights_are_for_every_number_that_has_a_loss(loss, target, seen, generator):
    output = torch.randn(target.shape, generator=generator, dtype=torch.float64)
    target = target.double() if target.is_floating_point() else target
    losses, _ = loss.rows(output, target)
    wanted = (losses.square() / losses.mean()).mean()
    objective = lw.Objective(loss, Seeing())
    assert_close(objective.risk(output, target), wanted)
    assert_close(objective.weights.seen, seen(target))
    parts = [(output[rows], target[rows]) for rows in (slice(0, 3), slice(3, 3), slice(3, 4))]
    assert_close(sum(objective.micro_batches(nn.Identity(), parts)), wanted)
    assert_close(objective.weights.seen, seen(target))


X, TARGET = torch.ones(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"total": math.nan}, ValueError, "total must be finite and >= 0, got nan"),
        ({"total": -1}, ValueError, "total must be finite and >= 0, got -1"),
        ({"total": True}, TypeError, "total must be a number or a 0-d tensor, got bool"),
        ({"total": "abc"}, TypeError, "total must be a number or a 0-d tensor, got str"),
        ({"total": torch.ones(4)}, ValueError, "total must be a number or a 0-d tensor"),
        ({"row_weights": [1.0] * 4}, TypeError, "row_weights must be a tensor, got list"),
        (
            {"row_weights": torch.tensor([1.0, 2, -3, 1])},
            ValueError,
            "row_weights must be finite and >= 0, got -3 at 2",
        ),
        ({"row_weights": torch.full((4,), math.nan)}, ValueError, "row_weights must be finite and >= 0, got nan at 0"),
    ],
)
def test_a_wrong_total_or_weight_is_named(model, wrong, error, message):
    for weights in (None, lw.weights.UniformWeights()):
        with pytest.raises(error, match=message):
            lw.Objective(CrossEntropyLoss(), weights)(model, X, TARGET, **wrong)
        if error is TypeError:
            with pytest.raises(error, match=message):
                lw.Objective(CrossEntropyLoss(), weights).risk(model(X), TARGET, **wrong)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (([0],), TypeError, "target must be a tensor, got list"),
        (
            (torch.rand(3),),
            TypeError,
            r"target must be int64 classes, or probabilities \(n, C, ...\), got torch.float32",
        ),
        ((TARGET, [1.0] * 4), TypeError, "sample_weight must be a tensor, got list"),
        ((TARGET, torch.ones(1)), ValueError, r"sample_weight must have shape \(4,\), got \(1,\)"),
    ],
)
def test_a_total_of_what_is_wrong_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        CrossEntropyLoss().total_of(*given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_total_of_half_precision_weights_is_summed_in_more(generator, dtype):
    weight = (100 * torch.rand(3000, generator=generator)).to(dtype)
    target = torch.randint(3, (3000,), generator=generator)
    target[::7] = -100
    for given, kept in ((target, target != -100), (torch.rand(3000, 3), target > -200)):
        assert CrossEntropyLoss().total_of(given, weight).item() == pytest.approx(math.fsum(weight[kept].tolist()))


@pytest.mark.parametrize("total", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
@pytest.mark.parametrize("weights", [None, Hardest()])
def test_a_step_without_a_row_that_counts_is_0_and_its_penalties(model, batch, total, weights):
    x, target = batch
    ignored, none = torch.full_like(target, -100), torch.zeros(10, dtype=torch.float64)
    objective = lw.Objective(CrossEntropyLoss(), weights, penalties=[WeightMagnitudePenalty(0.3)])
    penalty = 0.3 * model.weight.square().sum() / 2
    for given in ({"target": ignored}, {"target": target, "sample_weight": none}):
        wanted = torch.autograd.grad(objective(model, x, **given), [*model.parameters()], allow_unused=True)
        value = objective(model, x, **given, total=total)
        assert_close(value, penalty)
        assert_close(torch.autograd.grad(value, [*model.parameters()], allow_unused=True), wanted)
        parts = cut({"x": x, **given}, [4, 6])
        assert_close(sum(objective.micro_batches(model, parts)), penalty)
    assert CrossEntropyLoss()(model(x), ignored, total=total) == 0


def test_a_call_that_is_refused_moves_no_memory(model, remembering, right):
    remembering(model, **right)
    wrongs = [
        {"sample_weight": -torch.ones(10)},
        {"sample_weight": torch.ones(9)},
        {"total": "a"},
        {"row_weights": torch.ones(9)},
        {"row_weights": -torch.ones(10)},
        {"x": torch.full((10, 4), math.nan, dtype=torch.float64)},
    ]
    if remembering.weights is not None and remembering.weights.needs_group:
        wrongs += [{"group": None}, {"group": torch.full((10,), 2)}]
    for wrong in wrongs:
        assert_refused(remembering, lambda wrong=wrong: remembering(model, **{**right, **wrong}))
    assert_refused(
        remembering.loss,
        lambda: remembering.loss(model(right["x"]), right["target"], index=right["index"], sample_weight=torch.ones(1)),
    )


def test_what_is_written_at_the_end_of_a_call_is_merged_as_each_memory_says(model, right):
    together, alone = (lw.Objective(lw.losses.AdaptiveLDRLoss(10), lw.weights.PMDROWeights(10)) for _ in range(2))
    index = torch.tensor([0, 1, 2, 3, 0, 5, 6, 7, 8, 9])
    together(model, **{**right, "index": index})
    alone(model, **right)
    assert together.loss.lam[0] == torch.minimum(alone.loss.lam[0], alone.loss.lam[4])
    assert_close(together.weights.log_weights[0], (alone.weights.log_weights[0] + alone.weights.log_weights[4]) / 2)
    for buffer, single in zip(together.buffers(), alone.buffers(), strict=True):
        assert_close(buffer[5:], single[5:])
