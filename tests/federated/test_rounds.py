import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks import Objective
from lossworks.federated import (
    FederatedAdversarialTrainer,
    ParticipationWeights,
    federated_round,
    principal_gradient_aggregate,
)
from lossworks.losses import CrossEntropyLoss
from lossworks.perturb import PGD


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def clients(generator):
    return [(torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 3) for n in (6, 6, 6)]


def attack():
    return PGD(0.1, steps=3, random_start=False)


def by_hand(model, x, y, steps, lr, perturb):
    """Plain steps, each on the inputs that the attack finds for the model of the moment."""
    model = copy.deepcopy(model)
    for _ in range(steps):
        loss = lambda inputs: nn.functional.cross_entropy(model(inputs), y, reduction="none")  # noqa: E731
        found = x if perturb is None else perturb(loss, x)
        gradients = torch.autograd.grad(loss(found).mean(), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
    return model.state_dict()


def assert_same(state, other):
    for name in other:
        assert_close(state[name], other[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("perturb", [None, attack()])
def test_one_client_is_plain_training(model, clients, perturb):
    before = copy.deepcopy(model.state_dict())
    state, info = federated_round(model, clients[:1], CrossEntropyLoss(), perturb, local_steps=4, lr_local=0.3)
    assert_same(state, by_hand(model, *clients[0], 4, 0.3, perturb))
    assert_same(model.state_dict(), before)
    assert info.losses.shape == (1, 4)
    assert info.losses[0, -1] < info.losses[0, 0]


def test_one_step_of_equal_clients_is_one_step_on_all_rows(model, clients):
    state, _ = federated_round(model, clients, CrossEntropyLoss(), attack(), local_steps=1, lr_local=0.3)
    pooled = [torch.cat(rows) for rows in zip(*clients, strict=True)]
    assert_same(state, by_hand(model, *pooled, 1, 0.3, attack()))


def test_one_step_by_size_is_one_step_on_all_rows(model, clients):
    clients[0] = tuple(rows[:2] for rows in clients[0])
    state, _ = federated_round(model, clients, CrossEntropyLoss(), local_steps=1, lr_local=0.3, weights="size")
    pooled = [torch.cat(rows) for rows in zip(*clients, strict=True)]
    assert_same(state, by_hand(model, *pooled, 1, 0.3, None))


def test_alike_clients_are_one(model, clients):
    one, _ = federated_round(model, clients[:1], CrossEntropyLoss(), attack())
    three, _ = federated_round(model, clients[:1] * 3, CrossEntropyLoss(), attack())
    turned, _ = federated_round(
        model, clients[:1] * 3, CrossEntropyLoss(), attack(), aggregate=principal_gradient_aggregate
    )
    assert_same(three, one)
    assert_same(turned, one)


def test_a_ball_without_radius_is_federated_averaging(model, clients):
    still, _ = federated_round(model, clients, CrossEntropyLoss(), PGD(0.0, steps=2))
    plain, _ = federated_round(model, clients, CrossEntropyLoss())
    assert_same(still, plain)


def test_the_order_of_the_clients_does_not_matter(model, clients):
    forth, _ = federated_round(model, clients, CrossEntropyLoss(), attack())
    back, _ = federated_round(model, clients[::-1], CrossEntropyLoss(), attack())
    assert_same(forth, back)


def test_a_server_that_does_not_move_stays(model, clients):
    state, _ = federated_round(model, clients, CrossEntropyLoss(), lr_global=0.0)
    assert_same(state, model.state_dict())


def test_buffers_are_averaged_and_counts_taken_from_the_furthest(clients):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    state, _ = federated_round(model, clients, CrossEntropyLoss(), local_steps=2, lr_global=0.0)
    alone = [federated_round(model, [client], CrossEntropyLoss(), local_steps=2)[0] for client in clients]
    assert_close(state["1.running_mean"], torch.stack([own["1.running_mean"] for own in alone]).mean(dim=0))
    assert state["1.num_batches_tracked"] == 2
    assert_same({"w": state["0.weight"]}, {"w": model[0].weight.detach()})


def test_buffers_are_averaged_by_shares_of_weights_that_do_not_sum_to_one(clients):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    weights = torch.tensor([0.2, 0.6, 1.2], dtype=torch.float64)
    state, _ = federated_round(model, clients, CrossEntropyLoss(), local_steps=2, weights=weights)
    alone = [federated_round(model, [client], CrossEntropyLoss(), local_steps=2)[0] for client in clients]
    for name in ("1.running_mean", "1.running_var"):
        assert_close(state[name], 0.1 * alone[0][name] + 0.3 * alone[1][name] + 0.6 * alone[2][name])


def test_tied_weights_move_as_one(clients):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)).double()
    model[2].weight = model[0].weight
    state, _ = federated_round(model, clients, CrossEntropyLoss(), lr_global=0.5)
    assert not torch.equal(state["0.weight"], model[0].weight)
    assert torch.equal(state["0.weight"], state["2.weight"])


def test_absent_clients_do_not_count(model, clients):
    absent = (torch.full((2, 4), torch.nan, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
    weights = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    state, info = federated_round(model, [*clients[:2], absent, absent], CrossEntropyLoss(), weights=weights)
    assert_same(state, federated_round(model, clients[:2], CrossEntropyLoss())[0])
    assert bool(info.losses[2:].isnan().all())
    assert info.drift[2:].tolist() == [0, 0]


def test_rows_are_drawn_from_the_generator(model, clients):
    def drawn(seed):
        options = {"batch_size": 2, "generator": torch.Generator().manual_seed(seed)}
        return federated_round(model, clients, CrossEntropyLoss(), **options)[0]

    assert_same(drawn(1), drawn(1))
    assert not torch.equal(drawn(1)["0.weight"], drawn(2)["0.weight"])


def trainer(model):
    return FederatedAdversarialTrainer(
        model,
        CrossEntropyLoss(),
        attack(),
        participation=ParticipationWeights(3),
        batch_size=3,
        generator=torch.Generator().manual_seed(0),
    )


def test_resumed_rounds_are_those_of_one_run(model, clients):
    present = torch.tensor([[True, False, True], [False, False, False], [True, True, False], [True, True, True]])
    whole = trainer(copy.deepcopy(model))
    for there in present:
        whole.round(clients, there)
    first = trainer(copy.deepcopy(model))
    for there in present[:2]:
        first.round(clients, there)
    second = trainer(copy.deepcopy(model))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for there in present[2:]:
        second.round(clients, there)
    assert second.rounds == whole.rounds == 4
    assert_same(second.model.state_dict(), whole.model.state_dict())


def test_those_who_are_there_share_what_all_weigh(model, clients):
    run = FederatedAdversarialTrainer(copy.deepcopy(model), CrossEntropyLoss(), local_steps=2)
    run.round(clients, [True, True, False])
    assert_same(run.model.state_dict(), federated_round(model, clients[:2], CrossEntropyLoss(), local_steps=2)[0])


def test_a_round_that_fails_counts_nothing(model, clients):
    run = trainer(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="client 1 has none"):
        run.round([clients[0], (torch.ones(0, 4), torch.ones(0).long()), clients[2]])
    assert run.rounds == 0
    assert run.participation.intervals.tolist() == [0, 0, 0]
    assert_same(run.model.state_dict(), before)


def test_trains_a_model_that_withstands(model, clients):
    run = FederatedAdversarialTrainer(model, CrossEntropyLoss(), attack(), lr_local=0.5)
    objective = Objective(CrossEntropyLoss(), perturb=attack())
    pooled = [torch.cat(rows) for rows in zip(*clients, strict=True)]
    before = objective(model, *pooled)
    for _ in range(10):
        run.round(clients)
    assert objective(model, *pooled) < before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": []}, "clients must hold at least one"),
        ({"clients": [torch.ones(2)]}, "pairs"),
        ({"clients": [(torch.ones(2, 4), torch.ones(3))]}, "client 0 has"),
        ({"model": None}, "model"),
        ({"loss": torch.sum}, "loss"),
        ({"attack": "pgd"}, "attack must be a Perturbation"),
        ({"local_steps": 0}, "local_steps"),
        ({"lr_local": 0}, "lr_local"),
        ({"lr_local": 1e300}, "lr_local must be in"),
        ({"lr_global": -1}, "lr_global"),
        ({"weights": "rows"}, "weights must be one of"),
        ({"weights": torch.ones(2)}, "one number for each of 3"),
        ({"batch_size": 0}, "batch_size"),
        ({"generator": False}, "generator"),
        ({"aggregate": lambda changes: changes}, "aggregate must return shape"),
        ({"aggregate": False}, "aggregate must be a function of the clients' changes, got bool"),
    ],
)
def test_bad_arguments_are_named(model, clients, change, message):
    given = {"model": model, "clients": clients, "loss": CrossEntropyLoss()} | change
    with pytest.raises((ValueError, TypeError), match=message):
        federated_round(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "options must be of"),
        ({"participation": 1}, "participation"),
        ({"participation": ParticipationWeights(3), "weights": "size"}, "weights"),
    ],
)
def test_bad_options_are_named(model, options, message):
    with pytest.raises(TypeError, match=message):
        FederatedAdversarialTrainer(model, CrossEntropyLoss(), **options)


def test_present_says_who_of_all(model, clients):
    with pytest.raises(ValueError, match="one bool for each of 3 clients"):
        FederatedAdversarialTrainer(model, CrossEntropyLoss()).round(clients, [True])


def test_losses_keep_the_digits_of_the_model(model, clients):
    _, info = federated_round(model, clients, CrossEntropyLoss(), local_steps=1)
    right = torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in clients]).detach()
    assert_close(info.losses[:, 0], right, rtol=1e-14, atol=0)
    _, info = federated_round(model.half(), [(x.half(), y) for x, y in clients], CrossEntropyLoss(), local_steps=1)
    assert info.losses.dtype == info.drift.dtype == torch.float32


def test_a_step_that_leaves_the_precision_is_named(model, clients):
    single = [(100 * x.float(), y) for x, y in clients]
    with pytest.raises(ValueError, match="client 0's is not with 3"):
        federated_round(model.float(), single, CrossEntropyLoss(), lr_local=3.4e38, local_steps=1)
