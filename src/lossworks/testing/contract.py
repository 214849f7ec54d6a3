"""The contract as one table: for each role its example, its named checks, and the reasons why one may not apply."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Calibrator, Loss, Part, Penalty, Perturbation, Selector, Weighting
from lossworks.testing import reasons
from lossworks.testing.calls import Call
from lossworks.testing.checks import (
    batch_losses,
    calibrators,
    every,
    functions,
    layers,
    limits,
    losses,
    objectives,
    optimizers,
    penalties,
    perturbations,
    selectors,
    weightings,
)
from lossworks.testing.inputs import Recipe
from lossworks.testing.models import is_layer
from lossworks.testing.ranks import Ranks
from lossworks.testing.subjects import Subject, subject_of

__all__ = ["CONTRACT", "PASSED", "Check", "Row", "check_part", "row_of", "run_check"]

PASSED = "passed"
"""The result of a check that ran and did not fail."""


Reason = Callable[[Subject], str | None]


def _always(_: Subject) -> str | None:
    return None


@dataclass(frozen=True)
class Check:
    """A check: an assertion about a part, and the rule that says when it does not apply.

    Attributes:
        run: Runs the check; it raises an ``AssertionError`` if the part breaks the contract.
        says: The sentence that is asserted.
        reason: Returns why the check does not apply to a part, or None if it applies.
    """

    run: Callable[[Subject], None]
    says: str
    reason: Reason = _always


@dataclass(frozen=True)
class Row:
    """One role of the contract.

    Attributes:
        role: The name of the role.
        fits: Returns whether a part plays this role; the rows are asked in the table's order.
        example: Uses a part once on an example input, and returns the result.
        checks: The checks of the role by name.
    """

    role: str
    fits: Callable[[Any], bool]
    example: Callable[[Subject], Any]
    checks: Mapping[str, Check]


# How a check is put into the table.


def _on(check: Callable[[Any], None], *unless: Callable[[Any], str | None]) -> Check:
    """Make a check of the part alone; it does not apply if one of ``unless`` returns a reason."""
    return Check(
        lambda subject: check(subject.part), said_of(check), lambda subject: reasons.first(unless, subject.part)
    )


def said_of(check: Callable[..., Any]) -> str:
    """The first line of a check's docstring, as Markdown."""
    plain = check.func if isinstance(check, partial) else check
    return (inspect.getdoc(plain) or "").partition("\n")[0].replace("``", "`")


def _named(*checks: Callable[[Any], None]) -> dict[str, Check]:
    """Checks that apply to every part of the role, by their own names."""
    return {check.__name__: _on(check) for check in checks}


def _every(use: every.Use, *, modules: bool = True) -> dict[str, Check]:
    """What every part keeps, on the example of its role; ``modules`` where its parts may have a ``state_dict``."""
    state = {"state_round_trip": _on(partial(every.state_round_trip, use=use))} if modules else {}
    state |= _named(every.buffers_outlive_half) if modules else {}
    return {
        **state,
        "documented": _on(every.documented),
        "quiet": _on(partial(every.quiet, use=use)),
        "repeatable": _on(partial(every.repeatable, use=use)),
        "copies_the_same": _on(partial(every.copies_the_same, use=use)),
        "no_hidden_state": _on(partial(every.no_hidden_state, use=use)),
        "torch_generator_left_alone": _on(partial(every.torch_generator_left_alone, use=use), reasons.no_draws),
        "hyperparameters_checked": _on(every.hyperparameters_checked, reasons.has_numbers),
    }


def _run_written_out(subject: Subject) -> None:
    assert subject.update is not None
    optimizers.written_out(subject.part, subject.update)


def _run_spread(subject: Subject) -> None:
    assert subject.ranks is not None
    penalties.sharded_weights_count_once(subject.part, subject.ranks())


# What is called and has no role with an input of its own.


def _of_call(check: Callable[[Call], None], *unless: Callable[[Call], str | None]) -> Check:
    """A check of the example call."""

    def run(subject: Subject) -> None:
        assert subject.call is not None
        check(subject.call)

    def reason(subject: Subject) -> str | None:
        if subject.call is None:
            return "its docstring has no call of it that can be made again"
        return reasons.first([reasons.here, *unless], subject.call)

    return Check(run, said_of(check), reason)


def _object_copied(call: Call) -> None:
    """A pickled copy of an object that was used behaves as the object does afterwards."""
    every.copies_the_same(call.owner, lambda owner: functions.made(replace(call, owner=owner)))


# The table.

_LOSS = {
    **_named(losses.reduction_consistent, limits.finite_at_extremes, losses.vmaps),
    "compiles": _on(losses.compiles, reasons.traced_already),
    **_named(losses.hyperparameters_may_be_tensors, losses.autocast_close, losses.empty_batch, losses.clear_errors),
    "gradcheck": _on(losses.gradcheck, reasons.derivative),
    "permutation_equivariant": _on(losses.permutation_equivariant, reasons.same_draws),
    "class_permutation_equivariant": _on(
        losses.class_permutation_equivariant, reasons.classes_only, reasons.same_draws
    ),
    "split_exact": _on(losses.split_exact, reasons.same_draws),
    "chunks_exact": _on(losses.chunks_exact, reasons.row_by_row, reasons.same_draws),
    "ignored_rows_do_not_count": _on(losses.ignored_rows_do_not_count, reasons.classes_only, reasons.same_draws),
    "ignored_rows_may_be_anything": _on(losses.ignored_rows_may_be_anything, reasons.classes_only, reasons.no_draws),
    "weight_zero_is_absent": _on(losses.weight_zero_is_absent, reasons.no_draws),
    "spatial_rows": _on(losses.spatial_rows, reasons.classes_only),
    "soft_targets_agree": _on(losses.soft_targets_agree, reasons.classes_only, reasons.soft),
    "masked_classes": _on(limits.masked_classes, reasons.classes_only, reasons.limit_of_masked),
    "lost_labels": _on(limits.lost_labels, reasons.classes_only, reasons.limit_of_masked),
    "common_offset": _on(limits.common_offset, reasons.classes_only, reasons.offset_does_not_count),
    "small_residuals": _on(limits.small_residuals, reasons.reads_residuals),
    **_named(limits.second_derivative_finite),
}
_BATCH_LOSS = {
    **_named(limits.finite_at_extremes, losses.gradcheck, losses.vmaps),
    "compiles": _on(losses.compiles, reasons.traced_already),
    **_named(losses.hyperparameters_may_be_tensors, losses.autocast_close, losses.empty_batch),
    **_named(batch_losses.one_number, batch_losses.order_of_rows_does_not_count),
    **_named(batch_losses.sample_weights_are_relative, batch_losses.weight_zero_is_absent),
    **_named(batch_losses.refuses_a_weighting, batch_losses.clear_errors),
}
_WEIGHTING = {
    **_named(weightings.non_negative, weightings.mean_one, weightings.permutation_equivariant),
    **_named(weightings.finite_at_extremes, weightings.holds_many_half_rows),
    **_named(weightings.gradient_stays_out, weightings.vmaps),
    "compiles": _on(weightings.compiles, reasons.traced_already),
    **_named(weightings.empty_batch, weightings.weight_zero_is_absent, weightings.clear_errors),
    "equal_rows_get_equal_weights": _on(weightings.equal_rows_get_equal_weights, reasons.weights_by_row),
    "reads_no_losses": _on(weightings.reads_no_losses, reasons.fixed_weights),
    "over_the_data_set": _on(weightings.over_the_data_set, reasons.mean_over_data),
}
_PERTURBATION = {
    **_named(perturbations.same_shape_and_dtype, perturbations.no_graph, perturbations.leaves_model_alone),
    **_named(perturbations.empty_batch, perturbations.clear_errors),
    **_named(perturbations.says_where_it_begins, perturbations.works_in_inference_mode),
    **_named(perturbations.bad_slopes_stay_in_their_row),
    "order_of_rows_is_nothing": _on(perturbations.order_of_rows_is_nothing, reasons.no_draws_by_row),
    "never_helps_the_model": _on(perturbations.never_helps_the_model, reasons.asks_the_risk),
    "rows_stand_alone": _on(perturbations.rows_stand_alone, reasons.no_draws_by_row),
    "vmaps": _on(perturbations.vmaps, reasons.no_draws_by_row),
    "price_of_nothing_is_nothing": _on(perturbations.price_of_nothing_is_nothing, reasons.a_price),
}
_PENALTY = {
    **_named(penalties.scalar, penalties.gradcheck, penalties.vmaps, penalties.leaves_model_alone),
    **_named(penalties.tied_weights_count_once, penalties.clear_errors),
    "never_negative": _on(penalties.never_negative, reasons.never_negative),
    "reads_the_features": _on(penalties.reads_the_features, reasons.reads_features),
    "features_are_passed": _on(penalties.features_are_passed, reasons.reads_features),
    "sharded_weights_count_once": Check(_run_spread, said_of(penalties.sharded_weights_count_once), reasons.spread),
}
_OBJECTIVE = {
    **_named(objectives.finite_value, objectives.trains_finite, objectives.dtype_kept),
    **_named(objectives.gradient_reaches_the_weights, objectives.leaves_model_alone, objectives.clear_errors),
    **_named(objectives.works_in_inference_mode),
    "gradient_exact": _on(objectives.gradient_exact, reasons.own_derivative),
    "reduction_none": _on(objectives.reduction_none, reasons.has_rows),
    "row_weights_count": _on(objectives.row_weights_count, reasons.has_rows),
    "sample_weights_are_relative": _on(objectives.sample_weights_are_relative, reasons.has_rows),
    "weight_zero_is_absent": _on(objectives.weight_zero_is_absent, reasons.no_draws_by_row),
    "total_adds_up": _on(objectives.total_adds_up, reasons.has_rows, reasons.no_draws_by_row, reasons.rows_alone),
    "micro_batches_add_up": _on(objectives.micro_batches_add_up, reasons.no_draws_by_row),
    "refuses_rows": _on(objectives.refuses_rows, reasons.has_no_rows),
}
_CALIBRATOR = {
    **_named(calibrators.fit_returns_itself, calibrators.fits_any_order, calibrators.helps_what_it_was_fitted_to),
    **_named(
        calibrators.one_logit,
        calibrators.masked_classes,
        calibrators.dtype_kept,
        calibrators.gradcheck,
        calibrators.vmaps,
    ),
    **_named(calibrators.clear_errors),
    "keeps_the_answers": _on(calibrators.keeps_the_answers, reasons.keeps_argmax),
}
_SELECTOR = {
    **_named(selectors.answers_each_row, selectors.input_left_alone, selectors.clear_errors),
    "permutation_equivariant": _on(selectors.permutation_equivariant, reasons.no_draws_by_row),
    "ties_decided_by_rule": _on(selectors.ties_decided_by_rule, reasons.no_draws_by_row),
    "one_row": _on(selectors.one_row),
}
_OPTIMIZER = {
    "documented": Check(lambda subject: every.documented(subject.part.wrapper), said_of(every.documented)),
    **_named(optimizers.quiet, optimizers.copies_go_on, optimizers.resumes_in_mid_training, optimizers.closures),
    **_named(optimizers.steps_without_a_closure, optimizers.parameter_groups, optimizers.frozen_parameters),
    **_named(optimizers.sparse_gradients, optimizers.scheduler_reaches_the_inner, optimizers.foreach_is_the_loop),
    **_named(optimizers.zero_grad, optimizers.shows_itself, optimizers.clear_errors, optimizers.half_precision),
    **_named(optimizers.follows_the_inner, optimizers.distributed_checkpoint, optimizers.hooks_run),
    "maximises": _on(optimizers.maximises, reasons.draws_declared, reasons.has_own_objective),
    "two_passes_scaled": _on(optimizers.two_passes_scaled, reasons.one_pass),
    "written_out": Check(_run_written_out, said_of(optimizers.written_out), reasons.written_out),
    "grad_scaler": _on(optimizers.grad_scaler, reasons.steps_alone),
    "torch_generator_left_alone": _on(optimizers.torch_generator_left_alone, reasons.draws_declared),
}
_LAYER = {
    **_named(layers.finite_output, layers.dtype_kept, layers.eval_is_fixed, layers.gradcheck, layers.vmaps),
    **_named(layers.input_left_alone, layers.clear_errors),
    "compiles": _on(layers.compiles, reasons.traced_already),
    "rows_stand_alone": _on(layers.rows_stand_alone, reasons.uncoupled_layer),
    "empty_batch": _on(layers.empty_batch, reasons.stands_between),
    "starts_as_identity": _on(layers.starts_as_identity, reasons.identity_at_first),
}
_FUNCTION = {
    "documented": _on(every.documented),
    "quiet": _of_call(functions.quiet),
    "repeatable": _of_call(functions.repeatable),
    "torch_generator_left_alone": _of_call(functions.torch_generator_left_alone, reasons.undrawn),
    "found_by_pickle": _of_call(functions.found_by_pickle, reasons.a_function),
    "copies_the_same": _of_call(_object_copied, reasons.an_object, reasons.picklable),
    "inputs_left_alone": _of_call(functions.inputs_left_alone),
    "no_nan": _of_call(functions.no_nan),
    "shapes_as_annotated": _of_call(functions.shapes_as_annotated, reasons.shapes),
    "precision_kept": _of_call(functions.precision_kept, reasons.floats),
    "finite_gradient": _of_call(functions.finite_gradient, reasons.flows),
    "names_a_bad_tensor": _of_call(functions.names_a_bad_tensor, reasons.arrays),
    "names_a_bad_shape": _of_call(functions.names_a_bad_shape, reasons.ranked),
    "names_a_bad_number": _of_call(functions.names_a_bad_number, reasons.numbers),
}


def _example_of_call(subject: Subject) -> Any:
    return None if subject.call is None else functions.made(subject.call)


def _row(role: str, base: type, use: every.Use, checks: Mapping[str, Check], *, modules: bool = True) -> Row:
    """A role with a base class, whose example the checks use that every part keeps."""
    held = {**_every(use, modules=modules), **checks}
    return Row(role, lambda part: isinstance(part, base), lambda subject: use(subject.part), held)


def _stands_in_a_model(part: Any) -> bool:
    return isinstance(part, Part) and is_layer(part)


CONTRACT: tuple[Row, ...] = (
    _row("loss", Loss, losses.used, _LOSS),
    _row("loss of a batch", BatchLoss, losses.used, _BATCH_LOSS),
    _row("weighting", Weighting, weightings.used, _WEIGHTING),
    _row("perturbation", Perturbation, perturbations.used, _PERTURBATION),
    _row("penalty", Penalty, penalties.used, _PENALTY),
    _row("objective", Objective, objectives.used, _OBJECTIVE),
    _row("calibrator", Calibrator, calibrators.used, _CALIBRATOR),
    _row("selector", Selector, selectors.used, _SELECTOR, modules=False),
    Row("optimizer", lambda part: isinstance(part, Recipe), lambda subject: optimizers.used(subject.part), _OPTIMIZER),
    replace(_row("layer", Part, layers.used, _LAYER), fits=_stands_in_a_model),
    Row("function", lambda part: True, _example_of_call, _FUNCTION),
)
"""The roles in the order in which a part is asked for its own; what has no other is held to the last."""


def row_of(part: Any) -> Row:
    """The contract's row for a part."""
    return next(row for row in CONTRACT if row.fits(part))


def check_part(
    part: Any,
    *,
    example: Callable[[], Any] | None = None,
    update: optimizers.Update | None = None,
    ranks: Ranks | None = None,
) -> dict[str, str]:
    """Run all checks of the contract for the role that the part plays.

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
        TypeError: what is no part: a number, a text, a tensor or a module; a wrapper that is already around an
            optimizer; a class that cannot be built, with what its constructor said.

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
        except AssertionError as error:
            raise AssertionError(f"{name}({subject.name}): {error}") from error
        except Exception as error:
            said = str(error).partition("\n")[0]
            raise AssertionError(f"{name}({subject.name}): {type(error).__name__}: {said}") from error
    return PASSED
