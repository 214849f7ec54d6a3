import pytest
import torch
from scipy.optimize import linprog
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.weights import CVaR, TrimmedWeights


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.6, 0.95])
def test_is_the_linear_program(ratio, generator):
    losses = torch.rand(8, generator=generator, dtype=torch.float64)
    found = linprog(losses.numpy() / 8, A_eq=[[1 / 8] * 8], b_eq=[1], bounds=[(0, 1 / (1 - ratio))] * 8)
    solution = TrimmedWeights(ratio).solve(losses)
    assert_close(solution.weights, torch.from_numpy(found.x), atol=1e-9, rtol=0)
    assert_close(float(solution.value), found.fun)


def test_leaves_out_the_largest_and_shares_the_edge_among_equals():
    weights = TrimmedWeights(0.25)(torch.tensor([1.0, 9.0, 2.0, 2.0, 2.0, 0.0, 8.0, 0.5]))
    assert_close(weights, torch.tensor([1.0, 0, 1, 1, 1, 1, 0, 1]) * 4 / 3)
    tied = TrimmedWeights(0.5)(torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0, 2.0]))
    assert_close(tied, torch.tensor([2.0, 0.5, 0.5, 2.0, 0.5, 0.5]))


def test_no_trimming_is_uniform_and_the_other_tail_is_cvar(generator):
    losses = torch.rand(6, generator=generator)
    assert_close(TrimmedWeights(0.0)(losses), torch.ones(6))
    assert_close(TrimmedWeights(0.3)(losses), CVaR(0.7)(-losses))


def test_losses_taken_apart_from_the_graph_teach_nothing(generator):
    """`TrimLossWithRatio` of gail-yxie/adawac weighs detached losses: their mean has no gradient at all."""
    output = torch.randn(6, 3, generator=generator, requires_grad=True)
    losses = cross_entropy(output, torch.tensor([0, 1, 2, 0, 1, 2]), reduction="none")
    published = losses.detach()
    kept = (published > published.quantile(0.5)).float()
    assert not ((published * kept).sum() / kept.sum()).requires_grad
    ours = (losses * CVaR(0.5)(losses)).mean()
    assert_close(ours, (losses * kept).sum() / kept.sum())
    assert torch.autograd.grad(ours, output)[0].abs().sum() > 0


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\)"):
        TrimmedWeights(1.0)
    with pytest.raises(ValueError, match="losses must be finite, got nan in row 1"):
        TrimmedWeights()(torch.tensor([0.0, float("nan")]))
