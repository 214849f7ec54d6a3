"""The contract as assertions that anyone can run on a part of their own.

``check_loss(MyLoss())`` runs every assertion that applies and returns, for each, ``"passed"`` or why it does not apply.
``check_exactness(MyLoss())`` holds it to the same numbers over processes, micro-batches, chunks, ``vmap`` and a resume.

Stands on ``catalog``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lossworks.roles import Loss, Part, Penalty, Perturbation, Weighting
from lossworks.testing import losses as _losses
from lossworks.testing.exactness import check_exactness
from lossworks.testing.inputs import build, example, from_data, instances
from lossworks.testing.losses import *  # noqa: F403  (the named assertions are this module's interface)
from lossworks.testing.losses import __all__ as _assertions
from lossworks.testing.others import (
    assert_leaves_model_alone,
    assert_never_helps_the_model,
    assert_perturbs_in_place_of,
    assert_scalar_penalty,
    assert_weights_valid,
    assert_weights_vmap,
)
from lossworks.testing.ranks import Ranks

__all__ = [
    *_assertions,
    "Ranks",
    "assert_leaves_model_alone",
    "assert_never_helps_the_model",
    "assert_perturbs_in_place_of",
    "assert_scalar_penalty",
    "assert_weights_valid",
    "assert_weights_vmap",
    "build",
    "check_exactness",
    "check_loss",
    "check_part",
    "check_penalty",
    "check_perturbation",
    "check_weighting",
    "example",
    "from_data",
    "instances",
    "unless",
]

Reason = Callable[[Loss], str | None]


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


unless: Mapping[str, Reason] = {
    "assert_chunks_exact": lambda loss: _row_by_row(loss) or _same_draws(loss),
    "assert_class_permutation_equivariant": lambda loss: _classes_only(loss) or _same_draws(loss),
    "assert_gradcheck": _derivative,
    "assert_ignored_rows_do_not_count": lambda loss: _classes_only(loss) or _same_draws(loss),
    "assert_permutation_equivariant": _same_draws,
    "assert_soft_targets_agree": lambda loss: _classes_only(loss) or _soft(loss),
    "assert_spatial_rows": _classes_only,
    "assert_split_exact": _same_draws,
}
"""Why an assertion may not apply to a loss: a function that gives the reason, or None where it does apply."""


def check_loss(loss: Loss) -> dict[str, str]:
    """Run every assertion of the contract that applies to this loss.

    Returns:
        For each assertion ``"passed"``, or the reason why it does not apply.

    Raises:
        AssertionError: the first assertion that fails, named.

    >>> from lossworks.losses import CrossEntropyLoss
    >>> check_loss(CrossEntropyLoss())["assert_gradcheck"]
    'passed'
    """
    if not isinstance(loss, Loss):
        raise TypeError(f"loss must be a lossworks Loss, got {type(loss).__name__}")
    results = {}
    for name in _assertions:
        if not name.startswith("assert_"):
            continue
        reason = unless[name](loss) if name in unless else None
        if reason is None:
            _named(name, getattr(_losses, name), loss)
        results[name] = reason or "passed"
    return results


def check_weighting(weighting: Weighting) -> dict[str, str]:
    """Run the contract of a weighting: non-negative, mean 1, shuffles with its rows, vmaps, keeps its state."""
    return _run(weighting, assert_weights_valid, assert_weights_vmap, _losses.assert_documented)


def check_perturbation(perturbation: Perturbation) -> dict[str, str]:
    """Run the contract of a perturbation: shape and dtype kept, the model left as it was and never helped."""
    return _run(
        perturbation,
        assert_perturbs_in_place_of,
        assert_leaves_model_alone,
        assert_never_helps_the_model,
        _losses.assert_documented,
    )


def check_penalty(penalty: Penalty) -> dict[str, str]:
    """Run the contract of a penalty: one finite number, its gradient the derivative, stacked equal to the loop."""
    return _run(penalty, assert_scalar_penalty, _losses.assert_documented)


def check_part(part: Any) -> dict[str, str]:
    """Run the contract of whatever role the part plays."""
    checks: tuple[tuple[type[Part], Callable[[Any], dict[str, str]]], ...] = (
        (Loss, check_loss),
        (Weighting, check_weighting),
        (Perturbation, check_perturbation),
        (Penalty, check_penalty),
    )
    for role, check in checks:
        if isinstance(part, role):
            return check(part)
    return _run(part, _losses.assert_documented)


def _run(part: Part, *assertions: Callable[[Any], None]) -> dict[str, str]:
    for assertion in assertions:
        _named(assertion.__name__, assertion, part)
    return {assertion.__name__: "passed" for assertion in assertions}


def _named(name: str, assertion: Callable[[Any], None], part: Any) -> None:
    try:
        assertion(part)
    except Exception as error:
        raise AssertionError(f"{name}({type(part).__name__}): {error}") from error
