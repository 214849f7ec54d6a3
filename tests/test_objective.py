import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lossworks as lw
from lossworks.losses import CrossEntropyLoss
from lossworks.penalties import WeightMagnitude
from lossworks.perturb import GaussianNoise
from lossworks.weights import ClassBalanced, SampleWeights


@pytest.fixture
def batch(generator):
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (10,), generator=generator)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def test_is_the_formula_term_by_term(model, batch):
    x, target = batch
    counts = torch.bincount(target, minlength=3).double()
    objective = lw.Objective(
        CrossEntropyLoss(), ClassBalanced(counts), GaussianNoise(0.2), [WeightMagnitude(0.1), WeightMagnitude(0.2)]
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
        lw.Objective(Spread(), weights=lw.weights.Uniform())
    assert_close(lw.Objective(Spread())(nn.Identity(), torch.tensor([1.0, 3.0]), torch.ones(2)), torch.tensor(2.0))


def test_a_missing_argument_is_named(batch):
    with pytest.raises(ValueError, match="SampleWeights needs index="):
        lw.Objective(CrossEntropyLoss(), SampleWeights(torch.ones(10))).risk(torch.zeros(10, 3), batch[1])


class Hardest(lw.Weighting):
    """Weights that are the losses themselves: they couple the batch."""

    couples_batch = True

    def forward(self, losses, *, index=None, group=None, target=None):
        return losses / losses.mean()


class Spread(lw.BatchLoss):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, output, target, *, sample_weight=None):
        return self.scale * output[:, 0].var() + output.gather(1, target[:, None]).var()


def gradients_of(values, model, objective):
    total = 0.0
    for value in values:
        value.backward()
        total = total + value.detach()
    parameters = [*model.parameters(), *objective.parameters()]
    return total, [parameter.grad.clone() for parameter in parameters]


def cut(batch, sizes):
    pieces = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: pieces[name][number] for name in batch} for number in range(len(sizes))]


@pytest.mark.parametrize("sizes", [[10], [3, 3, 4], [0, 9, 1], [1] * 10])
@pytest.mark.parametrize("loss", [CrossEntropyLoss(), CrossEntropyLoss(reduction="sum"), Spread()])
def test_micro_batches_add_up_to_the_whole(model, batch, loss, sizes):
    x, target = batch
    weights = None if isinstance(loss, Spread) else Hardest()
    objective = lw.Objective(copy.deepcopy(loss), weights, penalties=[WeightMagnitude(0.3)])
    wanted = gradients_of([objective(model, x, target)], model, objective)
    for parameter in (*model.parameters(), *objective.parameters()):
        parameter.grad = None
    parts = cut({"x": x, "target": target}, sizes)
    assert_close(gradients_of(objective.micro_batches(model, parts), model, objective), wanted)


def test_weights_found_before_are_not_asked_for_again(model, batch):
    x, target = batch
    objective = lw.Objective(CrossEntropyLoss(), Hardest(), penalties=[WeightMagnitude(0.3)])
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


def test_the_second_pass_draws_what_the_first_drew(batch):
    x, target = batch
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    seen = []
    model.register_forward_hook(lambda _m, _i, output: seen.append(output.detach().clone()))
    objective = lw.Objective(CrossEntropyLoss(), Hardest(), GaussianNoise(0.5))
    parts = [(x[:4], target[:4]), (x[4:], target[4:])]
    torch.manual_seed(3)
    values = torch.stack([value.detach() for value in objective.micro_batches(model, parts)])
    after = torch.rand(())
    assert len(seen) == 4
    assert_close(seen[2:], seen[:2], atol=0, rtol=0)
    losses = nn.functional.cross_entropy(torch.cat(seen[:2]), target, reduction="none")
    assert_close(values.sum(), (losses / losses.mean() * losses).mean())
    torch.manual_seed(3)
    list(objective.micro_batches(model, parts))
    assert torch.rand(()) == after


def test_batch_statistics_are_updated_once_a_part(batch):
    x, target = batch
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    list(lw.Objective(CrossEntropyLoss(), Hardest()).micro_batches(model, [(x[:4], target[:4]), (x[4:], target[4:])]))
    assert model[0].num_batches_tracked == 2


def test_a_learned_hyperparameter_has_the_wholes_gradient(model, batch):
    from lossworks.losses import EnsLoss, LDRLoss

    x, target = batch
    lam = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    for loss, weights in ((LDRLoss(lam), None), (LDRLoss(lam), Hardest()), (EnsLoss(lam), None)):
        objective = lw.Objective(loss, weights)
        binary = isinstance(loss, EnsLoss)
        network = nn.Sequential(model, nn.Linear(3, 1).double(), nn.Flatten(0)) if binary else model
        given = (target > 0).double() if binary else target
        torch.manual_seed(0)
        whole = torch.autograd.grad(objective(network, x, given), lam, allow_unused=True)[0]
        torch.manual_seed(0)
        parts = [(x[:3], given[:3]), (x[3:], given[3:])]
        slopes = [
            torch.autograd.grad(value, lam, allow_unused=True)[0] for value in objective.micro_batches(network, parts)
        ]
        found = [slope for slope in slopes if slope is not None]
        assert (whole is None and not found) or torch.allclose(whole, sum(found))


def test_a_row_in_two_micro_batches_is_remembered_as_in_one(model, batch):
    x, target = batch
    index = torch.tensor([0, 1, 2, 3, 0, 1, 4, 5, 0, 6])

    def trained(parts):
        objective = lw.Objective(lw.losses.AdaptiveLDRLoss(num_samples=8), penalties=[WeightMagnitude(0.1)])
        value = sum(objective.micro_batches(model, parts))
        return objective.loss.lam, value

    whole = {"x": x, "target": target, "index": index}
    for sizes in ([5, 5], [1, 8, 1], [0, 10]):
        assert_close(trained(cut(whole, sizes)), trained([whole]))


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


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "parts must hold at least one micro-batch"),
        ([{"x": torch.ones(1, 4)}], "parts must each have target, got x"),
        ([{"x": torch.ones(1, 4), "target": torch.zeros(1), "weight": torch.ones(1)}], "parts must be one of 'x'"),
        (
            [{"x": torch.ones(1, 4), "target": torch.zeros(1)}, {"x": 1, "target": 1, "index": 1}],
            "parts must all have x, target, got others",
        ),
    ],
)
def test_bad_micro_batches_are_named(model, parts, message):
    with pytest.raises(ValueError, match=message):
        next(lw.Objective(CrossEntropyLoss()).micro_batches(model, parts))


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
