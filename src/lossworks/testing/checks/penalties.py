"""The checks of a price on the model."""

import copy
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.roles import Penalty
from lossworks.testing.checks.perturbations import Noisy
from lossworks.testing.inputs import CLASSES, ROWS, expect_error
from lossworks.testing.ranks import Ranks

__all__ = [
    "clear_errors",
    "features_are_passed",
    "gradcheck",
    "leaves_model_alone",
    "never_negative",
    "reads_the_features",
    "scalar",
    "sharded_weights_count_once",
    "tied_weights_count_once",
    "used",
    "vmaps",
]

WIDTH = 4


def _features(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def _call(penalty: Penalty, model: nn.Module, features: Tensor | None = None) -> Tensor:
    if penalty.reads_features and features is None:
        features = _features(next(model.parameters()).dtype)
    value: Tensor = penalty(model, features=features) if penalty.reads_features else penalty(model)
    return value


def used(penalty: Penalty) -> list[Tensor | None]:
    """The penalty of the example's model, and its gradient."""
    model = Noisy().double()
    value = _call(penalty, model)
    return [value, *torch.autograd.grad(value, list(model.parameters()), allow_unused=True)]


def scalar(penalty: Penalty) -> None:
    """One finite number in the dtype of the weights."""
    for dtype in (torch.float32, torch.float64):
        value = _call(penalty, Noisy().to(dtype))
        assert value.shape == (), f"a model must have one number, it has shape {tuple(value.shape)}"
        assert value.dtype == dtype, f"a model in {dtype} has a penalty in {value.dtype}"
        assert bool(value.isfinite()), f"the penalty is {value.item()}"


def never_negative(penalty: Penalty) -> None:
    """The penalty is at least 0 for small, large and zero weights."""
    for scale in (0.0, 1e-3, 1.0, 1e3):
        model = Noisy().double()
        for parameter in model.parameters():
            parameter.data *= scale
        assert float(_call(penalty, model).detach()) >= 0, f"weights scaled by {scale:g} have a penalty below 0"


class _Priced(nn.Module):
    """A model's penalty as a module, so that it can be taken of other weights."""

    def __init__(self, penalty: Penalty, model: nn.Module) -> None:
        super().__init__()
        self.penalty, self.model = penalty, model

    def forward(self) -> Tensor:
        return _call(self.penalty, self.model)

    def at(self, *weights: Tensor) -> Tensor:
        """The penalty where the model has these weights."""
        names = [f"model.{name}" for name, _ in self.model.named_parameters()]
        result = functional_call(self, dict(zip(names, weights, strict=True)), ())
        assert isinstance(result, Tensor)
        return result


def gradcheck(penalty: Penalty) -> None:
    """The gradient in the weights is the derivative."""
    model = Noisy().double()
    weights = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    assert torch.autograd.gradcheck(_Priced(copy.deepcopy(penalty), model).at, weights)


def vmaps(penalty: Penalty) -> None:
    """Stacked models under ``vmap`` have the penalties that each would have alone."""
    model = Noisy().double()
    priced = _Priced(copy.deepcopy(penalty), model)
    stacked = [torch.stack([parameter.detach(), 2 * parameter.detach()]) for parameter in model.parameters()]
    together = torch.func.vmap(priced.at)(*stacked)
    assert_close(together, torch.stack([priced.at(*[tensor[r] for tensor in stacked]) for r in range(2)]))


def leaves_model_alone(penalty: Penalty) -> None:
    """The model's modes, weights, buffers and gradients are as they were."""
    model = Noisy().double()
    model.rest.eval()
    before = copy.deepcopy(model.state_dict())
    _call(copy.deepcopy(penalty), model)
    assert [module.training for module in (model, model.first, model.rest)] == [True, True, False], "a mode changed"
    assert all(parameter.grad is None for parameter in model.parameters()), "a weight got a gradient"
    for name, tensor in model.state_dict().items():
        assert_close(tensor, before[name], atol=0, rtol=0)


def tied_weights_count_once(penalty: Penalty) -> None:
    """A weight that stands in two places of the model is paid for once."""
    first, last = (nn.Linear(WIDTH, outputs, bias=False).double() for outputs in (WIDTH, 2))
    second = nn.Linear(WIDTH, WIDTH, bias=False).double()
    second.weight = first.weight
    tied, plain = nn.Sequential(first, nn.ReLU(), second, last), nn.Sequential(first, nn.ReLU(), last)
    own = copy.deepcopy(penalty)
    assert_close(_call(own, tied), _call(own, plain), msg="a weight in two places is paid for twice: {}".format)


def sharded_weights_count_once(penalty: Penalty, ranks: Ranks) -> None:
    """Of a model whose weights are spread over processes each of them gives the whole model's penalty."""
    wanted = float(_call(copy.deepcopy(penalty), _spread_out()).detach())
    for rank, value in enumerate(ranks.call(_on_a_rank, copy.deepcopy(penalty))):
        assert not isinstance(value, str), f"it fails on rank {rank}: {value}"
        assert abs(value - wanted) <= 1e-9 * max(1, abs(wanted)), f"rank {rank} has {value:g}, the whole {wanted:g}"


def _spread_out() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def _on_a_rank(penalty: Penalty) -> float | str:
    """The penalty of a model each of whose weights this rank has some rows of, or why it has none."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = _spread_out()
    for layer in model.children():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            layer.register_parameter(name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    try:
        return float(_call(penalty, model).detach())
    except Exception as error:
        return str(error).partition("\n")[0]


def reads_the_features(penalty: Penalty) -> None:
    """Other features have another penalty, whose gradient reaches them; without any, the error names them."""
    model, features = Noisy().double(), _features()
    leaf = features.clone().requires_grad_()
    value = _call(copy.deepcopy(penalty), model, leaf)
    other = _call(copy.deepcopy(penalty), model, 2 * features + 1)
    assert not torch.equal(value, other), "features= makes no difference"
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    assert gradient is not None, "no gradient reaches the features"
    assert bool((gradient != 0).any()), "the gradient in the features is 0"
    expect_error("features", partial(copy.deepcopy(penalty), model))


class _Pair(nn.Module):
    """A model that gives its features beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH).double(), nn.Linear(WIDTH, CLASSES).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.head(features), features


def features_are_passed(penalty: Penalty) -> None:
    """An objective gives the penalty the features that the model gives beside its output."""
    model, x, target = _Pair(), _features(), torch.arange(ROWS) % CLASSES
    logits, features = model(x)
    value = Objective(CrossEntropyLoss(), penalties=[copy.deepcopy(penalty)])(model, x, target)
    assert_close(value, CrossEntropyLoss()(logits, target) + _call(copy.deepcopy(penalty), model, features))


def clear_errors(penalty: Penalty) -> None:
    """A model without weights is named in the error."""
    expect_error("model", partial(_call, copy.deepcopy(penalty), nn.ReLU(), _features()))
