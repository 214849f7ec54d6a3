"""The recipe: a script that trains the winner in a plain PyTorch loop and runs as it is."""

import inspect
import re
from collections.abc import Mapping
from keyword import iskeyword
from math import isfinite
from typing import Any

import numpy as np
import torch

from lossworks.comparison.handover.outcome import Outcome
from lossworks.roles import Loss, Part

FROM_DATA = {"num_groups": "len(dataset.group_names)", "num_samples": "len(y)"}
"""The expressions for what a part needs from any data; the task gives those for what a part needs from the target."""

Settings = Mapping[type[Part], Mapping[str, Any]]

TEMPLATE = '''\
"""Trains {name} ({setting}) on {data} in a plain PyTorch loop.

`lossworks compare` wrote this file. Run it as it is, or copy from it what your own loop needs:
the objective is the line that begins with `objective =`.
"""

import copy
{standard}from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import lossworks as lw
from lossworks.comparison import Encoder, embedded, read
from lossworks.comparison.models.scaling import Scaler
{imports}
HERE = Path(__file__).parent
torch.manual_seed({seed})

dataset = {read}
x = torch.from_numpy(Encoder.fit(dataset.features).transform(dataset.features))
held_out = max(len(x) * 15 // 100, 1)
inner, fit = torch.randperm(len(x)).tensor_split([held_out])
x = Scaler.fit(x, fit, {scaling!r})(x)  # by centre and scale of the training rows
{target}
objective = {objective}
model = nn.Sequential(
    {network},
)
optimizer = torch.optim.AdamW({parameters}, lr={lr}, weight_decay={weight_decay})


def inner_error():
    """What decides when to stop: {error_name} on rows that the model does not train on."""
    model.eval()
    with torch.no_grad():
        predicted = {predicted}
    model.train()
    return {error}


best, best_error = copy.deepcopy(model), float("inf")
for step in range({max_steps}):
    {schedule}batch = fit[torch.randint(len(fit), ({batch_size},))]
    loss = objective(model, x[batch], y[batch], index=batch{group})
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (step + 1) % {eval_every} == 0 and (error := inner_error()) < best_error:
        best, best_error = copy.deepcopy(model), error

print(f"{error_name} on {{len(inner)}} held-out rows: {{best_error:.4f}}")
save_file(best.state_dict(), HERE / "recipe.safetensors")
'''


_LEARNED = '[{"params": model.parameters()}, {"params": objective.parameters(), "weight_decay": 0.0}]'


def recipe(comparison: Outcome, source: str | None) -> str:
    """The script for the comparison's winner.

    Args:
        comparison: The finished comparison.
        source: The path of the data, absolute or relative to the recipe's folder; None for the embedded data.
    """
    name, plan, dataset = comparison.winner, comparison.plan, comparison.dataset
    candidate, training = comparison.candidate(name), plan.training
    number = comparison.chosen_setting(name)
    sizes = len(dataset.classes), len(dataset.group_names)
    facts = plan.task.training_facts(dataset.target, np.arange(len(dataset.target)), *sizes)
    objective = candidate.objective(number, facts)
    lines = plan.task.recipe(objective.loss)
    from_data = FROM_DATA | dict(lines.facts)
    options = {key: value for key, value in dataset.options.items() if value}
    where = repr(source) if source is None or source.startswith("/") else f"HERE / {source!r}"
    settings: Settings = (
        {} if candidate.own is not None else dict(zip(candidate.parts, candidate.settings[number], strict=True))
    )
    composed = _objective(objective, settings, from_data)
    own_code = not isinstance(comparison.architecture.model, str) or "runpy" in composed
    return TEMPLATE.format(
        name=_harmless(name),
        setting=_harmless(candidate.setting(number)),
        data=_harmless(dataset.name),
        standard="import runpy\n" if own_code else "",
        imports="".join(sorted({line for part in _parts(objective) for line in _import(part)})),
        scaling=comparison.architecture.scaling,
        seed=plan.seed,
        read=f"read({where}, **{options!r})" if source is not None else "embedded()",
        target=lines.target,
        objective=composed,
        network=_network(comparison, objective.loss),
        parameters=_LEARNED if any(True for _ in objective.parameters()) else "model.parameters()",
        group="" if dataset.group is None else ", group=torch.from_numpy(dataset.group)[batch]",
        lr=training.lr,
        weight_decay=training.weight_decay,
        predicted=f"objective.loss.{'' if isinstance(objective.loss, Loss) else 'kind.'}predict(model(x[inner]))",
        error_name=lines.error_name,
        error=lines.error,
        schedule=f"objective.set_progress(step / {training.max_steps})\n    " if objective.scheduled else "",
        max_steps=training.max_steps,
        batch_size=training.batch_size,
        eval_every=training.eval_every,
    )


def _harmless(text: str) -> str:
    """The text without what could end the script's docstring."""
    return re.sub(r"[^\w .,;:+=()/-]", "_", text)


def _network(comparison: Outcome, loss: Any) -> str:
    """The layers as code; a factory of the user's own is run from the file that it was defined in."""
    model, shape = comparison.architecture.model, tuple(comparison.x.shape[1:])
    outputs = comparison.plan.task.outputs(loss, torch.from_numpy(comparison.dataset.target))
    if isinstance(model, str):
        network = comparison.architecture.sized(shape, outputs, loss.kind).network()
        layers = [f"nn.{layer!r}" for layer in network.children()]
    else:
        layers = [f"{_from_file(model)}({shape!r}, {outputs})"]
    if loss.kind.flat and outputs == 1:
        layers.append("nn.Flatten(0)")
    return ",\n    ".join(layers)


def _from_file(thing: Any) -> str:
    """The expression by which the script loads a function or class of the user's own."""
    return f"runpy.run_path({inspect.getsourcefile(thing) or ''!r})[{getattr(thing, '__name__', '')!r}]"


def _parts(objective: Any) -> list[Part]:
    found = [objective.loss, objective.weights, objective.perturb, *objective.penalties]
    return [part for part in found if isinstance(part, Part)]


def _import(part: Part) -> list[str]:
    """The import line of a part of the user's own, if it can be imported."""
    if _ours(part) or not _importable(type(part)):
        return []
    return [f"from {type(part).__module__} import {type(part).__name__}\n"]


def _importable(thing: type) -> bool:
    """Whether an import statement can name this class; a name that is not an identifier never becomes code."""
    names = [*thing.__module__.split("."), thing.__name__]
    return thing.__module__ != "__main__" and all(name.isidentifier() and not iskeyword(name) for name in names)


def _ours(part: Part) -> bool:
    return type(part).__module__.startswith("lossworks.")


def _objective(objective: Any, settings: Settings, from_data: Mapping[str, str]) -> str:
    def code(part: Any) -> str:
        return _part(part, settings, from_data)

    written = [f"loss={code(objective.loss)}"]
    if objective.weights is not None:
        written.append(f"weights={code(objective.weights)}")
    if objective.perturb is not None:
        written.append(f"perturb={code(objective.perturb)}")
    if len(objective.penalties):
        written.append(f"penalties=[{', '.join(map(code, objective.penalties))}]")
    return f"lw.Objective({', '.join(written)})"


def _part(part: Any, settings: Settings, from_data: Mapping[str, str]) -> str:
    """The call that builds a part, with what it needs from the data and the arguments that are not the defaults."""
    arguments, setting = [], settings.get(type(part), {})
    for name, parameter in inspect.signature(type(part).__init__).parameters.items():
        value = getattr(part, name, None)
        if name in setting:
            arguments.append(f"{name}={_value(setting[name])}")
        elif name in type(part).needs and name in from_data:
            arguments.append(f"{name}={from_data[name]}")
        elif value is not None and not _same(value, parameter.default):
            arguments.append(f"{name}={_value(value)}")
    return f"{_callable(part)}({', '.join(arguments)})"


def _callable(part: Part) -> str:
    name, module = type(part).__name__, type(part).__module__
    if _ours(part):
        return f"lw.{module.split('.')[1]}.{name}"
    return name if _importable(type(part)) else _from_file(type(part))


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, (bool, int, float, str, tuple)) and value == default)


def _value(value: Any) -> str:
    """A constructor's argument as code."""
    if isinstance(value, Part):
        return _part(value, {}, {})
    if isinstance(value, torch.Tensor):
        return repr(value.item()) if value.ndim == 0 else f"torch.tensor({value.tolist()})"
    if isinstance(value, torch.Generator):
        return f"torch.Generator().manual_seed({value.initial_seed()})"
    if isinstance(value, float) and not isfinite(value):
        return f"float({str(value)!r})"
    return repr(value) if _literal(value) else "..."  # the reader must fill in a value that has no literal


def _literal(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_literal, value))
    if isinstance(value, dict):
        return all(_literal(entry) for pair in value.items() for entry in pair)
    return value is None or type(value) in (bool, int, float, str)
