import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.federated import federated_loss_decomposition
from lossworks.losses import CrossEntropyLoss


@pytest.fixture
def clients(generator):
    return [(torch.randn(n, 3, generator=generator), torch.arange(n) % 2) for n in (4, 10)]


@pytest.fixture
def models(generator):
    return [nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)) for _ in range(3)]


def test_the_terms_are_the_losses_and_sum_to_the_whole(clients, models):
    found = federated_loss_decomposition(models[0], models[1:], clients, CrossEntropyLoss(), weights="size")
    assert all(module.training for module in models)
    for module in models:
        module.eval()
    rows = torch.tensor([4 / 14, 10 / 14])
    x, y = (torch.cat(part) for part in zip(*clients, strict=True))
    own = sum(p * cross_entropy(m(x), y) for p, m, (x, y) in zip(rows, models[1:], clients, strict=True))
    everywhere = sum(p * cross_entropy(m(x), y) for p, m in zip(rows, models[1:], strict=True))
    total = cross_entropy(models[0](x), y)
    assert_close(torch.tensor(found), torch.stack([own, everywhere - own, total - everywhere, total]))
    assert abs(found.local + found.shift + found.aggregation - found.total) < 1e-12


def test_one_model_for_all_has_no_cost_of_averaging(clients, models):
    found = federated_loss_decomposition(models[0], [models[0]] * 2, clients, CrossEntropyLoss())
    assert abs(found.aggregation) < 1e-12
    assert abs(found.shift) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local_models": []}, "one for each of 2 clients, got 0"),
        ({"model": 1}, "model must be"),
        ({"local_models": [1, 2]}, r"local_models\[0\]"),
        ({"loss": torch.sum}, "loss"),
        ({"clients": [(torch.ones(0, 3), torch.ones(0).long())] * 2}, "client 0 has none"),
    ],
)
def test_bad_arguments_are_named(clients, models, change, message):
    given = {"model": models[0], "local_models": models[1:], "clients": clients, "loss": CrossEntropyLoss()} | change
    with pytest.raises((ValueError, TypeError), match=message):
        federated_loss_decomposition(**given)
