import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.layers import NestedDropout
from lossworks.losses import AdaptiveLDRLoss, CrossEntropyLoss
from lossworks.select import CoTeachingSelector, co_teaching_step


@pytest.fixture
def batch(generator):
    return torch.randn(20, 4, generator=generator), torch.randint(3, (20,), generator=generator)


@pytest.fixture
def models():
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)) for _ in "ab"
    ]


def sgd(models):
    return [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]


def test_each_hands_the_other_the_rows_that_numpy_sorts_first(generator):
    first, second = torch.rand(2, 33, generator=generator)
    for epoch, share in enumerate((0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4)):
        found = CoTeachingSelector(0.4, warmup_epochs=4)(first, second, epoch)
        kept = int(np.floor((1 - share) * 33))
        assert found.for_second.tolist() == np.argsort(first.numpy())[:kept].tolist()
        assert found.for_first.tolist() == np.argsort(second.numpy())[:kept].tolist()
    assert found[0] is found.for_second


def test_nothing_is_forgotten_in_the_first_epoch_or_at_rate_0(generator):
    losses = torch.rand(2, 9, generator=generator)
    for selector, epoch in ((CoTeachingSelector(0.9), 0), (CoTeachingSelector(0.0), 7)):
        assert [sorted(rows.tolist()) for rows in selector(*losses, epoch)] == [list(range(9))] * 2


def test_without_a_warm_up_the_rate_is_full_at_once():
    assert CoTeachingSelector(0.3, warmup_epochs=0).rate(0) == 0.3
    assert [CoTeachingSelector(0.3, warmup_epochs=2).rate(t) for t in range(4)] == pytest.approx([0, 0.15, 0.3, 0.3])


def test_the_rate_is_full_after_t_steps_where_published_code_takes_one_fewer():
    selector, published = CoTeachingSelector(0.2, warmup_epochs=5), np.full(8, 0.2)
    published[:5] = np.linspace(0, 0.2, 5)
    ours = [selector.rate(epoch) for epoch in range(8)]
    assert (published.argmax(), np.argmax(ours)) == (4, 5)
    assert ours == pytest.approx([0.2 * min(epoch / 5, 1) for epoch in range(8)])


@pytest.mark.parametrize(("rate", "rows"), [(0.9, 10), (0.7, 10), (0.4, 5), (0.2, 1000), (0.99, 1)])
def test_the_number_kept_does_not_suffer_from_rounding_and_is_never_0(rate, rows):
    losses = torch.arange(rows) + 0.5
    found = CoTeachingSelector(rate, warmup_epochs=0)(losses, losses, 0)
    assert len(found.for_first) == max(round((1 - rate) * rows), 1)


def test_equal_losses_keep_their_order_and_infinite_ones_come_last():
    selector = CoTeachingSelector(0.5, warmup_epochs=0)
    found = selector(torch.ones(4), torch.tensor([torch.inf, 2.0, torch.inf, 3.0]), 0)
    assert found.for_second.tolist() == [0, 1]
    assert found.for_first.tolist() == [1, 3]
    assert [len(rows) for rows in selector(torch.ones(0), torch.ones(0), 3)] == [0, 0]


def test_a_step_is_the_two_exchanged_steps_spelled_out(batch, models):
    x, target = batch
    selector = CoTeachingSelector(0.3, warmup_epochs=1)
    by_hand = copy.deepcopy(models)
    torch.manual_seed(1)
    values = co_teaching_step(models, sgd(models), CrossEntropyLoss(), selector, x, target, 1)
    torch.manual_seed(1)
    with torch.no_grad():
        own = [cross_entropy(model.eval()(x), target, reduction="none") for model in by_hand]
    for model, optimizer, others, value in zip(by_hand, sgd(by_hand), own[::-1], values, strict=True):
        rows = others.argsort()[:14]
        wanted = cross_entropy(model.train()(x[rows]), target[rows])
        wanted.backward()
        optimizer.step()
        assert_close(value, wanted.detach())
    for model, wanted in zip(models, by_hand, strict=True):
        assert_close(model.state_dict(), wanted.state_dict())


def test_rows_to_ignore_are_neither_picked_nor_counted(batch, models):
    x, target = batch
    masked = torch.where(torch.arange(20) < 8, -100, target)
    some = copy.deepcopy(models)
    selector = CoTeachingSelector(0.5, warmup_epochs=0)
    for these, rows, labels in ((models, x, masked), (some, x[8:], target[8:])):
        torch.manual_seed(1)
        co_teaching_step(these, sgd(these), CrossEntropyLoss(), selector, rows, labels, 0)
    assert_close(models[0].state_dict(), some[0].state_dict())


def test_picking_leaves_modes_as_they_were_and_running_statistics_to_the_step(batch, models):
    x, target = batch
    models[0][1].eval()
    models[1].eval()
    modes = [[module.training for module in model.modules()] for model in models]
    co_teaching_step(models, sgd(models), CrossEntropyLoss(), CoTeachingSelector(), x, target, 0)
    assert [[module.training for module in model.modules()] for model in models] == modes
    assert int(models[0][1].num_batches_tracked) == 0
    models[0].train()
    co_teaching_step(models, sgd(models), CrossEntropyLoss(), CoTeachingSelector(), x, target, 0)
    assert int(models[0][1].num_batches_tracked) == 1


def test_nested_dropout_that_began_alike_is_cut_alike_in_both_networks(batch):
    x, target = batch
    lengths = []
    torch.manual_seed(0)
    layers = [NestedDropout(12, generator=torch.Generator().manual_seed(5)) for _ in "ab"]
    pair = [nn.Sequential(nn.Linear(4, 12), nn.Sigmoid(), layer, nn.Linear(12, 3, bias=False)) for layer in layers]
    for layer in layers:
        layer.register_forward_hook(
            lambda module, _, output: lengths.append(int((output[0] != 0).sum())) if module.training else None
        )
    for epoch in range(6):
        co_teaching_step(pair, sgd(pair), CrossEntropyLoss(), CoTeachingSelector(), x, target, epoch)
    assert lengths[::2] == lengths[1::2]
    assert len(set(lengths)) > 1


def test_says_what_is_wrong(batch, models):
    x, target = batch
    selector, losses = CoTeachingSelector(), torch.ones(3)
    with pytest.raises(ValueError, match=r"forget_rate must be in \[0, 1\), got 1"):
        CoTeachingSelector(1.0)
    with pytest.raises(ValueError, match="warmup_epochs must be >= 0, got -1"):
        CoTeachingSelector(warmup_epochs=-1)
    with pytest.raises(ValueError, match="epoch must be >= 0"):
        selector(losses, losses, -1)
    with pytest.raises(ValueError, match="second must have the shape of first"):
        selector(losses, torch.ones(4), 0)
    with pytest.raises(ValueError, match=r"first must have shape \(n,\)"):
        selector(losses[None], losses[None], 0)
    with pytest.raises(ValueError, match="second must be numbers or inf, got nan in row 1"):
        selector(losses, torch.tensor([0.0, torch.nan, 0.0]), 0)
    step = [models, sgd(models), CrossEntropyLoss(), selector, x, target, 0]

    def spoiled(place, value):
        return [*step[:place], value, *step[place + 1 :]]

    for place, value, error, message in (
        (0, models[:1], ValueError, "models must be two"),
        (0, ["a", "b"], TypeError, "models must be two of Module, got str"),
        (1, models, TypeError, "optimizers must be two of Optimizer"),
        (2, nn.CrossEntropyLoss(), TypeError, "loss must be a lossworks Loss"),
        (2, AdaptiveLDRLoss(20), TypeError, "loss must be a lossworks Loss without a memory"),
        (2, CrossEntropyLoss(reduction="none"), ValueError, "reduction 'mean' or 'sum'"),
        (3, None, TypeError, "selector must be a CoTeachingSelector"),
        (5, target[:3], ValueError, "target must have one entry a row of x"),
    ):
        with pytest.raises(error, match=message):
            co_teaching_step(*spoiled(place, value))


def test_what_the_models_cannot_take_is_named():
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    arguments = (models, optimizers, CrossEntropyLoss(), CoTeachingSelector())
    with pytest.raises(ValueError, match="x must be what models take"):
        co_teaching_step(*arguments, torch.ones(3, 5), torch.tensor([0, 1, 0]), 0)
    with pytest.raises(ValueError, match=r"models must give what loss takes.*NaN"):
        co_teaching_step(*arguments, torch.full((3, 2), torch.nan), torch.tensor([0, 1, 0]), 0)
    nn.init.constant_(models[1].weight, 2)
    with pytest.raises(ValueError, match="models must give outputs whose losses are numbers or inf, got NaN in row 1"):
        co_teaching_step(*arguments, torch.tensor([[1.0, 1.0], [3e38, 3e38], [1.0, 1.0]]), torch.tensor([0, 1, 0]), 0)


@pytest.mark.parametrize(("x", "target"), [(torch.ones(()), torch.zeros(1)), (torch.ones(1, 2), torch.tensor(0))])
def test_a_batch_without_rows_on_one_side_is_named(x, target):
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    with pytest.raises(ValueError, match="target must have one entry a row of x"):
        co_teaching_step(models, optimizers, CrossEntropyLoss(), CoTeachingSelector(0.2), x, target, 0)
