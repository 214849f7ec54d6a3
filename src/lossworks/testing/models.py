"""The models and batches that parts are tried on: each part in its role, beside plain ones in the others."""

import copy
import inspect

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Calibrator, Loss, Part, Penalty, Perturbation, Weighting, asked_once
from lossworks.testing.inputs import CLASSES, ROWS

FEATURES = 4
MAPS = torch.Size([3, 2, 2])

Batch = dict[str, Tensor]


class Model(nn.Module):
    """A small network, with a layer under test in it, and one output a row as a vector where a part takes that."""

    def __init__(self, outputs: int, flat: bool, dtype: torch.dtype, layer: nn.Module | None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, MAPS.numel()), nn.ReLU())
        self.head = nn.Linear(MAPS.numel(), outputs)
        self.flat = flat
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).div(2).to(dtype)
        self.layer = None if is_parametrization(layer) else layer
        if layer is not None and self.layer is None:
            parametrize.register_parametrization(self.body[0], "weight", layer.to(dtype))

    def hidden(self, x: Tensor) -> Tensor:
        """What the last layer takes."""
        hidden: Tensor = self.body(x)
        if self.layer is None:
            return hidden
        maps: Tensor = self.layer(hidden.unflatten(1, MAPS))
        drawn = maps.ndim > 1 + len(MAPS)
        return (maps.mean(dim=0) if drawn else maps).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        output: Tensor = self.head(self.hidden(x))
        return output.squeeze(1) if self.flat else output


class _RiskLoss(BatchLoss):
    """A number for a batch of losses, as a loss of its own."""

    kind = CrossEntropyLoss.kind

    def __init__(self, risk: Part) -> None:
        super().__init__()
        self.risk = risk

    def forward(self, *inputs: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        value: Tensor = self.risk(CrossEntropyLoss(reduction="none")(*inputs))
        return value


def _takes(part: nn.Module) -> list[str]:
    """The names of what a part without a role is called on."""
    return list(inspect.signature(part.forward).parameters)


def is_layer(part: nn.Module) -> bool:
    """Whether it has no role, and stands in the model."""
    roles = (Loss, BatchLoss, Weighting, Perturbation, Penalty, Calibrator, Objective)
    return not isinstance(part, roles) and _takes(part) in (["x"], ["weight"])


def is_parametrization(part: nn.Module | None) -> bool:
    """Whether it stands before a weight of the model and not between its layers."""
    return part is not None and _takes(part) == ["weight"]


def setting_of(part: nn.Module, dtype: torch.dtype) -> tuple[Objective, Model]:
    """The part in its role, beside cross-entropy where it is not a loss, and a model for it."""
    part = copy.deepcopy(part).train()
    for learned in part.parameters():
        learned.data = learned.data.to(dtype)
    layer = None
    if isinstance(part, Objective):
        objective = part
    elif isinstance(part, (Loss, BatchLoss)):
        objective = Objective(part)
    elif isinstance(part, Weighting):
        objective = Objective(CrossEntropyLoss(), part)
    elif isinstance(part, Perturbation):
        objective = Objective(CrossEntropyLoss(), perturb=part)
    elif isinstance(part, Penalty):
        objective = Objective(CrossEntropyLoss(), penalties=[part])
    elif is_layer(part):
        objective, layer = Objective(CrossEntropyLoss()), part
    else:
        assert isinstance(part, Part)
        objective = Objective(_RiskLoss(part))
    outputs = objective.loss.output_size(CLASSES)
    return objective, Model(outputs, is_flat(objective.loss, outputs), dtype, layer)


def is_flat(loss: Loss | BatchLoss, outputs: int) -> bool:
    """Whether the loss takes one output a row, and takes it as a vector."""
    return outputs == 1 and loss.kind.flat


def is_stochastic(part: nn.Module) -> bool:
    """Whether anything in it draws."""
    return any(member.stochastic for member in part.modules() if isinstance(member, Part))


def remembers(part: nn.Module) -> bool:
    """Whether anything in it remembers rows."""
    return any(member.memories for member in part.modules() if isinstance(member, Part))


def minds_repeats(part: nn.Module) -> bool:
    """Whether a row that comes twice is a case of its own: for a memory, and where rows are compared."""
    return remembers(part) or sees_the_whole(part)


def sees_the_whole(part: nn.Module) -> bool:
    """Whether it is asked once about the whole batch."""
    if isinstance(part, Objective):
        return part.loss.couples_batch or (part.weights is not None and asked_once(part.weights))
    if isinstance(part, Weighting):
        return asked_once(part)
    return isinstance(part, Part) and part.couples_batch and not is_layer(part)


def batches_of(objective: Objective, dtype: torch.dtype, *, repeats: bool, ignored: bool) -> list[Batch]:
    """A batch a step: with rows that come several times, and with ignored rows; the last sorted by class."""
    generator = torch.Generator().manual_seed(1)
    kind = objective.loss.kind
    x = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    levels = kind.levels(CLASSES)
    if levels is None:
        target = 2 * kind.example_target(ROWS, CLASSES, torch.float64, generator).to(dtype)
    else:
        target = torch.arange(ROWS) % levels
        target = target if kind.has_classes else target.to(dtype)
    weight = torch.linspace(0.5, 2, ROWS, dtype=dtype)
    batches = []
    for step in range(3):
        index = torch.randperm(ROWS, generator=generator)
        if repeats:
            # Rows that come twice or three times, in shares that are far apart.
            index[-1], index[6] = index[0], index[0]
            index[-2] = index[1]
        if step == 2:
            index = index[target[index].argsort(stable=True)]
        batch = {"x": x[index], "target": target[index].clone(), "index": index, "group": index % 3}
        if isinstance(objective.loss, Loss):
            batch["sample_weight"] = weight[index]
            if step == 1 and kind.has_classes and ignored:
                batch["target"][torch.tensor([1, 8])] = objective.loss.ignore_index
        batches.append(batch)
    return batches
