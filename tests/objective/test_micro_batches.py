"""A batch that comes in parts has the value, the gradients and the memories of the whole."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lossworks as lw
from lossworks.layers import NestedDropout
from lossworks.losses import CrossEntropyLoss, EnsLoss, LDRLoss, MarginControlLoss
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.perturb import GaussianNoise
from tests.objective.parts import Counting, Hardest, Spread, assert_refused, cut

X, TARGET = torch.ones(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


def gradients_of(values, model, objective):
    total = 0.0
    for value in values:
        value.backward()
        total = total + value.detach()
    parameters = [*model.parameters(), *objective.parameters()]
    return total, [parameter.grad.clone() for parameter in parameters]


@pytest.mark.parametrize("sizes", [[10], [3, 3, 4], [0, 9, 1], [1] * 10])
@pytest.mark.parametrize("loss", [CrossEntropyLoss(), CrossEntropyLoss(reduction="sum"), Spread()])
def test_micro_batches_add_up_to_the_whole(model, batch, loss, sizes):
    x, target = batch
    weights = None if isinstance(loss, Spread) else Hardest()
    objective = lw.Objective(copy.deepcopy(loss), weights, penalties=[WeightMagnitudePenalty(0.3)])
    wanted = gradients_of([objective(model, x, target)], model, objective)
    for parameter in (*model.parameters(), *objective.parameters()):
        parameter.grad = None
    parts = cut({"x": x, "target": target}, sizes)
    assert_close(gradients_of(objective.micro_batches(model, parts), model, objective), wanted)


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
        objective = lw.Objective(lw.losses.AdaptiveLDRLoss(num_samples=8), penalties=[WeightMagnitudePenalty(0.1)])
        value = sum(objective.micro_batches(model, parts))
        return objective.loss.lam, value

    whole = {"x": x, "target": target, "index": index}
    for sizes in ([5, 5], [1, 8, 1], [0, 10]):
        assert_close(trained(cut(whole, sizes)), trained([whole]))


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


class Priced(lw.Objective):
    """The squared outputs as each row's price."""

    def _outputs(self, model, x, changed, target):
        output = model(changed)
        return output, output.square().sum(dim=1)


@pytest.mark.parametrize("sizes", [[10], [3, 0, 7]])
@pytest.mark.parametrize("weights", [None, Hardest()])
def test_a_price_on_rows_of_a_coupled_loss_is_split_with_its_gradient(model, batch, sizes, weights):
    x, target = batch
    output = model(x)
    losses = MarginControlLoss(reduction="none")(output, target) + output.square().sum(dim=1)
    factors = 1 if weights is None else (losses / losses.mean()).detach()
    wanted = (factors * losses).mean()
    gradients = torch.autograd.grad(wanted, list(model.parameters()))
    values = Priced(MarginControlLoss(), weights).micro_batches(model, cut({"x": x, "target": target}, sizes))
    assert_close(gradients_of(values, model, nn.Module()), (wanted.detach(), list(gradients)))


@pytest.mark.parametrize("weights", [None, Hardest()])
def test_a_layer_with_its_own_generator_draws_once_a_part(batch, weights):
    x, target = batch
    loss = MarginControlLoss() if weights is None else CrossEntropyLoss()

    def network():
        torch.manual_seed(0)
        dropout = NestedDropout(8, generator=torch.Generator().manual_seed(3))
        return nn.Sequential(nn.Linear(4, 8), dropout, nn.Linear(8, 3)).double()

    once = network()
    outputs = torch.cat([once(x[:4]), once(x[4:])])
    wanted = lw.Objective(loss, weights).risk(outputs, target)
    gradients = torch.autograd.grad(wanted, list(once.parameters()))
    model = network()
    values = lw.Objective(loss, weights).micro_batches(model, [(x[:4], target[:4]), (x[4:], target[4:])])
    assert_close(gradients_of(values, model, nn.Module()), (wanted.detach(), list(gradients)))
    assert torch.equal(model[1].generator.get_state(), once[1].generator.get_state())


def test_a_loss_with_its_own_generator_draws_once_a_part(model, batch):
    x, target = batch
    objective = lw.Objective(Counting(), Hardest())
    value = sum(objective.micro_batches(model, [(x[:4], target[:4]), (x[4:], target[4:])]))
    generator = torch.Generator().manual_seed(0)
    noise = torch.cat([torch.rand(rows, generator=generator, dtype=x.dtype) for rows in (4, 6)])
    losses = noise * nn.functional.cross_entropy(model(x), target, reduction="none")
    assert_close(value, (losses * losses.detach() / losses.detach().mean()).mean())
    assert torch.equal(objective.loss.generator.get_state(), generator.get_state())


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), MarginControlLoss()])
def test_what_learns_beside_the_model_is_refused_in_parts(model, batch, loss):
    x, target = batch
    part = {"x": x, "target": target, "sample_weight": torch.ones(10, dtype=x.dtype, requires_grad=True)}
    with pytest.raises(ValueError, match="sample_weight must not require grad in micro-batches"):
        next(lw.Objective(loss).micro_batches(model, [part]))


@pytest.mark.parametrize(("loss", "weights"), [(CrossEntropyLoss(), Hardest()), (MarginControlLoss(), None)])
def test_a_buffer_that_the_model_replaces_moves_once_a_part(batch, loss, weights):
    class Seen(nn.Linear):
        def __init__(self):
            super().__init__(4, 3, dtype=torch.float64)
            self.register_buffer("rows", torch.zeros(()))
            self.register_buffer("first", None)

        def forward(self, x):
            self.rows = self.rows + len(x)
            self.first = self.first or self.rows
            return super().forward(x) * self.rows

    x, target = batch
    model, once = Seen(), Seen()
    once.load_state_dict(model.state_dict())
    wanted = lw.Objective(loss, weights).risk(torch.cat([once(x[:4]), once(x[4:])]), target)
    parts = [(x[:4], target[:4]), (x[4:], target[4:])]
    assert_close(sum(lw.Objective(loss, weights).micro_batches(model, parts)), wanted)
    assert (model.rows, model.first) == (10, 4)


class Named(nn.Module):
    """A model of an input by name."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x["features"])


def test_the_input_of_micro_batches_need_be_no_tensor(model, batch):
    x, target = batch
    objective = lw.Objective(CrossEntropyLoss(), Hardest())
    parts = [({"features": x[rows]}, target[rows]) for rows in torch.arange(10).split(4)]
    assert_close(sum(objective.micro_batches(Named(model), parts)), objective(model, x, target))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(X, TARGET, TARGET)], r"parts must each be \(x, target\), or a mapping with both, got \(tensor"),
        ([(X,)], r"parts must each be \(x, target\)"),
        ([X], r"parts must each be \(x, target\), or a mapping with both, got a tensor of shape \(4, 4\)"),
        ([None], r"parts must each be \(x, target\), or a mapping with both, got None"),
        (["ab"], r"parts must each be \(x, target\), or a mapping with both, got 'ab'"),
        (3, "parts must be a sequence of micro-batches, got 3"),
        ({"x": X, "target": TARGET}, "parts must be a sequence of micro-batches"),
        ([(X, [0, 1, 2, 0])], "target must be a tensor, got list"),
        ([{"x": X, "target": TARGET, "sample_weight": [1.0] * 4}], "sample_weight must be a tensor, got list"),
    ],
)
def test_micro_batches_of_another_type_are_named(model, parts, message):
    for loss, weights in ((CrossEntropyLoss(), None), (CrossEntropyLoss(), Hardest()), (Spread(), None)):
        with pytest.raises(TypeError, match=message):
            next(lw.Objective(loss, weights).micro_batches(model, parts))


def test_micro_batches_that_are_refused_move_no_memory(model, remembering, right):
    remembering(model, **right)
    for name, wrong in (
        ("sample_weight", -torch.ones(6)),
        ("sample_weight", torch.ones(5)),
        ("index", torch.arange(5)),
        ("x", torch.full((6, 4), math.nan, dtype=torch.float64)),
    ):
        parts = cut(right, [4, 6])
        parts[1][name] = wrong
        assert_refused(remembering, lambda parts=parts: list(remembering.micro_batches(model, parts)))


def test_micro_batches_ask_no_weighting_before_all_sample_weights_are_right(model, right):
    class OfRows(CrossEntropyLoss):
        def total_of(self, target, sample_weight=None):
            return torch.tensor(len(target))

    objective = lw.Objective(OfRows(), lw.weights.PMDROWeights(10))
    parts = cut(right, [4, 6])
    parts[1]["sample_weight"] = -torch.ones(6)
    assert_refused(objective, lambda: list(objective.micro_batches(model, parts)))
