import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.diagnose import sam_sharpness
from lossworks.losses import AdaptiveLDRLoss, EnsLoss, SquaredLoss
from lossworks.optim import SAM


@pytest.fixture
def task(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    return model, torch.randn(12, 5, generator=generator, dtype=torch.float64), torch.arange(12) % 3


def test_on_a_linear_model_with_a_squared_loss_it_is_its_closed_form(generator):
    x, y = torch.randn(9, 4, generator=generator, dtype=torch.float64), torch.randn(9, generator=generator).double()
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Flatten(0)).double()
    w = model[0].weight.detach()[0]

    def risk(weights):
        return (x @ weights - y).square().mean()

    slope = 2 * x.T @ (x @ w - y) / 9
    found = sam_sharpness(model, x, y, 0.3, loss=SquaredLoss())
    assert_close(found, risk(w + 0.3 * slope / slope.norm()) - risk(w))


def test_is_what_the_optimizer_sees_at_its_worst_point(task):
    model, x, y = task
    found = sam_sharpness(model, x, y, rho=0.7)
    twin = copy.deepcopy(model).eval()
    optimizer = SAM(torch.optim.SGD(twin.parameters(), lr=0.1), rho=0.7)
    here = cross_entropy(twin(x), y)
    here.backward()
    optimizer.ascend()
    assert_close(found, (cross_entropy(twin(x), y) - here).detach())
    assert float(found) > 0


def test_a_small_step_grows_by_the_gradients_norm(task):
    model, x, y = task
    twin = copy.deepcopy(model).eval()
    slopes = torch.autograd.grad(cross_entropy(twin(x), y), list(twin.parameters()))
    norm = torch.cat([slope.flatten() for slope in slopes]).norm()
    assert_close(sam_sharpness(model, x, y, rho=1e-6) / 1e-6, norm, rtol=1e-4, atol=0)


def test_leaves_the_model_as_it_was(task):
    model, x, y = task
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    found = sam_sharpness(model, x, y)
    assert not found.requires_grad
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_ignored_rows_and_weights_that_rest_do_not_count(task):
    model, x, y = task
    model[0].requires_grad_(False)
    some = y.clone()
    some[:5] = -100
    assert_close(sam_sharpness(model, x, some), sam_sharpness(model, x[5:], y[5:]))
    assert float(sam_sharpness(model, x, torch.full_like(y, -100))) == 0


def test_an_output_that_no_weight_changes_has_no_sharpness():
    class Still(nn.Linear):
        def forward(self, x):
            return x

    assert float(sam_sharpness(Still(3, 3), torch.rand(4, 3), torch.arange(4) % 3)) == 0


def test_bad_arguments_are_named(task):
    model, x, y = task
    for call, message in (
        (lambda: sam_sharpness(model, x, y, -1.0), "rho"),
        (lambda: sam_sharpness(1, x, y), "model must be a module"),
        (lambda: sam_sharpness(nn.ReLU(), x[:, :3], y), "model must have weights that learn"),
        (lambda: sam_sharpness(model, x[:, :2], y), "x must be what model takes"),
        (lambda: sam_sharpness(model, x, y[:5]), "target"),
        (lambda: sam_sharpness(model, x, y, loss=cross_entropy), "loss must be a Loss"),
        (lambda: sam_sharpness(model, x, y, loss=AdaptiveLDRLoss(12)), "neither draws nor remembers"),
        (lambda: sam_sharpness(model, x, y, loss=EnsLoss()), "neither draws nor remembers"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()
