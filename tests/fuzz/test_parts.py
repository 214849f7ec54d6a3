"""Every public module (the parts, the objective, whatever comes): its constructor, and calls of what it built."""

import copy
import inspect

import fuzzing
import hypothesis.strategies as st
import pytest
import torch
from fuzzing import ACCEPTED, REFUSED, arguments, attempt, changed, junk, outcome, parameters, seeds, spoils
from torch import nn

from lossworks import losses, penalties, perturb, weights
from lossworks.certify import LipschitzRegressor
from lossworks.roles import BatchLoss, Loss, Part, Penalty, Perturbation, Weighting
from lossworks.roles.calibrator import Calibrator
from lossworks.testing import build, example, from_data
from lossworks.testing.inputs import CLASSES, ROWS

MODULES = fuzzing.modules()
PARTS = {
    "loss": losses.CrossEntropyLoss(),
    "weights": weights.UniformWeights(),
    "perturb": perturb.GaussianNoise(0.1),
    "penalties": [penalties.WeightMagnitudePenalty()],
    "num_clients": ROWS,
}


def known_data(module):
    """What a part asks of the training data, and parts where parts are asked for."""
    facts = from_data()
    facts["class_counts"] = facts["class_counts"].clone()
    needs = {name: facts[name] for name in getattr(module, "needs", ())}
    needs |= {name: value for name, value in _first_setting(module).items() if _required(module, name)}
    return needs if issubclass(module, Part) else {**PARTS, **needs}


def _first_setting(module):
    return getattr(module, "settings", ({},))[0]


def _required(module, name):
    return parameters(module)[name].default is inspect.Parameter.empty


def call_of(part, seed):
    """A call that fits, by the role that the part plays: the method, and its arguments."""
    rows = torch.arange(ROWS)
    if isinstance(part, Loss):
        output, target, extra = example(part, seed=seed)
        if seed % 3 == 0 and part.kind.has_classes:
            output, target = output.reshape(3, 4, -1).mT.contiguous(), target.reshape(3, 4)
            extra = {name: index.reshape(3, 4) for name, index in extra.items()}
        weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed))
        more = {"sample_weight": weight} if seed % 2 else {}
        more |= {"total": torch.tensor(7.0)} if seed % 5 == 0 else {}
        if isinstance(part, losses.MixingLoss) and seed % 7:
            more |= {"gamma": torch.linspace(-3, 3, len(output)), "attacked": torch.arange(len(output)) % 2}
        return part, {"output": output, "target": target, **extra, **more}
    if isinstance(part, BatchLoss):
        output, target, _ = example(losses.CrossEntropyLoss(), seed=seed)
        weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed))
        return part, {"output": output, "target": target, **({"sample_weight": weight} if seed % 2 else {})}
    if isinstance(part, Weighting):
        losses_ = torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return part, {"losses": losses_, "index": rows, "group": rows % 3, "target": rows % CLASSES}
    if isinstance(part, Perturbation):
        return part, {"risk": lambda x: x[:, None].flatten(1).sum(1), "x": torch.rand(ROWS, 3)}
    if isinstance(part, Penalty):
        return part, {"model": nn.Linear(3, 2)}
    if isinstance(part, Calibrator):
        output, target, _ = example(losses.CrossEntropyLoss(), seed=seed)
        return (part.fit, {"logits": output, "target": target}) if seed % 2 else (part, {"logits": output})
    if hasattr(part, "risk"):
        output, target, _ = example(losses.CrossEntropyLoss(), seed=seed)
        weight = torch.ones(ROWS)
        given = {"target": target, "index": rows, "group": rows % 3, "sample_weight": weight}
        if seed % 2:
            return part.risk, {"output": output, **given}
        return part, {"model": nn.Identity(), "x": output, **given}
    if isinstance(part, LipschitzRegressor):
        return part.fit, {"x": torch.rand(ROWS, 3), "target": torch.rand(ROWS)}
    taken = inspect.signature(part.forward).parameters
    if "x" in taken:
        return part, {"x": torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))}
    if "weight" in taken:
        return part, {"weight": torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))}
    if "present" in taken:
        return part, {"present": rows % 3 == seed % 3}
    if "losses" in taken:
        return part, {"losses": torch.rand(ROWS, generator=torch.Generator().manual_seed(seed))}
    if hasattr(part, "topk"):
        return part.loss, {"hidden": torch.rand(ROWS, part.in_features), "target": rows % part.num_classes}
    return None


@st.composite
def case(draw, module):
    """How a part is built, and how it is called."""
    built = draw(st.none() | arguments(module, known_data(module)))
    return (
        built,
        draw(seeds),
        draw(spoils),
        draw(st.sampled_from(["call", "call", "call", "predict", "progress"])),
        draw(junk),
    )


def names_of(module, given):
    nested = [name for part in given.values() if isinstance(part, Part) for name in parameters(type(part))]
    return [*parameters(module), *nested]


@pytest.mark.parametrize("path", MODULES)
def test_part(path, fuzz):
    module = MODULES[path]
    facts = known_data(module)
    default = (
        build(module, _first_setting(module))
        if issubclass(module, Part)
        else module(**{k: v for k, v in facts.items() if k in parameters(module)})
    )

    def check(given):
        built, seed, spoiled, what, anything = given
        part = copy.deepcopy(default)
        if built is not None:
            part = attempt(lambda: module(**built), names_of(module, built))
            if isinstance(part, Exception):
                return REFUSED
        torch.manual_seed(0)
        if what == "predict" and isinstance(part, Loss):
            output = changed({"output": example(part, seed=seed)[0]}, spoiled)["output"]
            names = {"output", *parameters(module)}
            return outcome(attempt(lambda: part.predict(output), names))
        if what == "progress" and isinstance(part, Part):
            return outcome(attempt(lambda: part.set_progress(anything), ["fraction"]))
        function, fitting = call_of(part, seed)
        extra = changed(fitting, spoiled)
        told = ("logits", "output", "losses") if hasattr(part, "risk") else ("logits", "output")
        result = attempt(
            lambda: function(**extra),
            {*extra, *parameters(module), *told, *names_of(module, built or {})},
        )
        if isinstance(result, Exception):
            return REFUSED
        assert isinstance(result, (torch.Tensor, nn.Module)), type(result)
        return ACCEPTED

    fuzz(case(module), check)
