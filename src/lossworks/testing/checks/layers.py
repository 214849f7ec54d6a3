"""The checks of a layer, which stands between others or before a weight."""

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.testing import assert_close

from lossworks.testing.inputs import ROWS, expect_error
from lossworks.testing.models import MAPS, is_parametrization

__all__ = [
    "clear_errors",
    "compiles",
    "dtype_kept",
    "empty_batch",
    "eval_is_fixed",
    "finite_output",
    "gradcheck",
    "input_left_alone",
    "rows_stand_alone",
    "starts_as_identity",
    "used",
    "vmaps",
]


def _example(layer: nn.Module, dtype: torch.dtype = torch.float64, rows: int = ROWS) -> Tensor:
    shape = (4, MAPS[0]) if is_parametrization(layer) else (rows, *MAPS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def used(layer: nn.Module) -> list[Tensor]:
    """What the layer makes of the example, and the gradient."""
    x = _example(layer).requires_grad_()
    output = layer(x)
    return [output, torch.autograd.grad(output.sum(), x)[0]]


def _call(layer: nn.Module, x: Tensor, *, training: bool = False) -> Tensor:
    torch.manual_seed(0)
    output: Tensor = copy.deepcopy(layer).train(training)(x)
    return output


def finite_output(layer: nn.Module) -> None:
    """In training and in evaluation mode the output is finite, of inputs that are usual, 0 or large."""
    for training in (True, False):
        for scale in (1.0, 0.0, 1e4):
            output = _call(layer, scale * _example(layer), training=training)
            mode = "training" if training else "evaluation"
            assert bool(output.isfinite().all()), f"in {mode} mode an input scaled by {scale:g} has no finite output"


def dtype_kept(layer: nn.Module) -> None:
    """The output has the input's dtype, in both modes; that of half precision may be in float32, as a loss is."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        allowed = (dtype, torch.float32) if dtype == torch.bfloat16 else (dtype,)
        for training in (True, False):
            output = _call(layer, _example(layer, dtype), training=training)
            assert output.dtype in allowed, f"an input in {dtype} has an output in {output.dtype}"


def eval_is_fixed(layer: nn.Module) -> None:
    """In evaluation mode nothing is drawn: the same input has the same output, and the generator stands still."""
    own, x = copy.deepcopy(layer).eval(), _example(layer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first, second = own(x), own(x)
        assert torch.equal(torch.get_rng_state(), before), "random numbers are drawn in evaluation mode"
    assert torch.equal(first, second), "the same input has two outputs in evaluation mode"


def starts_as_identity(layer: nn.Module) -> None:
    """In evaluation mode the layer gives what it is given; a weight that it is put before keeps its value."""
    if not is_parametrization(layer):
        assert_close(_call(layer, _example(layer)), _example(layer))
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Linear(MAPS[0], 4).double()
    before = plain.weight.detach().clone()
    parametrize.register_parametrization(plain, "weight", copy.deepcopy(layer).eval())
    assert_close(plain.weight.detach(), before)


def gradcheck(layer: nn.Module) -> None:
    """The gradient in the input is the derivative, with draws held fixed; in both modes where rows stand alone."""
    for training in (False,) if getattr(layer, "couples_batch", False) else (True, False):
        own = copy.deepcopy(layer).train(training)
        assert torch.autograd.gradcheck(partial(_fixed, own), _example(layer, rows=3).requires_grad_())


def _fixed(layer: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    output: Tensor = layer(x)
    return output


def rows_stand_alone(layer: nn.Module) -> None:
    """In evaluation mode a row's output is the same whatever else is in the batch."""
    x = _example(layer)
    assert_close(torch.cat([_call(layer, row[None]) for row in x]), _call(layer, x))


def vmaps(layer: nn.Module) -> None:
    """Stacked inputs under ``vmap`` have the outputs that each would have alone, and in training mode it runs."""
    x = _example(layer)
    stacked = torch.stack([x, -x])
    own = copy.deepcopy(layer).eval()
    assert_close(torch.func.vmap(own)(stacked), torch.stack([own(x), own(-x)]))
    training = copy.deepcopy(layer).train()
    held = {name: torch.stack([tensor.detach()] * 2) for name, tensor in training.state_dict().items()}
    replicas = torch.func.vmap(lambda state, rows: functional_call(training, state, (rows,)), randomness="different")
    drawn = replicas(held, stacked)
    assert drawn.shape == (2, *_call(layer, x, training=True).shape), "in training mode vmap gives another shape"


def compiles(layer: nn.Module) -> None:
    """``torch.compile`` takes the layer in one graph in both modes, with the same output in evaluation mode."""
    x = _example(layer)
    for training in (True, False):
        torch._dynamo.reset()
        compiled = torch.compile(copy.deepcopy(layer).train(training), backend="eager", fullgraph=True)
        output = compiled(x)
        if not training:
            assert_close(output, _call(layer, x))


def empty_batch(layer: nn.Module) -> None:
    """No rows have no outputs."""
    output = _call(layer, _example(layer, rows=0))
    assert len(output) == 0, f"no rows have an output of shape {tuple(output.shape)}"


def input_left_alone(layer: nn.Module) -> None:
    """The input is not changed in place."""
    for training in (True, False):
        x = _example(layer)
        before = x.clone()
        _call(layer, x, training=training)
        assert torch.equal(x, before), "the input was changed in place"


def clear_errors(layer: nn.Module) -> None:
    """An input that is no floats, or no tensor, raises an error that names it."""
    name = "weight" if is_parametrization(layer) else "x"
    for wrong in (_example(layer).long(), "rows"):
        expect_error(name, partial(copy.deepcopy(layer), wrong))
