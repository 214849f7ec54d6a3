from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.diagnose import InfluenceRelabeler, influence_matrix, influence_review_queue, self_influence
from lossworks.diagnose.influence import penalised_head
from lossworks.losses import CrossEntropyLoss, SquaredLoss

cross_entropy = partial(F.cross_entropy, reduction="none")


@pytest.fixture
def net(generator):
    """A small network that is at no minimum, training rows and other rows."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x, x_test = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (20, 6))
    y, y_test = (torch.randint(3, (n,), generator=generator) for n in (20, 6))
    return model, x, y, x_test, y_test


@pytest.fixture
def logistic(generator):
    """A logistic regression at its minimum, found by scipy, and how to find it without a row."""
    rows = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    labels = (rows[:, 0] + 0.8 * torch.randn(60, generator=generator, dtype=torch.float64) > 0).long()
    x, y, damping = rows[:40].numpy(), labels[:40].numpy(), 0.05

    def fitted(weight):
        def objective(flat):
            scores = x @ flat.reshape(2, 3).T
            losses = logsumexp(scores, axis=1) - scores[np.arange(40), y]
            slope = (softmax(scores, axis=1) - np.eye(2)[y]) * weight[:, None] / 40
            value = losses @ weight / 40 + damping / 2 * flat @ flat
            return value, (slope.T @ x).ravel() + damping * flat

        return minimize(objective, np.zeros(6), jac=True, tol=1e-12, options={"gtol": 1e-10}).x.reshape(2, 3)

    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data = torch.from_numpy(fitted(np.ones(40)))
    return model, rows, labels, damping, fitted


def _spelled_out(model, x, y, x_test, y_test, damping, curvature):
    """The definition, from Jacobians and Hessians of autograd, one row at a time."""
    names = [name for name, _ in model.named_parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def output(flat, row):
        pieces = flat.split([p.numel() for p in model.parameters()])
        shaped = [piece.view_as(p) for piece, p in zip(pieces, model.parameters(), strict=True)]
        return torch.func.functional_call(model, dict(zip(names, shaped, strict=True)), (row[None],))[0]

    def loss(flat, row, label):
        return F.cross_entropy(output(flat, row)[None], label[None])

    def second(row, label):
        if curvature == "hessian":
            return torch.autograd.functional.hessian(lambda flat: loss(flat, row, label), flat)
        jacobian = torch.autograd.functional.jacobian(lambda flat: output(flat, row), flat)
        p = output(flat, row).softmax(0)
        return jacobian.T @ (p.diag() - p.outer(p)) @ jacobian

    def slopes(rows, labels):
        return torch.stack(
            [
                torch.autograd.functional.jacobian(lambda flat, r=row, k=label: loss(flat, r, k), flat)
                for row, label in zip(rows, labels, strict=True)
            ]
        )

    whole = torch.stack([second(row, label) for row, label in zip(x, y, strict=True)]).mean(dim=0)
    inverse = torch.linalg.inv(whole + damping * torch.eye(len(flat), dtype=flat.dtype))
    return -slopes(x_test, y_test) @ inverse @ slopes(x, y).T


@pytest.mark.parametrize(("curvature", "damping"), [("gauss_newton", 0.02), ("hessian", 2.0)])
def test_equals_the_definition_spelled_out_row_by_row(net, curvature, damping):
    wanted = _spelled_out(*net, damping, curvature).detach()
    for batch_size in (7, 256):
        found = influence_matrix(*net, damping=damping, curvature=curvature, batch_size=batch_size)
        assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def test_the_two_curvatures_differ_for_a_network_and_not_for_a_linear_model(net, logistic):
    gauss_newton, hessian = (influence_matrix(*net, damping=2.0, curvature=c) for c in ("gauss_newton", "hessian"))
    assert (gauss_newton - hessian).abs().max() > 0.01
    model, x, y, damping, _ = logistic
    gauss_newton, hessian = (
        influence_matrix(model, x, y, x, y, damping=damping, curvature=c) for c in ("gauss_newton", "hessian")
    )
    assert_close(gauss_newton, hessian)


def test_predicts_what_training_without_a_row_does_to_the_losses(logistic):
    model, x, y, damping, fitted = logistic
    influence = influence_matrix(model, x[:40], y[:40], x[40:], y[40:], damping=damping)
    before = cross_entropy(model(x[40:]), y[40:]).detach()
    changes = []
    for row in range(40):
        weight = torch.from_numpy(fitted(np.where(np.arange(40) == row, 0.0, 1.0)))
        changes.append(cross_entropy(x[40:] @ weight.T, y[40:]) - before)
    predicted, measured = -influence.flatten() / 40, torch.stack(changes, dim=1).flatten()
    assert torch.corrcoef(torch.stack([predicted, measured]))[0, 1] > 0.98
    assert (predicted @ measured) / (predicted @ predicted) == pytest.approx(1, abs=0.15)


def test_is_the_derivative_of_training_with_a_row_that_counts_a_little_more(logistic):
    model, x, y, damping, fitted = logistic
    influence = influence_matrix(model, x[:40], y[:40], x[40:], y[40:], damping=damping)
    for row in (0, 17):
        heavier, lighter = (
            torch.from_numpy(fitted(np.where(np.arange(40) == row, 1 + 40 * more, 1.0))) for more in (1e-3, -1e-3)
        )
        slope = (cross_entropy(x[40:] @ heavier.T, y[40:]) - cross_entropy(x[40:] @ lighter.T, y[40:])) / 2e-3
        assert_close(influence[:, row], slope, rtol=1e-3, atol=1e-4)


def test_ridge_regression_without_a_row_follows_from_influences_and_leverages(generator):
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    damping, kept = 0.1, ~torch.eye(30, dtype=torch.bool)

    def fitted(rows):
        penalty = 30 * damping * torch.eye(4, dtype=torch.float64)
        return torch.linalg.solve(x[rows].T @ x[rows] + penalty, x[rows].T @ y[rows])

    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data = fitted(torch.ones(30, dtype=torch.bool)).T
    influence = influence_matrix(model, x, y, x, y, loss=lambda z, t: (z - t).square().sum(dim=1) / 2, damping=damping)
    left = (x @ model.weight.T - y).detach()
    hat = x @ torch.linalg.inv(x.T @ x / 30 + damping * torch.eye(4, dtype=torch.float64)) @ x.T / 30
    moved = torch.stack([(x @ fitted(rows))[:, 0] for rows in kept], dim=1) - (x @ model.weight.T).detach()
    assert_close(left * moved, -influence / 30 / (1 - hat.diagonal()), rtol=1e-8, atol=1e-10)


def test_conjugate_gradients_come_to_the_exact_solution(net):
    exact = influence_matrix(*net)
    assert_close(influence_matrix(*net, method="cg", tol=1e-12, batch_size=11), exact, rtol=1e-8, atol=1e-10)
    rough = influence_matrix(*net, method="cg", tol=0.5)
    assert (rough - exact).abs().max() > 0.01


def test_a_series_on_batches_comes_near_the_exact_solution(net, generator):
    near = partial(influence_matrix, *net, damping=1.0)
    exact, found = near(), near(method="lissa", steps=50, batch_size=19, generator=generator)
    assert (found - exact).norm() < 0.1 * exact.norm()
    again = near(method="lissa", steps=50, batch_size=6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again, near(method="lissa", steps=50, batch_size=6, generator=torch.Generator().manual_seed(3)))


def test_is_linear_in_the_gradient_of_the_row_asked_about(net, generator):
    model, x, y, x_test, _ = net
    share = torch.rand(6, 3, generator=generator, dtype=torch.float64).softmax(dim=1)
    labels = [torch.full((6,), label) for label in range(3)]
    by_label = torch.stack([influence_matrix(model, x, y, x_test, label) for label in labels], dim=2)
    assert_close(influence_matrix(model, x, y, x_test, share), (by_label * share[:, None]).sum(dim=2))


@pytest.mark.parametrize("method", ["exact", "cg"])
def test_self_influence_is_the_diagonal_and_never_above_zero(net, method):
    model, x, y, _, _ = net
    found = self_influence(model, x, y, method=method, tol=1e-10)
    assert_close(found, influence_matrix(model, x, y, x, y).diagonal())
    assert (found <= 0).all()


def test_a_flipped_label_has_the_largest_self_influence(logistic):
    model, x, y, damping, _ = logistic
    wrong = int((model(x[:40]).detach().diff(dim=1)[:, 0] * (2 * y[:40] - 1)).argmax())
    flipped = y[:40].clone()
    flipped[wrong] = 1 - flipped[wrong]
    assert self_influence(model, x[:40], flipped, damping=damping).argmin() == wrong


def test_a_network_frozen_up_to_its_head_is_the_head_on_its_features(net):
    model, x, y, x_test, y_test = net
    head, body = model[2], model[:2]
    alone = influence_matrix(head, body(x).detach(), y, body(x_test).detach(), y_test)
    body.requires_grad_(False)
    assert_close(influence_matrix(model, x, y, x_test, y_test), alone)


def test_takes_lossworks_losses_and_single_precision(net):
    model, x, y, x_test, y_test = net
    exact = influence_matrix(*net)
    assert_close(influence_matrix(*net, loss=CrossEntropyLoss(reduction="none")), exact)
    single = influence_matrix(model.float(), x.float(), y, x_test.float(), y_test)
    assert single.dtype == torch.float32
    assert_close(single.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    real = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()
    values = partial(influence_matrix, real, x, y.double(), x_test, y_test.double())
    squared = values(loss=SquaredLoss(reduction="none"))
    assert_close(squared, values(loss=lambda z, t: (z - t).square()))


def test_leaves_the_model_and_the_generators_as_they_were(net):
    model, *rows = net
    model = nn.Sequential(model, nn.Dropout(0.9))
    state, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    assert torch.equal(influence_matrix(model, *rows), influence_matrix(model, *rows))
    InfluenceRelabeler(top_k=3).relabel(*rows[:2])
    assert model.training
    assert model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())


def test_bad_arguments_are_named(net):
    model, x, y, x_test, y_test = net
    for method in ("exact", "cg"):
        with pytest.raises(ValueError, match="damping must be larger"):
            influence_matrix(*net, curvature="hessian", damping=1e-3, method=method)
    with pytest.raises(ValueError, match="damping must be finite and > 0"):
        influence_matrix(*net, damping=0.0)
    with pytest.raises(ValueError, match="steps must be more than 2"):
        influence_matrix(*net, method="cg", steps=2)
    with pytest.raises(ValueError, match="method must be one of"):
        influence_matrix(*net, method="inverse")
    with pytest.raises(ValueError, match="x_test and target_test must be what model and loss take"):
        influence_matrix(model, x, y, x_test, y_test + 1)
    with pytest.raises(ValueError, match="target must have a row for each of x"):
        influence_matrix(model, x, y[:3], x_test, y_test)
    with pytest.raises(ValueError, match="x and target must have finite losses"):
        self_influence(model, x.new_full(x.shape, torch.nan), y)
    with pytest.raises(ValueError, match="x must have shape"):
        self_influence(model, x[:0], y[:0])
    with pytest.raises(ValueError, match="loss must give one number a row"):
        self_influence(model, x, y, loss=F.cross_entropy)
    with pytest.raises(ValueError, match="model must have parameters that require gradients"):
        self_influence(model.requires_grad_(False), x, y)
    with pytest.raises(ValueError, match="method must be 'cg' or 'lissa' for more than 10000"):
        self_influence(nn.Linear(3, 3000).double(), x, y)
    with pytest.raises(TypeError, match="model must be a module"):
        self_influence(lambda x: x, x, y)


def test_the_queue_holds_the_rows_that_harm_the_worst_first(generator):
    influence = torch.randn(5, 30, generator=generator)
    net = influence.sum(dim=0).tolist()
    wanted = sorted((row for row in range(30) if net[row] > 0), key=lambda row: -net[row])
    assert influence_review_queue(influence).tolist() == wanted
    assert not len(influence_review_queue(-influence.abs()))
    with pytest.raises(ValueError, match="influence must have shape"):
        influence_review_queue(influence[0])
    with pytest.raises(ValueError, match="influence must be finite"):
        influence_review_queue(influence / 0)


def _decided(influence, labels, top_k, classes):
    """The rule by net sign, row by row in plain Python."""
    found = []
    for row, own in enumerate(labels):
        relative = [influence[row][j] / abs(influence[j][j]) ** 0.5 for j in range(len(labels))]
        others = sorted((j for j in range(len(labels)) if j != row), key=lambda j: -abs(relative[j]))[:top_k]
        say = {c: sum(max(relative[j], 0) for j in others if labels[j] == c) for c in range(classes) if c != own}
        best = max(say, key=say.get)
        opposed = sum(relative[j] for j in others) > 0
        found.append(best if opposed and (say[best] > 0 or classes == 2) else own)
    return found


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("top_k", [1, 5, 100])
def test_decides_as_the_rule_says_row_by_row(generator, classes, top_k):
    influence = torch.randn(25, 25, generator=generator, dtype=torch.float64)
    influence.diagonal().copy_(-1000 * (0.1 + torch.rand(25, generator=generator)))
    labels = torch.randint(classes, (25,), generator=generator)
    found = InfluenceRelabeler(top_k).decide(influence, labels, classes)
    assert found.tolist() == _decided(influence.tolist(), labels.tolist(), top_k, classes)
    assert not torch.equal(found, labels)


def test_a_label_that_no_influencer_offers_is_not_made_up():
    influence = torch.ones(3, 3)
    same = torch.ones(3, dtype=torch.int64)
    assert InfluenceRelabeler().decide(influence, same, 3).tolist() == [1, 1, 1]
    assert InfluenceRelabeler().decide(influence, same, 2).tolist() == [0, 0, 0]
    assert InfluenceRelabeler().decide(influence[:1, :1], same[:1]).tolist() == [1]


def test_the_majority_is_of_the_influencers_and_a_tie_changes_nothing():
    influence = torch.tensor([[9.0, 3, 2, 1, 0]] * 5)
    labels = torch.tensor([2, 1, 1, 0, 0])
    assert int(InfluenceRelabeler(3, "majority").decide(influence, labels)[0]) == 1
    assert int(InfluenceRelabeler(4, "majority").decide(influence, torch.tensor([1, 0, 0, 1, 1]))[0]) == 1


def test_a_round_is_the_rule_on_a_penalised_logistic_regression(generator):
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    y = torch.where(
        torch.rand(50, generator=generator) < 0.2, torch.randint(3, (50,), generator=generator), x.argmax(1) % 3
    )
    inputs, labels, damping = torch.cat([x, torch.ones(50, 1)], dim=1).numpy(), y.numpy(), 1 / 50

    def objective(flat):
        scores = inputs @ flat.reshape(3, 5).T
        slope = (softmax(scores, axis=1) - np.eye(3)[labels]).T @ inputs / 50
        losses = logsumexp(scores, axis=1) - scores[np.arange(50), labels]
        return losses.mean() + damping / 2 * flat @ flat, slope.ravel() + damping * flat

    weight = minimize(objective, np.zeros(15), jac=True, options={"gtol": 1e-10}).x.reshape(3, 5)
    p = softmax(inputs @ weight.T, axis=1)
    slopes = np.einsum("nk,nd->nkd", p - np.eye(3)[labels], inputs).reshape(50, 15)
    bends = np.einsum(
        "nkl,nd,ne->kdle", np.einsum("nk,kl->nkl", p, np.eye(3)) - p[:, :, None] * p[:, None], inputs, inputs
    )
    influence = -slopes @ np.linalg.solve(bends.reshape(15, 15) / 50 + damping * np.eye(15), slopes.T)
    wanted = _decided(influence.tolist(), labels.tolist(), 10, 3)
    for method in ("exact", "cg"):
        found = InfluenceRelabeler(10, rounds=1, method=method).relabel(x.float(), y)
        assert found.tolist() == wanted
    assert wanted != labels.tolist()


@pytest.fixture
def clusters(generator):
    """Rows of two clusters, their labels with a fifth of them flipped, and their clean labels."""
    clean = torch.arange(200) % 2
    x = 2 * clean[:, None] - 1 + 0.5 * torch.randn(200, 3, generator=generator)
    return x, torch.where(torch.rand(200, generator=generator) < 0.2, 1 - clean, clean), clean


def test_repairs_labels_of_two_clusters_and_leaves_them_repaired(clusters):
    x, noisy, clean = clusters
    assert (noisy != clean).double().mean() > 0.15
    for rounds in (1, 2, 5):
        changed = InfluenceRelabeler(rounds=rounds).relabel(x, noisy)
        assert (changed != clean).double().mean() < 0.03


def test_influences_that_are_not_divided_by_their_rows_own_oppose_nearly_every_label(clusters):
    x, noisy, clean = clusters
    head = penalised_head(x.double(), noisy, 2, 1 / 200)
    influence = influence_matrix(head, x.double(), noisy, x.double(), noisy, damping=1 / 200)
    undivided = influence.clone().fill_diagonal_(0)
    chosen = undivided.abs().topk(20, dim=1).indices
    opposed = undivided.gather(1, chosen).sum(dim=1) > 0
    assert opposed[noisy == clean].double().mean() > 0.9
    decided = InfluenceRelabeler(20).decide(influence, noisy)
    assert (decided != noisy)[noisy == clean].double().mean() < 0.03
    assert_close(decided, InfluenceRelabeler(20, rounds=1).relabel(x, noisy))


def test_the_relabeler_names_bad_arguments(generator):
    x, y = torch.randn(6, 2, generator=generator), torch.arange(6) % 2
    with pytest.raises(ValueError, match="top_k must be >= 1"):
        InfluenceRelabeler(0)
    with pytest.raises(ValueError, match="rule must be one of"):
        InfluenceRelabeler(rule="most")
    with pytest.raises(ValueError, match="damping must be finite and > 0"):
        InfluenceRelabeler(damping=0.0)
    relabel = InfluenceRelabeler().relabel
    with pytest.raises(ValueError, match=r"features must have shape \(N, d\)"):
        relabel(x[0], y)
    with pytest.raises(ValueError, match="features must be finite"):
        relabel(x / 0, y)
    with pytest.raises(TypeError, match="target must be int64"):
        relabel(x, y.float())
    with pytest.raises(ValueError, match="target must be in"):
        relabel(x, y - 1)
    with pytest.raises(ValueError, match="target must be in"):
        relabel(x, y, 1)
    with pytest.raises(ValueError, match=r"influence must have shape \(N, N\)"):
        InfluenceRelabeler().decide(torch.ones(6, 5), y)
