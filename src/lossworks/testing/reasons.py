"""Why a check may not apply to a part: each function gives the reason, or None where the check applies."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lossworks.objective import Objective
from lossworks.roles import REAL, Calibrator, Consistency, Loss, Penalty, Perturbation, Weighting
from lossworks.testing.calls import Call
from lossworks.testing.checks import every, functions, optimizers, perturbations
from lossworks.testing.inputs import Recipe, build
from lossworks.testing.models import is_parametrization, is_stochastic, sees_the_whole
from lossworks.testing.subjects import Subject


def first(reasons: Sequence[Callable[[Any], str | None]], given: Any) -> str | None:
    """The first reason that is given, or None."""
    return next((said for reason in reasons if (said := reason(given)) is not None), None)


def _drawing(part: Any) -> bool:
    inside = isinstance(part, nn.Module) and is_stochastic(part)
    return inside or bool(getattr(part, "stochastic", False))


def no_draws(part: Any) -> str | None:
    return "it draws random numbers" if _drawing(part) else None


def no_draws_by_row(part: Any) -> str | None:
    return "its draws depend on the rows given" if _drawing(part) else None


def has_numbers(part: Any) -> str | None:
    if every.required(part) is None:
        return "it does not hold what it was built with under the arguments' names"
    return None if every.float_hyperparameters(part) else "it has no number to choose"


def traced_already(part: Any) -> str | None:
    """Settings that differ in numbers alone are one program to the compiler, which the first of them shows."""
    try:
        first = build(type(part), type(part).settings[0])
    except (TypeError, ValueError, KeyError):
        return None
    numbers = every.float_hyperparameters(part) != every.float_hyperparameters(first)
    alike = _program(first) == _program(part)
    return (
        "it differs from the first setting in numbers alone, which compile as those do" if alike and numbers else None
    )


def _program(part: nn.Module) -> list[tuple[str, str]]:
    """The plain attributes of a part, with a word in the place of each float."""
    held = [(name, member) for name, member in part.named_modules()]
    return [
        (f"{path}.{name}", "float" if isinstance(value, float) else repr(value))
        for path, member in held
        for name, value in vars(member).items()
        if not name.startswith("_")
    ]


def classes_only(loss: Loss) -> str | None:
    return None if loss.kind.has_classes else f"it takes {loss.kind.title}, not one class of many"


def not_coupled(loss: Loss) -> str | None:
    return "a row's value depends on its batch, by definition" if loss.couples_batch else None


def same_draws(loss: Loss) -> str | None:
    return "its draws depend on the rows given" if loss.stochastic else not_coupled(loss)


def row_by_row(loss: Loss) -> str | None:
    return None if loss.rowwise else "it does not read each row of logits alone"


def derivative(loss: Loss) -> str | None:
    return "its gradient is by definition not the derivative of its value" if loss.surrogate_gradient else None


def limit_of_masked(loss: Loss) -> str | None:
    return None if loss.masks else "it has no limit as a logit goes to -inf"


def offset_does_not_count(loss: Loss) -> str | None:
    return "a common offset changes its value, by definition" if loss.reads_offset else None


def reads_residuals(loss: Loss) -> str | None:
    return None if loss.kind is REAL and loss.output_size() == 1 else "it reads no residual of one number"


def soft(loss: Loss) -> str | None:
    return None if loss.soft_targets else "it takes no class-probability targets"


def reads_losses(weighting: Weighting) -> str | None:
    return None if weighting.reads_losses else "it does not look at the losses"


def fixed_weights(weighting: Weighting) -> str | None:
    return "it looks at the losses" if weighting.reads_losses else None


def weights_by_row(weighting: Weighting) -> str | None:
    if weighting.reads_losses or weighting.needs_target or weighting.needs_group:
        return None
    return "its weights are given row by row" if weighting.needs_index else None


def mean_over_data(weighting: Weighting) -> str | None:
    return None if weighting.over_data_set else "its mean of 1 is over the batch"


def asks_the_risk(perturbation: Perturbation) -> str | None:
    return None if perturbations.asks_the_risk(perturbation) else "it does not look at the risk"


def a_price(perturbation: Perturbation) -> str | None:
    return None if isinstance(perturbation, Consistency) else "it is trained on, and has no price"


def never_negative(penalty: Penalty) -> str | None:
    return None if penalty.non_negative else "it may by definition be below 0"


def reads_features(penalty: Penalty) -> str | None:
    return None if penalty.reads_features else "it does not read features"


def has_rows(objective: Objective) -> str | None:
    return None if isinstance(objective.loss, Loss) else "its loss couples the batch and has no rows"


def has_no_rows(objective: Objective) -> str | None:
    return "its loss has rows" if isinstance(objective.loss, Loss) else None


def own_derivative(objective: Objective) -> str | None:
    inside = [loss for loss in objective.modules() if isinstance(loss, Loss)]
    return (
        first([derivative], next((loss for loss in inside if loss.surrogate_gradient), inside[0])) if inside else None
    )


def rows_alone(objective: Objective) -> str | None:
    return "it looks at the whole batch at once" if sees_the_whole(objective) else None


def stands_between(layer: nn.Module) -> str | None:
    return "it stands before a weight, not between layers" if is_parametrization(layer) else None


def uncoupled_layer(layer: Any) -> str | None:
    return "its output depends on the batch, by definition" if layer.couples_batch else stands_between(layer)


def identity_at_first(layer: Any) -> str | None:
    return None if layer.starts_as_identity else "it changes a model from the start"


def keeps_argmax(calibrator: Calibrator) -> str | None:
    return None if calibrator.keeps_argmax else "it may by definition change an answer"


def steps_alone(recipe: Recipe) -> str | None:
    if optimizers.needs_a_closure(recipe):
        return "a step asks for the loss again, which a GradScaler does not give"
    return None


def one_pass(recipe: Recipe) -> str | None:
    return None if optimizers.two_passes(recipe) else "its passes are not written out by the caller"


def has_own_objective(recipe: Recipe) -> str | None:
    return "its objective is its own, with a sign of its own" if recipe.wrapper.takes_outputs else None


def draws_declared(recipe: Recipe) -> str | None:
    return "it draws random numbers" if recipe.wrapper.stochastic else None


def written_out(subject: Subject) -> str | None:
    return "no update was given to compare its steps with" if subject.update is None else None


def spread(subject: Subject) -> str | None:
    return "no processes were given to spread a model over" if subject.ranks is None else None


# Of an example call.


def here(call: Call) -> str | None:
    group = inspect.signature(call.function).parameters.get("process_group")
    spread = group is not None and group.default is group.empty
    return "it is called by several processes at once" if spread else None


def _says(applies: Callable[[Call], object], reason: str) -> Callable[[Call], str | None]:
    return lambda call: None if applies(call) else reason


arrays = _says(functions.has_tensors, "it takes no array")
floats = _says(functions.has_floats, "nothing that it is given has a precision that can be changed")
numbers = _says(functions.has_numbers, "it takes no float")
ranked = _says(lambda call: list(functions.ranked(call)), "its signature says no array's number of dimensions")
shapes = _says(functions.has_shapes, "its signature says no shape of what it gives")
flows = _says(functions.takes_a_gradient, "no gradient flows through it")
undrawn = _says(lambda call: not functions.draws(call), "it draws random numbers")
a_function = _says(lambda call: call.owner is None, "it is an object")
an_object = _says(lambda call: call.owner is not None, "it is a function")


def picklable(call: Call) -> str | None:
    held = [value for value in vars(call.owner).values() if inspect.isfunction(value)]
    return "its example holds a function without a name, which pickle refuses" if held else None
