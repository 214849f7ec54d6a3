import math

import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn
from torch.testing import assert_close

from lossworks.layers import NestedDropout, best_prefix_length, prefix_accuracies


def probabilities_by_hand(features, sigma, mu):
    weights = [math.exp(-(((k - mu) / sigma) ** 2)) for k in range(1, features + 1)]
    return torch.tensor([weight / sum(weights) for weight in weights])


def prefixes(kept, x):
    """How many features of each row are kept, if they are the first ones, unchanged, and the others 0."""
    lengths = (kept != 0).sum(dim=1)
    assert torch.equal(kept, torch.where(torch.arange(x.shape[1]) < lengths[:, None], x, 0))
    return lengths


@pytest.mark.parametrize(("sigma", "mu"), [(3.0, 0.0), (2.0, 4.0), (0.7, 2.5)])
def test_probabilities_are_the_equation_summed_by_hand(sigma, mu):
    found = NestedDropout(6, sigma, mu).probabilities()
    assert_close(found, probabilities_by_hand(6, sigma, mu))
    assert_close(NestedDropout(6, torch.tensor(sigma), torch.tensor(mu)).probabilities(), found)


@pytest.mark.parametrize("sigma", [1e-3, 1e-30, 5e-324])
def test_a_vanishing_sigma_keeps_one_feature_and_a_large_one_any_number(sigma):
    assert NestedDropout(5, sigma).probabilities().tolist() == [1, 0, 0, 0, 0]
    assert NestedDropout(5, sigma, mu=3).probabilities().tolist() == [0, 0, 1, 0, 0]
    assert_close(NestedDropout(5, 1e9).probabilities(), torch.full((5,), 0.2))


def test_all_rows_of_a_batch_keep_the_same_prefix_unchanged(generator):
    x = 1 + torch.rand(7, 6, generator=generator)
    layer = NestedDropout(6, 4.0, generator=generator)
    drawn = {tuple(prefixes(layer(x), x).tolist()) for _ in range(60)}
    assert all(len(set(lengths)) == 1 for lengths in drawn)
    assert {lengths[0] for lengths in drawn} == set(range(1, 7))


def test_each_length_comes_as_often_as_its_probability_says(generator):
    x, trials = torch.ones(20_000, 5), 20_000
    layer = NestedDropout(5, 2.5, per_row=True, generator=generator)
    counts = prefixes(layer(x), x).bincount(minlength=6)[1:].double()
    expected = trials * probabilities_by_hand(5, 2.5, 0.0).double()
    chi_square = ((counts - expected).square() / expected).sum()
    assert chi_square < 18.5  # 0.999 of 4 degrees of freedom


def test_the_expected_output_is_each_feature_times_its_chance_to_be_kept(generator):
    x = torch.randn(1, 5, generator=generator)
    layer = NestedDropout(5, 3.0, per_row=True, generator=generator)
    chances = probabilities_by_hand(5, 3.0, 0.0).flip(0).cumsum(0).flip(0)
    assert_close(layer(x.expand(40_000, 5)).mean(dim=0), x[0] * chances, atol=0.02, rtol=0)


def test_rows_that_draw_for_themselves_draw_for_one_row_what_a_batch_draws():
    x = torch.ones(1, 9)
    alone, together = (
        NestedDropout(9, per_row=own, generator=torch.Generator().manual_seed(3)) for own in (True, False)
    )
    assert all(torch.equal(alone(x), together(x)) for _ in range(20))


def test_two_layers_whose_generators_began_alike_keep_the_same_prefix(generator):
    x = torch.rand(3, 40, generator=generator)
    first, second = (NestedDropout(40, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    draws = [(first(x), second(x)) for _ in range(8)]
    assert all(torch.equal(one, other) for one, other in draws)
    assert len({int((one != 0).sum()) for one, _ in draws}) > 1


def test_evaluation_keeps_all_or_the_prefix_chosen_which_is_saved(generator):
    x = torch.rand(4, 6, generator=generator)
    layer = NestedDropout(6).eval()
    assert torch.equal(layer(x), x)
    layer.keep_prefix(2)
    assert prefixes(layer(x), x).tolist() == [2] * 4
    loaded = NestedDropout(6).eval()
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(loaded(x), layer(x))
    assert torch.equal(NestedDropout(6, prefix=2).eval()(x), layer(x))


def test_maps_lose_whole_channels(generator):
    x = 1 + torch.rand(2, 5, 3, 4, generator=generator)
    kept = NestedDropout(5, prefix=3).eval()(x)
    assert torch.equal(kept[:, :3], x[:, :3])
    assert not kept[:, 3:].any()


def test_what_is_dropped_has_no_gradient_even_where_it_is_infinite():
    x = torch.tensor([[1.0, 2.0, torch.inf]], requires_grad=True)
    NestedDropout(3, prefix=2).eval()(x).square().sum().backward()
    assert x.grad.tolist() == [[2, 4, 0]]


def test_stacks_of_sigmas_draw_under_vmap():
    layer, x = NestedDropout(4, torch.tensor(1.0)), torch.ones(3, 4)
    sigmas = torch.tensor([1e-6, 1e6]).repeat_interleave(200)

    def kept(sigma):
        return torch.func.functional_call(layer, {"sigma": sigma}, (x,))[0].sum()

    small, large = torch.func.vmap(kept, randomness="different")(sigmas).split(200)
    assert (small == 1).all()
    assert large.mean() == pytest.approx(2.5, abs=0.4)


@pytest.mark.parametrize("bias", [True, False])
def test_prefix_accuracies_are_those_of_the_classifier_on_cut_features(generator, bias):
    torch.manual_seed(0)
    classifier = nn.Linear(7, 4, bias=bias).double()
    features = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (50,), generator=generator)
    found = prefix_accuracies(features, classifier.weight, target, classifier.bias)
    layer = NestedDropout(7).eval()
    for k in range(1, 8):
        layer.keep_prefix(k)
        answers = classifier(layer(features)).argmax(dim=1)
        assert found[k - 1].item() == pytest.approx(accuracy_score(target, answers))
    assert len(found.unique()) > 3
    assert not found.requires_grad


def test_the_best_prefix_is_the_shortest_of_equals_and_pays_for_its_features():
    accuracies = torch.tensor([0.1, 0.7, 0.7, 0.8, 0.8])
    assert best_prefix_length(accuracies) == 4
    assert best_prefix_length(accuracies, price=0.0) == 4
    assert best_prefix_length(accuracies, price=0.06) == 2
    assert best_prefix_length(accuracies, price=1.0) == 1
    assert best_prefix_length(torch.tensor([0.9, 0.2])) == 1


def test_a_best_prefix_of_one_feature_stays_one_where_published_code_takes_all():
    accuracies = torch.tensor([0.9, 0.4, 0.5])
    place = int((accuracies - 1e-5 * torch.arange(3)).argmax())
    published = (2 if place == 0 else place) + 1
    assert published == 3
    assert best_prefix_length(accuracies) == 1


def test_a_network_learns_with_it_to_put_what_matters_first(generator):
    """Squares of a linear code: the order of the code's parts is that of the data's variances."""
    x = torch.randn(400, 4, generator=generator) * torch.tensor([0.3, 1.0, 0.1, 3.0])
    torch.manual_seed(0)
    code, answer = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    layer = NestedDropout(4, 3.0, generator=generator)
    adam = torch.optim.Adam([*code.parameters(), *answer.parameters()], lr=0.04)
    for _ in range(250):
        adam.zero_grad()
        (answer(layer(code(x))) - x).square().mean().backward()
        adam.step()
    layer.eval()
    for k, wanted in ((1, {3}), (2, {1, 3})):
        layer.keep_prefix(k)
        explained = 1 - (answer(layer(code(x))) - x).square().mean(dim=0) / x.square().mean(dim=0)
        assert set((explained > 0.8).nonzero().flatten().tolist()) == wanted


def test_bad_arguments_are_named(generator):
    with pytest.raises(ValueError, match="sigma must be finite and > 0, got 0"):
        NestedDropout(3, 0.0)
    with pytest.raises(ValueError, match=r"mu must be in \[0, 3\], got 4"):
        NestedDropout(3, mu=4)
    with pytest.raises(ValueError, match=r"prefix must be in \[1, 3\], got 0"):
        NestedDropout(3).keep_prefix(0)
    with pytest.raises(TypeError, match="per_row must be True or False"):
        NestedDropout(3, per_row=1)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 3, ...\), got \(2, 4\)"):
        NestedDropout(3)(torch.ones(2, 4))
    with pytest.raises(TypeError, match="x must be floating-point"):
        NestedDropout(3)(torch.ones(2, 3, dtype=torch.int64))
    features, weight, target = torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"weight must have shape \(C, 3\)"):
        prefix_accuracies(features, weight.T, target)
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
        prefix_accuracies(features, weight, target, torch.ones(3))
    with pytest.raises(ValueError, match=r"target must be in \[0, 4\), got 4"):
        prefix_accuracies(features, weight, target + 1)
    with pytest.raises(ValueError, match="features must have shape"):
        prefix_accuracies(features[:0], weight, target[:0])
    with pytest.raises(ValueError, match="accuracies must be finite, got nan"):
        best_prefix_length(torch.tensor([0.5, torch.nan]))
    with pytest.raises(ValueError, match="price must be finite and >= 0"):
        best_prefix_length(torch.tensor([0.5]), price=-1)
