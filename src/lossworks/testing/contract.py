"""The contract as one table: for each role how an input is made, its named checks, and why one may not apply."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from lossworks.objective import Objective
from lossworks.roles import (
    BatchLoss,
    Calibrator,
    Consistency,
    Loss,
    Part,
    Penalty,
    Perturbation,
    Selector,
    Weighting,
    Wrapper,
)
from lossworks.testing.calls import Call, NoExampleError, documented_call
from lossworks.testing.checks import (
    batch_losses,
    calibrators,
    every,
    functions,
    layers,
    losses,
    objectives,
    optimizers,
    penalties,
    perturbations,
    selectors,
    weightings,
)
from lossworks.testing.inputs import Recipe, build
from lossworks.testing.models import is_layer, is_parametrization, is_stochastic, sees_the_whole
from lossworks.testing.ranks import Ranks

__all__ = ["CONTRACT", "PASSED", "Check", "Row", "Subject", "check_part", "row_of", "run_check", "subject_of"]

PASSED = "passed"
"""What is said of a check that ran."""


@dataclass(frozen=True)
class Subject:
    """A part under contract, and what a check of it may need.

    Attributes:
        part: The part; a wrapper of an optimizer as a :class:`~lossworks.testing.inputs.Recipe`.
        name: What it is called in a message.
        example: A call of a function or an object, where its docstring's is not to be tried.
        update: A wrapper's update written out, see :data:`~lossworks.testing.checks.optimizers.Update`.
        ranks: Gives two processes or more, for what is spread over them.
    """

    part: Any
    name: str
    example: Call | None = None
    update: optimizers.Update | None = None
    ranks: Callable[[], Ranks] | None = None

    @cached_property
    def call(self) -> Call | None:
        """An example call, or None where the docstring has none that can be made again."""
        try:
            return documented_call(self.part) if self.example is None else self.example
        except NoExampleError:
            return None


Reason = Callable[[Subject], str | None]


def _always(_: Subject) -> str | None:
    return None


@dataclass(frozen=True)
class Check:
    """An assertion on a subject, and why it may not apply.

    Attributes:
        run: Raises an ``AssertionError`` where the part breaks the contract.
        says: What is asserted, in a sentence.
        reason: Why the check does not apply to this part; None where it does.
    """

    run: Callable[[Subject], None]
    says: str
    reason: Reason = _always


@dataclass(frozen=True)
class Row:
    """One role of the contract.

    Attributes:
        role: What the part is in the formula.
        fits: Whether a part plays this role, asked in the table's order.
        example: Uses a part once on the input that is made for it, and gives what came of it.
        checks: By name.
    """

    role: str
    fits: Callable[[Any], bool]
    example: Callable[[Subject], Any]
    checks: Mapping[str, Check]


# How a check is put into the table.


def _on(check: Callable[[Any], None], *reasons: Callable[[Any], str | None]) -> Check:
    """A check of the part alone; the first reason that the part gives counts."""
    return Check(lambda subject: check(subject.part), said_of(check), lambda subject: _first(reasons, subject.part))


def said_of(check: Callable[..., Any]) -> str:
    """The first line of a check's docstring, as Markdown."""
    plain = check.func if isinstance(check, partial) else check
    return (inspect.getdoc(plain) or "").partition("\n")[0].replace("``", "`")


def _first(reasons: Sequence[Callable[[Any], str | None]], given: Any) -> str | None:
    return next((said for reason in reasons if (said := reason(given)) is not None), None)


def _named(*checks: Callable[[Any], None]) -> dict[str, Check]:
    """Checks that apply to every part of the role, by their own names."""
    return {check.__name__: _on(check) for check in checks}


def _every(use: every.Use, *, modules: bool = True) -> dict[str, Check]:
    """What every part keeps, on the example of its role; ``modules`` where its parts may have a ``state_dict``."""
    state = {"state_round_trip": _on(partial(every.state_round_trip, use=use))} if modules else {}
    return {
        **state,
        "documented": _on(every.documented),
        "quiet": _on(partial(every.quiet, use=use)),
        "repeatable": _on(partial(every.repeatable, use=use)),
        "copies_the_same": _on(partial(every.copies_the_same, use=use)),
        "no_hidden_state": _on(partial(every.no_hidden_state, use=use)),
        "torch_generator_left_alone": _on(partial(every.torch_generator_left_alone, use=use), _no_draws),
        "hyperparameters_checked": _on(every.hyperparameters_checked, _has_numbers),
    }


# Why a check may not apply. Each gives the reason, or None where the check applies.


def _no_draws(part: Any) -> str | None:
    drawing = is_stochastic(part) if isinstance(part, nn.Module) else getattr(part, "stochastic", False)
    return "it draws random numbers" if drawing else None


def _has_numbers(part: Any) -> str | None:
    if every.required(part) is None:
        return "it does not hold what it was built with under the arguments' names"
    return None if every.float_hyperparameters(part) else "it has no number to choose"


def _traced_already(part: Any) -> str | None:
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


def _classes_only(loss: Loss) -> str | None:
    return None if loss.kind.has_classes else f"it takes {loss.kind.title}, not one class of many"


def _not_coupled(loss: Loss) -> str | None:
    return "a row's value depends on its batch, by definition" if loss.couples_batch else None


def _same_draws(loss: Loss) -> str | None:
    return "its draws depend on the rows given" if loss.stochastic else _not_coupled(loss)


def _row_by_row(loss: Loss) -> str | None:
    return None if loss.rowwise else "it does not read each row of logits alone"


def _derivative(loss: Loss) -> str | None:
    return "its gradient is by definition not the derivative of its value" if loss.surrogate_gradient else None


def _soft(loss: Loss) -> str | None:
    return None if loss.soft_targets else "it takes no class-probability targets"


def _reads_losses(weighting: Weighting) -> str | None:
    return None if weighting.reads_losses else "it does not look at the losses"


def _fixed_weights(weighting: Weighting) -> str | None:
    return "it looks at the losses" if weighting.reads_losses else None


def _weights_by_row(weighting: Weighting) -> str | None:
    if weighting.reads_losses or weighting.needs_target or weighting.needs_group:
        return None
    return "its weights are given row by row" if weighting.needs_index else None


def _mean_over_data(weighting: Weighting) -> str | None:
    return None if weighting.over_data_set else "its mean of 1 is over the batch"


def _asks_the_risk(perturbation: Perturbation) -> str | None:
    return None if perturbations.asks_the_risk(perturbation) else "it does not look at the risk"


def _no_row_draws(perturbation: Perturbation) -> str | None:
    return "its draws depend on the rows given" if is_stochastic(perturbation) else None


def _a_price(perturbation: Perturbation) -> str | None:
    return None if isinstance(perturbation, Consistency) else "it is trained on, and has no price"


def _never_negative(penalty: Penalty) -> str | None:
    return None if penalty.non_negative else "it may by definition be below 0"


def _reads_features(penalty: Penalty) -> str | None:
    return None if penalty.reads_features else "it does not read features"


def _has_rows(objective: Objective) -> str | None:
    return None if isinstance(objective.loss, Loss) else "its loss couples the batch and has no rows"


def _has_no_rows(objective: Objective) -> str | None:
    return "its loss has rows" if isinstance(objective.loss, Loss) else None


def _own_derivative(objective: Objective) -> str | None:
    inside = [loss for loss in objective.modules() if isinstance(loss, Loss)]
    return (
        _first([_derivative], next((loss for loss in inside if loss.surrogate_gradient), inside[0])) if inside else None
    )


def _rows_alone(objective: Objective) -> str | None:
    if is_stochastic(objective):
        return "its draws depend on the rows given"
    return "it looks at the whole batch at once" if sees_the_whole(objective) else None


def _no_split_draws(objective: Objective) -> str | None:
    return "its draws depend on the rows given" if is_stochastic(objective) else None


def _stands_between(layer: nn.Module) -> str | None:
    return "it stands before a weight, not between layers" if is_parametrization(layer) else None


def _uncoupled_layer(layer: Any) -> str | None:
    return "its output depends on the batch, by definition" if layer.couples_batch else _stands_between(layer)


def _identity_at_first(layer: Any) -> str | None:
    return None if layer.starts_as_identity else "it changes a model from the start"


def _keeps_argmax(calibrator: Calibrator) -> str | None:
    return None if calibrator.keeps_argmax else "it may by definition change an answer"


def _steps_alone(recipe: Recipe) -> str | None:
    if optimizers.needs_a_closure(recipe):
        return "a step asks for the loss again, which a GradScaler does not give"
    return None


def _draws_declared(recipe: Recipe) -> str | None:
    return "it draws random numbers" if recipe.wrapper.stochastic else None


def _more_rows(selector: Selector) -> str | None:
    return "its draws depend on the rows given" if selector.stochastic else None


def _picks(selector: Selector) -> str | None:
    return "it picks rows by what the others are" if selector.picks else None


def _written_out(subject: Subject) -> str | None:
    return "no update was given to compare its steps with" if subject.update is None else None


def _spread(subject: Subject) -> str | None:
    return "no processes were given to spread a model over" if subject.ranks is None else None


def _run_written_out(subject: Subject) -> None:
    assert subject.update is not None
    optimizers.written_out(subject.part, subject.update)


def _run_spread(subject: Subject) -> None:
    assert subject.ranks is not None
    penalties.sharded_weights_count_once(subject.part, subject.ranks())


# What is called and has no role with an input of its own.


def _of_call(check: Callable[[Call], None], *reasons: Callable[[Call], str | None]) -> Check:
    """A check of the example call."""

    def run(subject: Subject) -> None:
        assert subject.call is not None
        check(subject.call)

    def reason(subject: Subject) -> str | None:
        if subject.call is None:
            return "its docstring has no call of it that can be made again"
        return _first([_here, *reasons], subject.call)

    return Check(run, said_of(check), reason)


def _here(call: Call) -> str | None:
    group = inspect.signature(call.function).parameters.get("process_group")
    spread = group is not None and group.default is group.empty
    return "it is called by several processes at once" if spread else None


def _says(applies: Callable[[Call], object], reason: str) -> Callable[[Call], str | None]:
    return lambda call: None if applies(call) else reason


_arrays = _says(functions.has_tensors, "it takes no array")
_floats = _says(functions.has_floats, "nothing that it is given has a precision that can be changed")
_numbers = _says(functions.has_numbers, "it takes no float")
_ranked = _says(lambda call: list(functions.ranked(call)), "its signature says no array's number of dimensions")
_shapes = _says(functions.has_shapes, "its signature says no shape of what it gives")
_flows = _says(functions.takes_a_gradient, "no gradient flows through it")
_undrawn = _says(lambda call: not functions.draws(call), "it draws random numbers")
_a_function = _says(lambda call: call.owner is None, "it is an object")
_an_object = _says(lambda call: call.owner is not None, "it is a function")


def _picklable(call: Call) -> str | None:
    held = [value for value in vars(call.owner).values() if inspect.isfunction(value)]
    return "its example holds a function without a name, which pickle refuses" if held else None


def _object_copied(call: Call) -> None:
    """A pickled copy of an object that was used goes on as the object does."""
    every.copies_the_same(call.owner, lambda owner: functions.made(replace(call, owner=owner)))


def _example_of_call(subject: Subject) -> Any:
    return None if subject.call is None else functions.made(subject.call)


def _using(use: every.Use) -> Callable[[Subject], Any]:
    return lambda subject: use(subject.part)


# The table.

_LOSS = {
    **_every(losses.used),
    **_named(losses.reduction_consistent, losses.finite_at_extremes, losses.vmaps),
    "compiles": _on(losses.compiles, _traced_already),
    **_named(losses.hyperparameters_may_be_tensors, losses.autocast_close, losses.empty_batch, losses.clear_errors),
    "gradcheck": _on(losses.gradcheck, _derivative),
    "permutation_equivariant": _on(losses.permutation_equivariant, _same_draws),
    "class_permutation_equivariant": _on(losses.class_permutation_equivariant, _classes_only, _same_draws),
    "split_exact": _on(losses.split_exact, _same_draws),
    "chunks_exact": _on(losses.chunks_exact, _row_by_row, _same_draws),
    "ignored_rows_do_not_count": _on(losses.ignored_rows_do_not_count, _classes_only, _same_draws),
    "spatial_rows": _on(losses.spatial_rows, _classes_only),
    "soft_targets_agree": _on(losses.soft_targets_agree, _classes_only, _soft),
}
_BATCH_LOSS = {
    **_every(losses.used),
    **_named(losses.finite_at_extremes, losses.gradcheck, losses.vmaps),
    "compiles": _on(losses.compiles, _traced_already),
    **_named(losses.hyperparameters_may_be_tensors, losses.autocast_close, losses.empty_batch),
    **_named(batch_losses.one_number, batch_losses.order_of_rows_does_not_count),
    **_named(batch_losses.sample_weights_are_relative, batch_losses.refuses_a_weighting, batch_losses.clear_errors),
}
_WEIGHTING = {
    **_every(weightings.used),
    **_named(weightings.non_negative, weightings.mean_one, weightings.permutation_equivariant),
    **_named(weightings.finite_at_extremes, weightings.gradient_stays_out, weightings.vmaps),
    "compiles": _on(weightings.compiles, _traced_already),
    **_named(weightings.empty_batch, weightings.clear_errors),
    "equal_rows_get_equal_weights": _on(weightings.equal_rows_get_equal_weights, _weights_by_row),
    "reads_no_losses": _on(weightings.reads_no_losses, _fixed_weights),
    "over_the_data_set": _on(weightings.over_the_data_set, _mean_over_data),
}
_PERTURBATION = {
    **_every(perturbations.used),
    **_named(perturbations.same_shape_and_dtype, perturbations.no_graph, perturbations.leaves_model_alone),
    **_named(perturbations.empty_batch, perturbations.clear_errors),
    "never_helps_the_model": _on(perturbations.never_helps_the_model, _asks_the_risk),
    "rows_stand_alone": _on(perturbations.rows_stand_alone, _no_row_draws),
    "vmaps": _on(perturbations.vmaps, _no_row_draws),
    "price_of_nothing_is_nothing": _on(perturbations.price_of_nothing_is_nothing, _a_price),
}
_PENALTY = {
    **_every(penalties.used),
    **_named(penalties.scalar, penalties.gradcheck, penalties.vmaps, penalties.leaves_model_alone),
    **_named(penalties.tied_weights_count_once, penalties.clear_errors),
    "never_negative": _on(penalties.never_negative, _never_negative),
    "reads_the_features": _on(penalties.reads_the_features, _reads_features),
    "features_are_passed": _on(penalties.features_are_passed, _reads_features),
    "sharded_weights_count_once": Check(_run_spread, said_of(penalties.sharded_weights_count_once), _spread),
}
_OBJECTIVE = {
    **_every(objectives.used),
    **_named(objectives.finite_value, objectives.trains_finite, objectives.dtype_kept),
    **_named(objectives.gradient_reaches_the_weights, objectives.leaves_model_alone, objectives.clear_errors),
    "gradient_exact": _on(objectives.gradient_exact, _own_derivative),
    "reduction_none": _on(objectives.reduction_none, _has_rows),
    "row_weights_count": _on(objectives.row_weights_count, _has_rows),
    "sample_weights_are_relative": _on(objectives.sample_weights_are_relative, _has_rows),
    "total_adds_up": _on(objectives.total_adds_up, _has_rows, _rows_alone),
    "micro_batches_add_up": _on(objectives.micro_batches_add_up, _no_split_draws),
    "refuses_rows": _on(objectives.refuses_rows, _has_no_rows),
}
_CALIBRATOR = {
    **_every(calibrators.used),
    **_named(calibrators.fit_returns_itself, calibrators.fits_any_order, calibrators.helps_what_it_was_fitted_to),
    **_named(calibrators.one_logit, calibrators.dtype_kept, calibrators.gradcheck, calibrators.vmaps),
    **_named(calibrators.clear_errors),
    "keeps_the_answers": _on(calibrators.keeps_the_answers, _keeps_argmax),
}
_SELECTOR = {
    **_every(selectors.used, modules=False),
    **_named(selectors.answers_each_row, selectors.input_left_alone, selectors.clear_errors),
    "permutation_equivariant": _on(selectors.permutation_equivariant, _more_rows),
    "ties_decided_by_rule": _on(selectors.ties_decided_by_rule, _more_rows),
    "one_row": _on(selectors.one_row),
}
_OPTIMIZER = {
    "documented": Check(lambda subject: every.documented(subject.part.wrapper), said_of(every.documented)),
    **_named(optimizers.quiet, optimizers.copies_go_on, optimizers.resumes_in_mid_training, optimizers.closures),
    **_named(optimizers.steps_without_a_closure, optimizers.parameter_groups, optimizers.frozen_parameters),
    **_named(optimizers.sparse_gradients, optimizers.scheduler_reaches_the_inner, optimizers.foreach_is_the_loop),
    **_named(optimizers.zero_grad, optimizers.shows_itself, optimizers.clear_errors),
    "written_out": Check(_run_written_out, said_of(optimizers.written_out), _written_out),
    "grad_scaler": _on(optimizers.grad_scaler, _steps_alone),
    "torch_generator_left_alone": _on(optimizers.torch_generator_left_alone, _draws_declared),
}
_LAYER = {
    **_every(layers.used),
    **_named(layers.finite_output, layers.dtype_kept, layers.eval_is_fixed, layers.gradcheck, layers.vmaps),
    **_named(layers.input_left_alone, layers.clear_errors),
    "compiles": _on(layers.compiles, _traced_already),
    "rows_stand_alone": _on(layers.rows_stand_alone, _uncoupled_layer),
    "empty_batch": _on(layers.empty_batch, _stands_between),
    "starts_as_identity": _on(layers.starts_as_identity, _identity_at_first),
}
_FUNCTION = {
    "documented": _on(every.documented),
    "quiet": _of_call(functions.quiet),
    "repeatable": _of_call(functions.repeatable),
    "torch_generator_left_alone": _of_call(functions.torch_generator_left_alone, _undrawn),
    "found_by_pickle": _of_call(functions.found_by_pickle, _a_function),
    "copies_the_same": _of_call(_object_copied, _an_object, _picklable),
    "inputs_left_alone": _of_call(functions.inputs_left_alone),
    "no_nan": _of_call(functions.no_nan),
    "shapes_as_annotated": _of_call(functions.shapes_as_annotated, _shapes),
    "precision_kept": _of_call(functions.precision_kept, _floats),
    "finite_gradient": _of_call(functions.finite_gradient, _flows),
    "names_a_bad_tensor": _of_call(functions.names_a_bad_tensor, _arrays),
    "names_a_bad_shape": _of_call(functions.names_a_bad_shape, _ranked),
    "names_a_bad_number": _of_call(functions.names_a_bad_number, _numbers),
}


def _is(*roles: type) -> Callable[[Any], bool]:
    return lambda part: isinstance(part, roles)


CONTRACT: tuple[Row, ...] = (
    Row("loss", _is(Loss), _using(losses.used), _LOSS),
    Row("loss of a batch", _is(BatchLoss), _using(losses.used), _BATCH_LOSS),
    Row("weighting", _is(Weighting), _using(weightings.used), _WEIGHTING),
    Row("perturbation", _is(Perturbation), _using(perturbations.used), _PERTURBATION),
    Row("penalty", _is(Penalty), _using(penalties.used), _PENALTY),
    Row("objective", _is(Objective), _using(objectives.used), _OBJECTIVE),
    Row("calibrator", _is(Calibrator), _using(calibrators.used), _CALIBRATOR),
    Row("selector", _is(Selector), _using(selectors.used), _SELECTOR),
    Row("optimizer", _is(Recipe), lambda subject: subject.part, _OPTIMIZER),
    Row("layer", lambda part: isinstance(part, Part) and is_layer(part), _using(layers.used), _LAYER),
    Row("function", lambda part: True, _example_of_call, _FUNCTION),
)
"""The roles in the order in which a part is asked for its own; what has no other is held to the last."""


def row_of(part: Any) -> Row:
    """The contract's row for a part."""
    return next(row for row in CONTRACT if row.fits(part))


def subject_of(part: Any, setting: Mapping[str, Any] | None = None, **given: Any) -> Subject:
    """The part as the contract takes it.

    Args:
        part: An instance of a role, or its class, which is built with the setting; a wrapper of an optimizer as a class
            or as a function of an optimizer; a function; or an object of a class without a role.
        setting: Of a class, how it is built; its first setting by default.
        given: What :class:`Subject` takes beside.
    """
    name = getattr(part, "__name__", type(part).__name__)
    if inspect.isclass(part):
        chosen = part.settings[0] if setting is None and hasattr(part, "settings") else (setting or {})
        if issubclass(part, Wrapper):
            part = Recipe(part, chosen)
        elif issubclass(part, Selector) and not chosen:
            part = documented_call(part).owner
        elif issubclass(part, (Part, Objective, Selector)):
            part = build(part, chosen)
    elif callable(part) and not isinstance(part, (nn.Module, Selector)) and not hasattr(part, "papers"):
        part = _recipe(part)
    return Subject(part, name, **given)


def _recipe(factory: Any) -> Any:
    """A function of an optimizer that makes a wrapper, as the contract takes it; what is none as it came."""
    try:
        with torch.random.fork_rng(devices=[]):
            made = factory(SGD(nn.Linear(1, 1).parameters(), lr=0.1))
    except Exception:
        return factory
    return Recipe(type(made), {}, factory) if isinstance(made, Wrapper) else factory


def check_part(
    part: Any,
    *,
    example: Callable[[], Any] | None = None,
    update: optimizers.Update | None = None,
    ranks: Ranks | None = None,
) -> dict[str, str]:
    """Run the contract of whatever role the part plays.

    Args:
        part: An instance of a role or its class; a wrapper of an optimizer as a class, or as a function that makes one
            from an optimizer; a function; or an object of any other class.
        example: For a function, ``example()`` gives the arguments of a call to try, as a tuple or a mapping; the call
            in the function's docstring by default.
        update: For a wrapper of an optimizer, its update written out, see
            :data:`lossworks.testing.checks.optimizers.Update`.
        ranks: Processes, for a penalty whose model is spread over them.

    Returns:
        For each check of the role ``"passed"``, or the reason why it does not apply.

    Raises:
        AssertionError: the first check that fails, with its name and the part's.

    >>> from lossworks.losses import CrossEntropyLoss
    >>> check_part(CrossEntropyLoss())["gradcheck"]
    'passed'
    """
    call = None
    if example is not None:
        given = example()
        call = Call(part, None, (), given) if isinstance(given, Mapping) else Call(part, None, tuple(given))
    subject = subject_of(part, example=call, update=update, ranks=None if ranks is None else lambda: ranks)
    return {name: run_check(subject, name, check) for name, check in row_of(subject.part).checks.items()}


def run_check(subject: Subject, name: str, check: Check) -> str:
    """``"passed"``, or the reason why the check does not apply.

    Raises:
        AssertionError: it failed, with its name and the part's.
    """
    with torch.random.fork_rng(devices=[]):
        reason = check.reason(subject)
        if reason is not None:
            return reason
        try:
            check.run(subject)
        except Exception as error:
            raise AssertionError(f"{name}({subject.name}): {error}") from error
    return PASSED
