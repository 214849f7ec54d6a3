import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from lossworks.layers import SpectralNormBall, project_lipschitz_


@pytest.fixture
def matrix(generator):
    return torch.randn(5, 4, dtype=torch.float64, generator=generator)


def test_a_matrix_outside_is_scaled_onto_the_ball_and_one_inside_stays(matrix):
    norm = np.linalg.svd(matrix.numpy(), compute_uv=False).max()
    assert_close(SpectralNormBall(0.5)(matrix), matrix * 0.5 / norm)
    assert torch.equal(SpectralNormBall(norm * 1.01)(matrix), matrix)
    assert torch.equal(SpectralNormBall()(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_no_matrix_of_the_ball_is_nearer_in_the_spectral_norm(matrix):
    u, s, vt = np.linalg.svd(matrix.numpy(), full_matrices=False)
    clipped = u @ np.diag(np.minimum(s, 0.5)) @ vt
    nearest = np.linalg.norm(matrix.numpy() - clipped, 2)
    found = SpectralNormBall(0.5)(matrix).numpy()
    assert np.linalg.norm(matrix.numpy() - found, 2) == pytest.approx(nearest)
    assert nearest == pytest.approx(s[0] - 0.5)


def test_gradient_is_the_derivative_on_both_sides(matrix):
    for bound in (0.5, 50.0):
        assert torch.autograd.gradcheck(SpectralNormBall(bound), matrix.clone().requires_grad_())


def test_a_zero_matrix_and_equal_singular_values_have_finite_gradients():
    for start in (torch.zeros(3, 3), torch.eye(3)):
        leaf = start.clone().requires_grad_()
        SpectralNormBall(0.5)(leaf).sum().backward()
        assert leaf.grad.isfinite().all()


def test_training_never_leaves_the_ball(generator):
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", SpectralNormBall(0.3))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    x = torch.randn(8, 4, generator=generator)
    for _ in range(10):
        optimizer.zero_grad()
        (layer(x) - 5).square().mean().backward()
        optimizer.step()
        assert torch.linalg.svdvals(layer.weight).max() <= 0.3 * (1 + 1e-6)
    assert torch.linalg.svdvals(layer.weight).max() > 0.29


def _chain():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(0.2))
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), inner, nn.Dropout(0.5), nn.Linear(6, 2)).double().eval()


def _product(model):
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return float(np.prod([np.linalg.norm(layer.weight.detach().numpy(), 2) for layer in layers]))


def test_a_chain_that_is_too_steep_is_scaled_to_the_product_and_a_flat_one_is_left(generator):
    model = _chain()
    for layer in (model[0], model[2][0], model[4]):
        layer.weight.data *= 3
    ratio = model[0].weight.norm() / model[4].weight.norm()
    project_lipschitz_(model, 0.7)
    assert _product(model) == pytest.approx(0.7)
    assert_close(model[0].weight.norm() / model[4].weight.norm(), ratio)
    a = torch.randn(2000, 4, dtype=torch.float64, generator=generator)
    b = a + 0.1 * torch.randn(2000, 4, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        assert ((model(a) - model(b)).norm(dim=1) <= 0.7 * (a - b).norm(dim=1)).all()
    before = [p.clone() for p in model.parameters()]
    project_lipschitz_(model, 0.8)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


class Steep(nn.ReLU):
    def forward(self, x):
        return 10 * super().forward(x)


class Louder(nn.Sequential):
    def forward(self, x):
        return 10 * super().forward(x)


def test_what_cannot_be_bounded_is_refused(matrix):
    for layer in (nn.Conv2d(1, 1, 3), nn.BatchNorm1d(3), nn.LeakyReLU(2.0), Steep(), Louder(nn.Linear(3, 3))):
        with pytest.raises(ValueError, match=f"module must be a chain.*it has {type(layer).__name__}"):
            project_lipschitz_(nn.Sequential(nn.Linear(3, 3), layer), 1.0)
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", SpectralNormBall())
    with pytest.raises(ValueError, match="module must have plain weights"):
        project_lipschitz_(layer, 1.0)
    with pytest.raises(ValueError, match="lipschitz must be finite and > 0"):
        project_lipschitz_(nn.Linear(3, 3), 0.0)
    with pytest.raises(ValueError, match="bound must be finite and > 0"):
        SpectralNormBall(0.0)
    with pytest.raises(ValueError, match="weight must be a matrix"):
        SpectralNormBall()(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="weight must be finite"):
        SpectralNormBall()(matrix / 0)
