from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks.diagnose import foundation_model_robustness, oracle_constrained_attack


class Side(nn.Module):
    """Two classes by the side of a hyperplane."""

    def __init__(self, normal):
        super().__init__()
        self.normal = nn.Parameter(torch.tensor(normal, dtype=torch.float64))

    def forward(self, x):
        score = x @ self.normal
        return torch.stack([-score, score], dim=1)


@pytest.fixture
def batch(generator):
    return torch.randn(60, 3, generator=generator, dtype=torch.float64)


@pytest.fixture
def networks(batch):
    """A network, a wider one as the oracle, and the oracle's answers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    oracle = nn.Sequential(nn.Linear(3, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    return model, oracle, model(batch).argmax(dim=1)


def test_a_row_walks_straight_until_a_linear_oracle_stops_it(batch):
    model, oracle, step, budget = Side([1.0, -2.0, 0.5]), Side([2.0, 0.3, 1.0]), 0.05, 12
    target = (batch @ oracle.normal > 0).long()
    side = 2 * target - 1
    # What each step takes from the oracle's score, and so how many it bears.
    taken = step * (model.normal.sign() @ oracle.normal).detach()
    bears = ((side * (batch @ oracle.normal)).detach() / taken).ceil().sub(1).clamp(max=budget).long()
    found = oracle_constrained_attack(model, oracle, batch, target, step=step, budget=budget)
    assert 0 < (bears < budget).sum() < len(batch)
    assert torch.equal(found.steps, bears)
    moved = batch - step * (bears * side)[:, None] * model.normal.sign().detach()
    assert_close(found.x, moved)
    before, after = (((rows @ model.normal > 0).long() == target).double().mean() for rows in (batch, moved))
    score = foundation_model_robustness(model, oracle, batch, target, step=step, budget=budget)
    assert score.standard == pytest.approx(float(before))
    assert score.perturbed == pytest.approx(float(after))
    assert score.fmr == pytest.approx(float(after / before))
    assert score.perturbed < score.standard


def test_every_row_keeps_the_oracles_answer_and_those_it_gets_wrong_stay_as_they_are(networks, batch):
    model, oracle, target = networks
    agreed = oracle(batch).argmax(dim=1) == target
    assert 0 < agreed.sum() < len(batch)
    found = oracle_constrained_attack(model, oracle, batch, target, step=0.1)
    assert torch.equal(oracle(found.x).argmax(dim=1) == target, agreed)
    assert torch.equal(found.x[~agreed], batch[~agreed])
    assert not found.steps[~agreed].any()
    assert found.steps[agreed].any()
    score = foundation_model_robustness(model, oracle, batch, target, step=0.1)
    right = (model(found.x).argmax(dim=1) == target)[agreed]
    assert score.left_out == int((~agreed).sum())
    assert score.standard == 1.0
    assert score.perturbed == pytest.approx(float(right.double().mean()))
    assert score.fmr < 1


def test_more_steps_never_help_the_model_though_a_long_step_may_fool_it_and_the_next_undo_that(batch):
    class Wave(nn.Module):
        def forward(self, x):
            score = (3 * x[:, :1]).sin()
            return torch.cat([-score, score], dim=1)

    target = ((3 * batch[:, 0]).sin() > 0).long()
    kept = [
        foundation_model_robustness(Wave(), lambda x: target[: len(x)], batch, target, step=0.7, budget=budget).fmr
        for budget in range(9)
    ]
    assert kept[0] == 1
    assert kept == sorted(kept, reverse=True)
    assert kept[1] < 1


def test_a_row_gets_the_smallest_margin_that_the_oracle_accepted(networks, batch):
    model, oracle, target = networks
    step, budget, row = 0.7, 8, 0
    agreed = (oracle(batch).argmax(dim=1) == target).nonzero().flatten()
    for row in agreed[:10].tolist():
        x, least, wanted = batch[row : row + 1].clone(), torch.inf, None
        for _ in range(budget + 1):
            if int(oracle(x).argmax()) != int(target[row]):
                break
            logits = model(x)[0].tolist()
            margin = logits[target[row]] - max(value for k, value in enumerate(logits) if k != int(target[row]))
            if margin < least:
                least, wanted = margin, x
            leaf = x.detach().requires_grad_()
            loss = nn.functional.cross_entropy(model(leaf), target[row : row + 1])
            x = x + step * torch.autograd.grad(loss, leaf)[0].sign()
        found = oracle_constrained_attack(
            model, oracle, batch[row : row + 1], target[row : row + 1], step=step, budget=8
        )
        assert_close(found.x, wanted)


def test_a_model_is_not_fooled_where_it_is_the_oracle_or_the_oracle_takes_nothing_else(networks, batch):
    model, _, _ = networks
    target = torch.arange(len(batch)) % 3
    assert foundation_model_robustness(model, model, batch, target, step=0.3).fmr == 1

    def only_these(rows):
        known = (rows[:, None] == batch).all(dim=2)
        return torch.where(known.any(dim=1), target[known.long().argmax(dim=1)], (target[0] + 7).expand(len(rows)))

    score = foundation_model_robustness(model, only_these, batch, target)
    assert score.fmr == 1
    assert score.left_out == 0
    assert torch.equal(oracle_constrained_attack(model, only_these, batch, target).x, batch)


def test_of_several_oracles_more_than_half_must_agree(networks, batch):
    model, oracle, target = networks

    def no(rows):
        return torch.full((len(rows),), 9)

    alone = oracle_constrained_attack(model, oracle, batch, target, step=0.1)
    most = oracle_constrained_attack(model, [oracle, no, oracle], batch, target, step=0.1)
    assert_close(most, alone)
    half = oracle_constrained_attack(model, [oracle, no], batch, target, step=0.1)
    assert not half.steps.any()


def test_moves_the_code_of_a_generator_by_its_own_slope(generator, batch):
    mix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    model, target = Side([1.0, -2.0, 0.5]), torch.ones(len(batch), dtype=torch.int64)
    found = oracle_constrained_attack(
        model,
        lambda x: torch.ones(len(x), dtype=torch.int64),
        batch,
        target,
        step=0.1,
        budget=4,
        encoder=lambda x: torch.linalg.solve(mix, x, left=False),
        decoder=lambda z: z @ mix,
    )
    assert_close(found.x, batch - 4 * 0.1 * (mix @ model.normal).sign() @ mix)


def test_sparse_steps_move_the_largest_slopes_alone(batch):
    model, target = Side([1.0, -2.0, 0.5]), torch.ones(len(batch), dtype=torch.int64)
    always = partial(torch.full_like, target[:1], 1)
    found = oracle_constrained_attack(
        model, lambda x: always().expand(len(x)), batch, target, step=0.1, budget=3, sparse=0.5
    )
    assert_close(found.x - batch, torch.tensor([-0.3, 0.3 * 2 / 2, 0.0], dtype=torch.float64).expand_as(batch))


def test_stays_in_the_datas_range(networks, generator):
    model, oracle, _ = networks
    x = torch.rand(30, 3, generator=generator, dtype=torch.float64)
    found = oracle_constrained_attack(model, oracle, x, oracle(x).argmax(dim=1), step=0.2, bounds=(0.0, 1.0))
    assert found.steps.any()
    assert ((found.x >= 0) & (found.x <= 1)).all()


def test_modes_and_gradients_are_left_alone(batch):
    model, oracle = (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).double() for _ in range(2))
    oracle[0].eval()
    target = torch.arange(len(batch)) % 2
    first, again = (oracle_constrained_attack(model, oracle, batch, target) for _ in range(2))
    assert_close(first, again)
    assert (model[1].training, oracle[0].training, oracle[1].training) == (True, False, True)
    assert model[0].weight.grad is None


def test_bad_arguments_are_named(networks, batch):
    model, oracle, target = networks
    given = {"model": model, "oracle": oracle, "x": batch, "target": target}
    for bad, error, name in (
        ({"model": 3}, TypeError, "model must be a module"),
        ({"oracle": 3}, TypeError, "oracle must be a sequence"),
        ({"oracle": [oracle, 3]}, TypeError, "oracle must be a function"),
        ({"oracle": []}, ValueError, "oracle must be one function at least"),
        ({"oracle": lambda x: x[:, 0]}, ValueError, r"oracle must give logits \(60, C\)"),
        ({"oracle": nn.Linear(5, 2)}, ValueError, r"oracle must take rows of shape \(3,\), which fails"),
        ({"x": batch.long()}, TypeError, "x must be floating-point"),
        ({"target": target + 3}, ValueError, "target must be in"),
        ({"step": 0.0}, ValueError, "step"),
        ({"budget": -1}, ValueError, "budget"),
        ({"sparse": 0.0}, ValueError, "sparse"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds"),
        ({"encoder": nn.Identity()}, ValueError, "encoder and decoder"),
        ({"encoder": nn.Identity(), "decoder": 3}, TypeError, "decoder must be a function"),
        ({"encoder": nn.Identity(), "decoder": lambda z: z[:, :1]}, ValueError, "decoder must give inputs of shape"),
        ({"encoder": nn.Identity(), "decoder": nn.Linear(4, 3)}, ValueError, "decoder must take rows of shape"),
        ({"encoder": lambda x: x.sum(), "decoder": nn.Identity()}, ValueError, "encoder must give a code"),
        ({"encoder": nn.Identity(), "decoder": nn.Identity(), "bounds": (0.0, 1.0)}, ValueError, "bounds must be None"),
    ):
        for ask in (oracle_constrained_attack, foundation_model_robustness):
            with pytest.raises(error, match=name):
                ask(**{**given, **bad})
    with pytest.raises(ValueError, match="target must be what oracle and model both answer"):
        foundation_model_robustness(model, lambda x: torch.full((len(x),), 9), batch, target)
