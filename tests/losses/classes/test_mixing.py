import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.special import log_expit, log_softmax
from torch.testing import assert_close

from lossworks.losses import CrossEntropyLoss, MixingLoss


@pytest.fixture
def batch(generator):
    output = 2 * torch.randn(8, 4, generator=generator, dtype=torch.float64)
    gamma = 2 * torch.randn(8, generator=generator, dtype=torch.float64)
    return output, torch.arange(8) % 4, gamma, torch.arange(8) % 3 == 0


def spelled_out(output, target, gamma, attacked, c_bce, c_ce, c_prod):
    rows = []
    for z, y, g, t in zip(output.numpy(), target.tolist(), gamma.tolist(), attacked.tolist(), strict=True):
        surprise, wrong = -log_softmax(z)[y], -log_expit(g if t else -g)
        rows.append(c_bce * wrong + c_ce * surprise + c_prod * wrong * surprise)
    return torch.from_numpy(np.array(rows))


@pytest.mark.parametrize("prices", [(1.0, 0.5, 0.1), (0.3, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 1.5)])
def test_is_its_three_terms_spelled_out(batch, prices):
    assert_close(MixingLoss(*prices, reduction="none")(*batch), spelled_out(*batch, *prices))


def test_without_gamma_it_is_cross_entropy_at_its_price(batch):
    output, target, *_ = batch
    assert_close(MixingLoss(c_ce=0.7)(output, target), 0.7 * CrossEntropyLoss()(output, target))


def test_a_row_that_is_right_or_asks_the_right_model_has_no_product():
    loss = MixingLoss(0.0, 0.0, 1.0, reduction="none")
    output = torch.tensor([[200.0, 0.0], [0.0, 200.0]]).repeat_interleave(2, 0).double()
    gamma = torch.tensor([-50.0, 50.0, -50.0, 50.0]).double()
    found = loss(output, torch.tensor([0, 0, 0, 0]), gamma, torch.ones(4))
    assert_close(found, torch.tensor([0.0, 0.0, 200.0 * 50.0, 0.0]).double())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.float16])
def test_attacked_may_come_in_any_dtype(batch, dtype):
    *first, attacked = batch
    assert_close(MixingLoss()(*first, attacked.to(dtype)), MixingLoss()(*batch))


def test_the_gradient_is_the_derivative_in_both(batch):
    output, target, gamma, attacked = batch
    learned = output.requires_grad_(), gamma.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, g: MixingLoss()(z, target, g, attacked), learned)


def test_ignored_rows_and_weights_count_as_in_every_loss(batch):
    output, target, gamma, attacked = batch
    weight = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    ignoring = target.clone()
    ignoring[[1, 5]] = -100
    kept = torch.tensor([0, 2, 3, 4, 6, 7])
    found = MixingLoss()(output, ignoring, gamma, attacked, sample_weight=weight)
    rows = spelled_out(*batch, 1.0, 0.5, 0.1)
    assert_close(found, (rows * weight)[kept].sum() / weight[kept].sum())
    each = MixingLoss(reduction="none")(output, ignoring, gamma, attacked)
    assert_close(each, torch.where(ignoring >= 0, rows, 0))


def test_a_number_a_row_holds_for_all_of_its_places(batch):
    _, _, gamma, attacked = batch
    output = torch.linspace(-1, 1, 8 * 4 * 3, dtype=torch.float64).reshape(8, 4, 3)
    target = (torch.arange(24) % 4).reshape(8, 3)
    found = MixingLoss(reduction="none")(output, target, gamma, attacked)
    places = [MixingLoss(reduction="none")(output[..., j], target[:, j], gamma, attacked) for j in range(3)]
    assert_close(found, torch.stack(places, dim=1))


def test_class_probabilities_may_be_the_target(batch):
    output, target, gamma, attacked = batch
    one_hot = torch.eye(4, dtype=torch.float64)[target]
    assert_close(MixingLoss()(output, one_hot, gamma, attacked), MixingLoss()(*batch))


def test_micro_batches_add_up_to_the_batch(batch):
    loss = MixingLoss()
    parts = zip(*(column.split([3, 5]) for column in batch), strict=True)
    assert_close(sum(loss(*part, total=loss.total_of(batch[1])) for part in parts), loss(*batch))


def over_ranks(batch):
    sizes, rank = [6, 2], dist.get_rank()
    output, target, gamma, attacked = (column.split(sizes)[rank].clone() for column in batch)
    output.requires_grad_()
    gamma.requires_grad_()
    value = MixingLoss()(output, target, gamma, attacked, process_group=dist.group.WORLD)
    value.backward()
    return value.detach(), output.grad, gamma.grad


def test_the_mean_over_ranks_is_the_batchs(batch, two_ranks):
    value, *gradients = zip(*two_ranks.call(over_ranks, batch), strict=True)
    output, target, gamma, attacked = batch
    whole = MixingLoss()(output.requires_grad_(), target, gamma.requires_grad_(), attacked)
    whole.backward()
    assert_close(torch.stack(value).mean(), whole.detach())
    for found, wanted in zip(gradients, (output.grad, gamma.grad), strict=True):
        assert_close(torch.cat(found) / 2, wanted)


def test_stacks_with_its_prices(batch):
    def value(price, output, gamma):
        return MixingLoss(price, price, price)(output, batch[1], gamma, batch[3])

    prices = torch.tensor([0.1, 1.0], dtype=torch.float64)
    output, gamma = torch.stack([batch[0], -batch[0]]), torch.stack([batch[2], 3 * batch[2]])
    together = torch.func.vmap(value)(prices, output, gamma)
    assert_close(together, torch.stack([value(*rows) for rows in zip(prices, output, gamma, strict=True)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stays_finite_where_gamma_is_extreme(dtype):
    gamma = torch.tensor([-1e4, 1e4, -1e4, 1e4], dtype=dtype, requires_grad=True)
    value = MixingLoss()(torch.zeros(4, 2, dtype=dtype), torch.zeros(4, dtype=torch.int64), gamma, torch.arange(4) < 2)
    value.backward()
    one = float(gamma.detach()[1]) * (1 + 0.1 * math.log(2)) / 2
    assert float(value.detach()) == pytest.approx(one + 0.5 * math.log(2), rel=1e-3)
    assert gamma.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, y, g, t: MixingLoss(-1.0), "c_bce"),
        (lambda z, y, g, t: MixingLoss(c_ce=-1.0), "c_ce"),
        (lambda z, y, g, t: MixingLoss(c_prod=math.nan), "c_prod"),
        (lambda z, y, g, t: MixingLoss()(z, y, g), "attacked must be given beside gamma"),
        (lambda z, y, g, t: MixingLoss()(z, y, attacked=t), "gamma must be given beside attacked"),
        (lambda z, y, g, t: MixingLoss()(z, y, g[:1], t), r"gamma must have shape \(8,\)"),
        (lambda z, y, g, t: MixingLoss()(z, y, g, t[:, None]), r"attacked must have shape \(8,\)"),
        (lambda z, y, g, t: MixingLoss()(z, y, g, 2 * t.int()), "attacked must be 0 or 1"),
        (lambda z, y, g, t: MixingLoss()(z, y, g * math.nan, t), "gamma has NaN in row 0"),
        (lambda z, y, g, t: MixingLoss()(z, y, g.long(), t), "gamma must be floating-point"),
        (lambda z, y, g, t: MixingLoss()(z, y, g, t, total=-1.0), "total"),
        (lambda z, y, g, t: MixingLoss()(z, y + 9, g, t), "target must be in"),
    ],
)
def test_bad_arguments_are_named(batch, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(*batch)
