import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import lossworks as lw
from lossworks.fused import linear_log_probs, linear_loss
from lossworks.losses import (
    ActivePassiveLoss,
    AdaptiveLDRLoss,
    AsymmetricLoss,
    BiTemperedLoss,
    BrierLoss,
    CompSumLoss,
    CrossEntropyLoss,
    EnsLoss,
    FocalLoss,
    HLGaussLoss,
    LDAMLoss,
    LDRLoss,
    OneVsRestEnsLoss,
    PredictionEntropyLoss,
    PseudoHuberLoss,
    SquaredLoss,
)
from lossworks.roles import Weighting

ROWS, D, CLASSES = 11, 6, 5


class SoftMax(Weighting):
    """Exponential in the losses: couples the batch."""

    calls = 0

    def forward(self, losses, *, index=None, group=None, target=None):
        type(self).calls += 1
        return losses.softmax(0) * losses.numel()


def layer(generator, dtype=torch.float64, rows=ROWS):
    made = [torch.randn(*shape, dtype=dtype, generator=generator) for shape in ((rows, D), (CLASSES, D), (CLASSES,))]
    return [tensor.requires_grad_() for tensor in made]


def classes(generator, rows=ROWS):
    return torch.randint(CLASSES, (rows,), generator=generator)


def by_hand(hidden, weight, bias, target):
    """Cross-entropy of each row and its gradient in the logits, in Python's own floats."""
    losses, slopes = [], []
    for h, y in zip(hidden.tolist(), target.tolist(), strict=True):
        z = [
            math.fsum(a * b for a, b in zip(h, w, strict=True)) + c
            for w, c in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        total = math.fsum(math.exp(one) for one in z)
        losses.append(math.log(total) - z[y])
        slopes.append([math.exp(one) / total - (k == y) for k, one in enumerate(z)])
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64)


def gradients(value, tensors, upstream=None):
    return torch.autograd.grad(value, tensors, upstream)


def test_cross_entropy_equals_a_computation_by_hand(generator):
    hidden, weight, bias = layer(generator)
    target = classes(generator)
    losses, slopes = by_hand(hidden, weight, bias, target)
    upstream = torch.randn(ROWS, dtype=torch.float64, generator=generator)
    upstream[2] = 0
    each = linear_loss(hidden, weight, target, CrossEntropyLoss(), bias=bias, reduction="none", chunk=4)
    assert_close(each, losses)
    scaled = upstream[:, None] * slopes
    wanted = (scaled @ weight.detach(), scaled.T @ hidden.detach(), scaled.sum(0))
    for got, want in zip(gradients(each, (hidden, weight, bias), upstream), wanted, strict=True):
        assert_close(got, want)
    mean = linear_loss(hidden, weight, target, CrossEntropyLoss(), bias=bias, chunk=4)
    assert_close(mean, losses.mean())
    assert_close(gradients(mean, weight)[0], slopes.T @ hidden.detach() / ROWS)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(0.1), FocalLoss(), BrierLoss(), AsymmetricLoss(), LDRLoss(2.0)])
def test_values_and_gradients_pass_gradcheck(generator, loss):
    hidden, weight, bias = layer(generator, rows=5)
    target = torch.tensor([0, 1, -100, 4, 2])
    counts = torch.rand(5, dtype=torch.float64, generator=generator).requires_grad_()
    for reduction in ("none", "mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda h, w, b, s, r=reduction: linear_loss(
                h, w, target, loss, bias=b, sample_weight=s, reduction=r, chunk=2
            ),
            (hidden, weight, bias, counts),
        )


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), BrierLoss(), FocalLoss()])
def test_soft_targets(generator, loss):
    hidden, weight, _ = layer(generator)
    soft = torch.rand(ROWS, CLASSES, dtype=torch.float64, generator=generator).softmax(1)
    wanted = loss(hidden @ weight.T, soft)
    got = linear_loss(hidden, weight, soft, loss, chunk=3)
    assert_close(got, wanted)
    assert_close(gradients(got, weight)[0], gradients(wanted, weight)[0])


def test_tokens_keep_their_shape(generator):
    hidden, weight, _ = layer(generator, rows=12)
    target = classes(generator, 12)
    flat = linear_loss(hidden, weight, target, CompSumLoss(0.5), reduction="none")
    shaped = linear_loss(
        hidden.reshape(3, 4, D), weight, target.reshape(3, 4), CompSumLoss(0.5), reduction="none", chunk=5
    )
    assert_close(shaped, flat.reshape(3, 4))


def test_real_targets_one_output_a_number(generator):
    hidden, weight, bias = layer(generator)
    target = torch.randn(ROWS, CLASSES, dtype=torch.float64, generator=generator)
    for loss in (SquaredLoss(), PseudoHuberLoss(0.3)):
        wanted = loss(hidden @ weight.T + bias, target)
        got = linear_loss(hidden, weight, target, loss, bias=bias, chunk=4)
        assert_close(got, wanted)
        assert_close(gradients(got, hidden)[0], gradients(wanted, hidden)[0])


def test_real_targets_in_bins(generator):
    hidden, weight, _ = layer(generator)
    target = torch.randn(ROWS, dtype=torch.float64, generator=generator)
    loss = HLGaussLoss(-3.0, 3.0, num_bins=CLASSES)
    wanted, got = loss(hidden @ weight.T, target), linear_loss(hidden, weight, target, loss, chunk=4)
    assert_close(got, wanted)
    assert_close(gradients(got, weight)[0], gradients(wanted, weight)[0])


@pytest.mark.parametrize(
    "make", [lambda t: FocalLoss(t), lambda t: LDRLoss(t), lambda t: LDRLoss(t, normalize="l1_mean")]
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_learned_hyperparameters_get_their_gradient(generator, make, reduction):
    hidden, weight, _ = layer(generator)
    target = classes(generator)
    dial = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    plain, fused = make(dial.exp()), make(dial.exp())
    plain.reduction = reduction
    wanted = plain(hidden @ weight.T, target)
    got = linear_loss(hidden, weight, target, fused, reduction=reduction, chunk=3)
    upstream = torch.ones_like(wanted) * 1.5
    for one, other in zip(
        gradients(got, (dial, hidden), upstream), gradients(wanted, (dial, hidden), upstream), strict=True
    ):
        assert_close(one, other)


def test_a_smoothing_that_is_learned_and_a_pair_of_losses(generator):
    hidden, weight, _ = layer(generator)
    target = classes(generator)
    smoothing = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for loss, dial in ((CrossEntropyLoss(smoothing), smoothing), (ActivePassiveLoss(alpha=alpha), alpha)):
        wanted, got = loss(hidden @ weight.T, target), linear_loss(hidden, weight, target, loss, chunk=3)
        assert_close(gradients(got, dial)[0], gradients(wanted, dial)[0])


def test_the_arguments_decide_what_is_ignored_and_how_it_is_reduced(generator):
    hidden, weight, _ = layer(generator)
    target = classes(generator)
    loss = CrossEntropyLoss(reduction="sum", ignore_index=1)
    assert_close(linear_loss(hidden, weight, target, loss), F.cross_entropy(hidden @ weight.T, target))
    assert_close(
        linear_loss(hidden, weight, target, loss, ignore_index=2),
        F.cross_entropy(hidden @ weight.T, target, ignore_index=2),
    )


def test_ignored_rows_have_no_loss_and_no_gradient_whatever_the_upstream(generator):
    hidden, weight, _ = layer(generator)
    target = torch.where(torch.arange(ROWS) % 3 == 0, -100, classes(generator))
    each = linear_loss(hidden, weight, target, FocalLoss(), reduction="none", chunk=2)
    found = gradients(each, hidden, torch.full((ROWS,), 3.0, dtype=torch.float64))[0]
    assert bool((each[target < 0] == 0).all())
    assert bool((found[target < 0] == 0).all())
    assert bool((found[target >= 0] != 0).any(dim=1).all())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_is_left_when_all_is_ignored_or_there_are_no_rows(generator, reduction):
    hidden, weight, bias = layer(generator)
    for rows in (ROWS, 0):
        value = linear_loss(
            hidden[:rows], weight, torch.full((rows,), -100), CrossEntropyLoss(), bias=bias, reduction=reduction
        ).sum()
        assert value == 0
        assert all(bool((g == 0).all()) for g in gradients(value, (hidden, weight, bias)))


def test_weights_put_on_the_tokens_afterwards(generator):
    hidden, weight, _ = layer(generator)
    target = classes(generator)
    counts = torch.rand(ROWS, dtype=torch.float64, generator=generator)
    wanted = (F.cross_entropy(hidden @ weight.T, target, reduction="none") * counts).sum() / counts.sum()
    after = (
        linear_loss(hidden, weight, target, CrossEntropyLoss(), reduction="none", chunk=4) * counts
    ).sum() / counts.sum()
    before = linear_loss(hidden, weight, target, CrossEntropyLoss(), sample_weight=counts, chunk=4)
    expected = gradients(wanted, weight)[0]
    for got in (after, before):
        assert_close(got, wanted)
        assert_close(gradients(got, weight)[0], expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_weighting_that_reads_the_losses(generator, reduction):
    hidden, weight, _ = layer(generator)
    target = torch.where(torch.arange(ROWS) == 4, -100, classes(generator))
    counts = torch.rand(ROWS, dtype=torch.float64, generator=generator)
    loss = BrierLoss(reduction=reduction)
    wanted = lw.Objective(loss, SoftMax()).risk(hidden @ weight.T, target, sample_weight=counts)
    got = linear_loss(
        hidden, weight, target, loss, weights=SoftMax(), sample_weight=counts, reduction=reduction, chunk=3
    )
    assert_close(got, wanted)
    upstream = torch.rand_like(wanted)
    for one, other in zip(
        gradients(got, (hidden, weight), upstream), gradients(wanted, (hidden, weight), upstream), strict=True
    ):
        assert_close(one, other)


def products(monkeypatch):
    """Counts the matrix products of the chunk loop."""
    from lossworks.fused import rows

    seen, real_addmm = [], torch.addmm

    def addmm(*args, **kwargs):
        seen.append(tuple(args[0].shape))
        return real_addmm(*args, **kwargs)

    monkeypatch.setattr(rows.torch, "addmm", addmm)
    return seen


@pytest.mark.parametrize(("weights", "passes"), [(lw.weights.ClassBalanced, 3), (SoftMax, 4)])
def test_a_weighting_known_beforehand_costs_no_pass(generator, monkeypatch, weights, passes):
    hidden, weight, _ = layer(generator)
    made = weights(torch.ones(CLASSES)) if weights is not SoftMax else weights()
    seen = products(monkeypatch)
    linear_loss(hidden, weight, classes(generator), CrossEntropyLoss(), weights=made, chunk=ROWS).backward()
    assert len(seen) == passes


def test_no_gradient_is_computed_that_nobody_asked_for(generator, monkeypatch):
    hidden, weight, _ = layer(generator)
    target = classes(generator)
    seen = products(monkeypatch)
    for reduction, forward in (("mean", 0), ("none", 1)):
        for h, w, expected in (
            (hidden.detach(), weight, [(ROWS, CLASSES), (CLASSES, D)]),
            (hidden, weight.detach(), [(ROWS, CLASSES), (ROWS, D)]),
        ):
            seen.clear()
            linear_loss(h, w, target, CrossEntropyLoss(), reduction=reduction, chunk=ROWS).sum().backward()
            assert seen == [(ROWS, CLASSES)] * forward + expected
    seen.clear()
    with torch.no_grad():
        linear_loss(hidden, weight, target, CrossEntropyLoss(), chunk=ROWS)
    linear_loss(hidden.detach(), weight.detach(), target, CrossEntropyLoss(), chunk=ROWS)
    assert seen == [(ROWS, CLASSES)] * 2


def test_a_tied_weight_gets_both_gradients(generator):
    _, weight, _ = layer(generator)
    tokens, target = classes(generator), classes(generator)
    wanted = F.cross_entropy(F.embedding(tokens, weight) @ weight.T, target)
    got = linear_loss(F.embedding(tokens, weight), weight, target, CrossEntropyLoss(), chunk=3)
    assert_close(gradients(got, weight)[0], gradients(wanted, weight)[0])


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradient_checkpointing_around_it(generator, use_reentrant, reduction):
    hidden, weight, _ = layer(generator)
    target = classes(generator)
    body = nn.Linear(D, D, dtype=torch.float64)

    def head(x):
        return linear_loss(body(x).tanh(), weight, target, CrossEntropyLoss(), reduction=reduction, chunk=4)

    upstream = torch.rand((ROWS,) if reduction == "none" else (), dtype=torch.float64, generator=generator)
    leaves = (hidden, weight, *body.parameters())
    wanted = []
    for value in (head(hidden), checkpoint(head, hidden, use_reentrant=use_reentrant)):
        for leaf in leaves:
            leaf.grad = None
        value.backward(upstream)
        wanted.append([leaf.grad.clone() for leaf in leaves])
    for one, other in zip(*wanted, strict=True):
        assert_close(one, other)


def test_a_second_backward_pass_is_as_right_as_the_first(generator):
    hidden, weight, _ = layer(generator)
    value = linear_loss(hidden, weight, classes(generator), CrossEntropyLoss(), chunk=4)
    first = torch.autograd.grad(3 * value, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(value, (hidden, weight))
    for one, other in zip(first, second, strict=True):
        assert_close(one, 3 * other)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_it_may_be_differentiated_twice(generator, reduction):
    hidden, weight, _ = layer(generator, rows=4)
    target = classes(generator, 4)
    counts = torch.rand(4, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda h, w, s: linear_loss(h, w, target, FocalLoss(), sample_weight=s, reduction=reduction, chunk=3),
        (hidden, weight, counts),
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", [CrossEntropyLoss(), BrierLoss()])
def test_torch_func_sees_plain_steps(generator, loss, reduction):
    weight = torch.randn(2, CLASSES, D, dtype=torch.float64, generator=generator)
    hidden = torch.randn(2, ROWS, D, dtype=torch.float64, generator=generator)
    target = classes(generator)

    def fused(h, w):
        return linear_loss(h, w, target, loss, reduction=reduction, chunk=4).sum()

    def plain(h, w):
        each = copy.copy(loss)
        each.reduction = reduction
        return each(h @ w.T, target).sum()

    for one, other in zip(
        torch.func.vmap(torch.func.grad(fused, argnums=(0, 1)))(hidden, weight),
        torch.func.vmap(torch.func.grad(plain, argnums=(0, 1)))(hidden, weight),
        strict=True,
    ):
        assert_close(one, other)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_it_compiles_to_one_graph(generator, reduction):
    hidden, weight, _ = layer(generator)
    target = classes(generator)
    counts = torch.rand(ROWS, dtype=torch.float64, generator=generator)
    torch._dynamo.reset()

    def step(h, w, y):
        return linear_loss(h, w, y, CompSumLoss(0.5), sample_weight=counts, reduction=reduction, chunk=4).sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    got, wanted = compiled(hidden, weight, target), step(hidden, weight, target)
    assert_close(got, wanted)
    for one, other in zip(gradients(got, (hidden, weight)), gradients(wanted, (hidden, weight)), strict=True):
        assert_close(one, other)


def test_under_autocast_sums_are_float32(generator):
    hidden, weight, bias = layer(generator, torch.float32, rows=64)
    target = classes(generator, 64)
    exact = F.cross_entropy(hidden.double() @ weight.double().T + bias.double(), target)
    wanted = gradients(exact, (hidden, weight, bias))

    def errors(value):
        found = gradients(value, (hidden, weight, bias))
        assert [tensor.dtype for tensor in found] == [torch.float32] * 3
        return [float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = linear_loss(hidden, weight, target, CrossEntropyLoss(), bias=bias, chunk=24)
        plain = F.cross_entropy(F.linear(hidden, weight, bias).float(), target)
    assert fused.dtype == torch.float32
    assert_close(fused.double(), exact, atol=1e-2, rtol=1e-2)
    for mine, theirs in zip(errors(fused), errors(plain), strict=True):
        assert mine <= 1.2 * theirs


def test_half_precision_layers_get_gradients_of_their_own_dtype(generator):
    hidden, weight, _ = layer(generator, torch.bfloat16)
    value = linear_loss(hidden, weight, classes(generator), FocalLoss(), chunk=4)
    assert value.dtype == torch.float32
    assert [g.dtype for g in gradients(value, (hidden, weight))] == [torch.bfloat16] * 2


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weights", [None, SoftMax()])
def test_a_memory_of_rows_is_updated_once_also_for_a_row_in_two_chunks(generator, reduction, weights):
    hidden, weight, _ = layer(generator)
    target = torch.where(torch.arange(ROWS) == 5, -100, classes(generator))
    index = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2])
    plain, fused = AdaptiveLDRLoss(8), AdaptiveLDRLoss(8)
    plain.reduction = reduction
    for _ in range(2):
        wanted = lw.Objective(plain, weights).risk(hidden @ weight.T, target, index=index)
        got = linear_loss(hidden, weight, target, fused, index=index, weights=weights, reduction=reduction, chunk=3)
        assert_close(got, wanted)
        upstream = torch.rand_like(wanted)
        assert_close(gradients(got, weight, upstream)[0], gradients(wanted, weight, upstream)[0])
        assert_close(fused.lam, plain.lam)
    assert bool((fused.lam != 10).any())
    assert fused.lam[5] == 10


def test_micro_batches_add_up(generator):
    hidden, weight, _ = layer(generator)
    target = classes(generator)
    whole = linear_loss(hidden, weight, target, CrossEntropyLoss())
    parts = [
        linear_loss(hidden[rows], weight, target[rows], CrossEntropyLoss(), total=ROWS)
        for rows in torch.arange(ROWS).split(4)
    ]
    assert_close(sum(parts), whole)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    for loss in (CrossEntropyLoss(), CrossEntropyLoss(0.1), LDAMLoss(torch.tensor([9.0, 3.0, 1.0]))):
        value = linear_loss(hidden, weight, torch.tensor([1, 1]), loss, reduction="sum")
        assert bool(value.isfinite())
        assert all(bool(g.isfinite().all()) for g in gradients(value, (hidden, weight)))


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"loss": OneVsRestEnsLoss()}, TypeError, "OneVsRestEnsLoss"),
        ({"loss": EnsLoss()}, TypeError, "EnsLoss"),
        ({"loss": nn.CrossEntropyLoss()}, TypeError, "loss"),
        ({"hidden": torch.ones(ROWS, D + 1)}, ValueError, "hidden"),
        ({"hidden": torch.ones(D)}, ValueError, "hidden"),
        ({"weight": torch.ones(CLASSES)}, ValueError, "weight"),
        ({"weight": torch.ones(CLASSES, D, dtype=torch.float64)}, TypeError, "weight"),
        ({"bias": torch.ones(CLASSES + 1)}, ValueError, "bias"),
        ({"target": torch.zeros(ROWS - 1, dtype=torch.long)}, ValueError, "target"),
        ({"target": torch.full((ROWS,), CLASSES)}, ValueError, "target"),
        ({"target": torch.zeros(ROWS, dtype=torch.int32)}, TypeError, "target"),
        ({"target": torch.zeros(ROWS, CLASSES + 1)}, ValueError, "target"),
        ({"loss": CompSumLoss(), "target": torch.zeros(ROWS, CLASSES)}, TypeError, "target"),
        ({"loss": SquaredLoss(), "target": torch.zeros(ROWS)}, ValueError, "target"),
        ({"sample_weight": torch.ones(ROWS + 1)}, ValueError, "sample_weight"),
        ({"weights": CrossEntropyLoss()}, TypeError, "weights"),
        ({"reduction": "average"}, ValueError, "reduction"),
        ({"total": torch.ones(2)}, ValueError, "total"),
        ({"total": ""}, TypeError, "total"),
        ({"chunk": 0}, ValueError, "chunk"),
        ({"loss": AdaptiveLDRLoss(ROWS)}, ValueError, "index"),
        ({"loss": AdaptiveLDRLoss(3), "index": torch.arange(ROWS)}, ValueError, "index"),
        ({"hidden": torch.full((ROWS, D), math.nan)}, ValueError, "NaN in row 0, 1, 2 and 8 more"),
    ],
)
def test_a_bad_argument_is_named(changed, error, match):
    given = {
        "hidden": torch.ones(ROWS, D),
        "weight": torch.ones(CLASSES, D),
        "target": torch.zeros(ROWS, dtype=torch.long),
        "loss": CrossEntropyLoss(),
    }
    with pytest.raises(error, match=match):
        linear_loss(**{**given, **changed})


def test_log_probabilities_of_sequences(generator):
    hidden, weight, bias = layer(generator, rows=12)
    tokens = torch.where(torch.arange(12) % 5 == 0, -100, classes(generator, 12)).reshape(3, 4)
    logits = (hidden @ weight.T + bias) / 2.0
    wanted = torch.distributions.Categorical(logits=logits).log_prob(tokens.flatten().clamp(min=0)).reshape(3, 4)
    wanted = wanted * (tokens >= 0)
    kwargs = {"bias": bias, "temperature": 2.0, "chunk": 5}
    shaped = hidden.reshape(3, 4, D)
    assert_close(linear_log_probs(shaped, weight, tokens, **kwargs), wanted)
    upstream = torch.randn(3, dtype=torch.float64, generator=generator)
    for how, want in (("sum", wanted.sum(1)), ("mean", wanted.sum(1) / (tokens >= 0).sum(1))):
        got = linear_log_probs(shaped, weight, tokens, sequence=how, **kwargs)
        assert_close(got, want)
        for one, other in zip(
            gradients(got, (hidden, weight, bias), upstream),
            torch.autograd.grad(want, (hidden, weight, bias), upstream, retain_graph=True),
            strict=True,
        ):
            assert_close(one, other)
    with pytest.raises(TypeError, match="target"):
        linear_log_probs(shaped, weight, tokens.double())
    with pytest.raises(ValueError, match="sequence"):
        linear_log_probs(shaped, weight, tokens, sequence="product")


@pytest.mark.parametrize("loss", [BiTemperedLoss(), LDRLoss(normalize="l1_mean"), PredictionEntropyLoss()])
def test_rows_that_are_ignored_have_no_gradient_whatever_comes_from_above(loss):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 3, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(5, 3, dtype=torch.float64, generator=generator).requires_grad_()
    above = torch.randn(6, dtype=torch.float64, generator=generator)
    target = torch.tensor([0, -100, 4, 2, -100, 1])
    fused = linear_loss(hidden, weight, target, loss, reduction="none")
    kept = target != -100
    plain = torch.zeros(6, dtype=torch.float64)
    plain[kept] = loss.per_sample(hidden[kept] @ weight.T, target[kept])
    assert_close(fused, plain)
    found, wanted = (torch.autograd.grad((above * losses).sum(), (hidden, weight)) for losses in (fused, plain))
    assert_close(found, wanted)
