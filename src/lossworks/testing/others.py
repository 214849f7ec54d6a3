"""The contract of weightings, perturbations and penalties as named assertions."""

import copy
import pickle
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from lossworks.roles import Part, Penalty, Perturbation, Weighting
from lossworks.testing.inputs import CLASSES, ROWS, expect_error, from_data


def _rows(weighting: Weighting) -> tuple[Tensor, dict[str, Any]]:
    """Losses of one epoch over the data set that the weighting was built for, and the columns that it may ask for."""
    counts = from_data()["class_counts"].long()
    rows = int(counts.sum()) if weighting.needs_target else ROWS
    losses = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return losses, {
        "index": torch.arange(rows),
        "group": torch.arange(rows) % 3,
        "target": torch.repeat_interleave(torch.arange(CLASSES), counts)[:rows],
    }


def _same_state(part: Part) -> list[Any]:
    fresh = copy.deepcopy(part)
    fresh.load_state_dict(part.state_dict())
    return [fresh, copy.deepcopy(part), pickle.loads(pickle.dumps(part))]


def assert_weights_valid(weighting: Weighting) -> None:
    """Weights are finite, non-negative, of mean 1, shuffle with the rows, and survive saving."""
    losses, columns = _rows(weighting)
    weights = copy.deepcopy(weighting)(losses, **columns)
    assert weights.shape == losses.shape
    assert bool((weights >= 0).all())
    assert bool(weights.isfinite().all())
    assert_close(weights.mean(), torch.ones((), dtype=weights.dtype))
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[order] for name, value in columns.items()}
    assert_close(copy.deepcopy(weighting)(losses[order], **shuffled), weights[order])
    for copied in _same_state(weighting):
        assert_close(copied(losses, **columns), weights)
    if not weighting.reads_losses:
        assert_close(copy.deepcopy(weighting)(torch.ones_like(losses), **columns), weights)
    if weighting.over_data_set:
        half = {name: value[:5] for name, value in columns.items()}
        assert_close(copy.deepcopy(weighting)(losses[:5], **half), weights[:5])
    for name, needed in (("target", weighting.needs_target), ("group", weighting.needs_group)):
        if needed:
            expect_error(name, partial(weighting, losses, **{**columns, name: None}))


def assert_weights_vmap(weighting: Weighting) -> None:
    """Stacked losses under ``vmap`` get the weights that each would get alone."""
    losses, columns = _rows(weighting)
    stacked = torch.stack([losses, losses.flip(0), losses**2])
    held = {name: torch.stack([tensor] * 3) for name, tensor in weighting.state_dict().items()}
    together = torch.func.vmap(lambda state, row: functional_call(weighting, state, (row,), columns))(held, stacked)
    assert_close(together, torch.stack([copy.deepcopy(weighting)(row, **columns) for row in stacked]))


class _Noisy(nn.Module):
    """A small model with a mode, buffers and gradients that a perturbation could disturb."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.rest = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x)).squeeze(1)


def assert_perturbs_in_place_of(perturbation: Perturbation) -> None:
    """The perturbed input has the input's shape and dtype and carries no graph to what made it."""
    for shape in ((ROWS, 4), (ROWS, 2, 3, 3)):
        for dtype in (torch.float32, torch.float64):
            x = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
            torch.manual_seed(0)
            changed = perturbation(lambda inputs: inputs.flatten(1).pow(2).sum(1), x)
            assert changed.shape == x.shape
            assert changed.dtype == x.dtype
            assert bool(changed.isfinite().all())
            assert not changed.requires_grad
    for copied in _same_state(perturbation):
        torch.manual_seed(0)
        assert_close(copied(lambda inputs: inputs.flatten(1).pow(2).sum(1), x), changed)


def assert_leaves_model_alone(perturbation: Perturbation) -> None:
    """The model's mode, gradients and parameters are as they were."""
    model = _Noisy().eval()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    before = copy.deepcopy(model.state_dict())
    perturbation(model, torch.rand(ROWS, 4, generator=torch.Generator().manual_seed(0)))
    assert not model.training
    assert_close(model.first.weight.grad, torch.ones_like(model.first.weight))
    assert all(parameter.grad is None for parameter in model.rest.parameters())
    for name, tensor in model.state_dict().items():
        assert_close(tensor, before[name], atol=0, rtol=0)


def assert_never_helps_the_model(perturbation: Perturbation) -> None:
    """A perturbation that looks at the risk never lowers it, row by row, and its rows do not look at each other."""
    x = torch.randn(ROWS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    asked = 0

    def risk(inputs: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return (3 * inputs).sin().sum(1) - inputs.square().sum(1)

    torch.manual_seed(0)
    changed = perturbation(risk, x)
    if not asked:
        return
    assert bool((risk(changed) >= risk(x)).all()), "a row's risk is lower than at its clean input"
    if not perturbation.stochastic:
        alone = torch.cat([perturbation(risk, row[None]) for row in x])
        assert_close(alone, changed, msg="a row is changed otherwise when it is alone: {}".format)
        stacked = torch.func.vmap(lambda rows: perturbation(risk, rows))(torch.stack([x, 2 * x]))
        assert_close(stacked, torch.stack([changed, perturbation(risk, 2 * x)]))


def assert_scalar_penalty(penalty: Penalty) -> None:
    """One finite number whose gradient is its derivative, and which stacks under ``vmap``."""
    model = _Noisy().double()
    value = penalty(model)
    assert value.shape == ()
    assert bool(value.isfinite())
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}

    class Priced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return penalty(self.model)

    def priced(*tensors: Tensor) -> Tensor:
        state = {f"model.{name}": tensor for name, tensor in zip(weights, tensors, strict=True)}
        result = functional_call(Priced(), state, ())
        assert isinstance(result, Tensor)
        return result

    assert torch.autograd.gradcheck(priced, [tensor.clone().requires_grad_() for tensor in weights.values()])
    stacked = [torch.stack([tensor, 2 * tensor]) for tensor in weights.values()]
    together = torch.func.vmap(priced)(*stacked)
    assert_close(together, torch.stack([priced(*[tensor[r] for tensor in stacked]) for r in range(2)]))
    for copied in _same_state(penalty):
        assert_close(copied(model), value)
