"""Robustness relative to an oracle: a model's accuracy on changed inputs that the oracle still gets right."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossworks.checks import (
    check_between,
    check_classes,
    check_floating,
    check_function,
    check_int,
    check_positive,
    check_sequence,
    taken,
)
from lossworks.diagnose.adversarial import _logits
from lossworks.diagnose.drawing import axes
from lossworks.objective.states import resting
from lossworks.perturb.ball import Bounds, check_ball
from lossworks.roles import cite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FoundationModelRobustness", "OracleAttack", "foundation_model_robustness", "oracle_constrained_attack"]

Oracle = Callable[[Tensor], Tensor]


class OracleAttack(NamedTuple):
    """The result of the attack for each row.

    Args:
        x: The changed inputs, in x's shape; a row that the oracle gets wrong from the start is unchanged.
        steps: How many steps the oracle accepted, ``(n,)`` int64.
    """

    x: Float[Tensor, "n *features"]
    steps: Int[Tensor, " n"]

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw how many rows the oracle accepted for each number of steps."""
        ax = axes(ax)
        rows = self.steps.cpu().bincount().numpy()
        ax.bar(range(len(rows)), rows)
        ax.set(xlabel="steps that the oracle went along with", ylabel="rows")
        return ax


class FoundationModelRobustness(NamedTuple):
    """The score and its components.

    Args:
        fmr: ``perturbed / standard``, in [0, 1].
        standard: SA, the model's accuracy on the rows that the oracle gets right.
        perturbed: PA, its accuracy on the same rows after the attack.
        left_out: The number of rows that the oracle gets wrong, which are left out.
    """

    fmr: float
    standard: float
    perturbed: float
    left_out: int

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw both accuracies."""
        ax = axes(ax)
        ax.bar_label(ax.barh(["as changed", "as they are"], [self.perturbed, self.standard]), fmt="%.3f", padding=3)
        ax.set(xlim=(0, 1.15), xlabel="accuracy on the oracle's rows", title=f"robustness {self.fmr:.3f}")
        return ax


@cite("zhang2024fmr", helps=("attacks", "shift"))
def oracle_constrained_attack(
    model: nn.Module,
    oracle: Oracle | Sequence[Oracle],
    x: Float[Tensor, "n *features"],
    target: Int[Tensor, " n"],
    *,
    step: float = 0.02,
    budget: int = 50,
    encoder: Callable[[Tensor], Tensor] | None = None,
    decoder: Callable[[Tensor], Tensor] | None = None,
    sparse: float = 1.0,
    bounds: Bounds | None = None,
) -> OracleAttack:
    r"""Oracle-constrained attack: change each input against the model for as long as an oracle keeps its class.

    .. math::
        \max_z \ell\big(f(g(z)), y\big) \quad \text{where } h(g(z)) = y, \qquad
        z^{t+1} = z^t + \alpha\, \mathrm{sign}\big(\nabla_z \ell(f(g(z^t)), y)\big)

    with :math:`\ell` the cross-entropy, h the oracle, and g a generator whose code z moves; without a generator x
    itself moves. No ball limits the change. A row stops at the first step that the oracle does not accept. Among the
    original input and the accepted ones, each row gets the one at which the margin of its class is smallest. It need
    not be the last one, so more steps never help the model.

    Args:
        model: f, a module that gives logits ``(n, C)``, each row's from that row alone.
        oracle: h, any function from inputs to logits ``(n, C)`` or classes ``(n,)``, int64. Of several oracles, more
            than half must answer y.
        x: The inputs ``(n, ...)``.
        target: The classes y ``(n,)``, int64.
        step: :math:`\alpha`, in the units of what moves, > 0.
        budget: The largest number of steps, >= 0.
        encoder: A function from inputs to codes, ``(n, ...)``; only together with ``decoder``.
        decoder: g, a differentiable function from codes to inputs; only together with ``encoder``.
        sparse: The share of the coordinates that move in a step, those with the largest gradient, in (0, 1].
        bounds: The data's range ``(low, high)``, only without a decoder; no range by default.

    Returns:
        The changed inputs and each row's number of accepted steps. All modules run in evaluation mode.

    Raises:
        ValueError: numbers out of range, shapes that don't match, a class outside ``[0, C)``, an encoder without a
            decoder or the reverse, ``bounds`` beside them.
        TypeError: x is not floating-point, or something that is no function where one is needed.

    Use it to see which changes a model is blind to among those that another, better model still recognises. Each step
    costs one forward and backward pass of the model and one forward pass of the oracle.

    Papers: zhang2024fmr

    >>> model, oracle = nn.Linear(2, 2), lambda x: (x[:, 0] > 0).long()
    >>> _ = model.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    >>> found = oracle_constrained_attack(model, oracle, torch.tensor([[1.1, 1.0]]), torch.tensor([1]), step=0.5)
    >>> found.x, found.steps
    (tensor([[0.1000, 0.0000]]), tensor([2]))
    """
    return _attacked(model, oracle, x, target, step, budget, encoder, decoder, sparse, bounds)[0]


@cite("zhang2024fmr", helps=("attacks", "shift"))
def foundation_model_robustness(
    model: nn.Module,
    oracle: Oracle | Sequence[Oracle],
    x: Float[Tensor, "n *features"],
    target: Int[Tensor, " n"],
    *,
    step: float = 0.02,
    budget: int = 50,
    encoder: Callable[[Tensor], Tensor] | None = None,
    decoder: Callable[[Tensor], Tensor] | None = None,
    sparse: float = 1.0,
    bounds: Bounds | None = None,
) -> FoundationModelRobustness:
    r"""Foundation model robustness (FMR): the share of accuracy that a model keeps under an oracle-constrained attack.

    .. math:: \mathrm{FMR} = \mathrm{PA} / \mathrm{SA}

    with SA the accuracy on the original inputs and PA that on the inputs changed by :func:`oracle_constrained_attack`.
    Rows that the oracle gets wrong are left out of both. Each model gets a test set of its own, so compare only PA, SA
    and FMR, not rows. The score depends on the oracle, the step and the budget, which must be the same for all models.

    Args:
        model: f, as in :func:`oracle_constrained_attack`, which documents all arguments.
        oracle: One function, or several that vote.
        x: The inputs.
        target: The right classes, int64.
        step: The length of a step, > 0.
        budget: The largest number of steps, >= 0; 0 gives a score of 1.
        encoder: A function from inputs to codes.
        decoder: A function from codes to inputs.
        sparse: The share of the coordinates that move in a step, in (0, 1].
        bounds: The data's range.

    Returns:
        The score in [0, 1], with SA, PA and the number of rows left out.

    Raises:
        ValueError: as in :func:`oracle_constrained_attack`, and where no row is right by both oracle and model, as then
            there is no accuracy to keep.
        TypeError: as in :func:`oracle_constrained_attack`.

    Use it to compare models' robustness where no ball describes what may change. An oracle that a model was trained to
    agree with flatters that model.

    Papers: zhang2024fmr

    >>> model = nn.Linear(2, 2)
    >>> x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    >>> foundation_model_robustness(model, model, x, model(x).argmax(1)).fmr
    1.0
    """
    found, agreed = _attacked(model, oracle, x, target, step, budget, encoder, decoder, sparse, bounds)
    with resting(model), torch.no_grad():
        before, after = (((model(rows).argmax(dim=1) == target) & agreed) for rows in (x, found.x))
    if not bool(before.any()):
        raise ValueError("target must be what oracle and model both answer on at least one row, it is on none")
    standard, perturbed = (float(right.sum() / agreed.sum()) for right in (before, after))
    share = int(after.sum()) / int(before.sum())
    return FoundationModelRobustness(share, standard, perturbed, int((~agreed).sum()))


def _attacked(
    model: nn.Module,
    oracle: Oracle | Sequence[Oracle],
    x: Tensor,
    target: Tensor,
    step: float,
    budget: int,
    encoder: Callable[[Tensor], Tensor] | None,
    decoder: Callable[[Tensor], Tensor] | None,
    sparse: float,
    bounds: Bounds | None,
) -> tuple[OracleAttack, Tensor]:
    """The attack's result, and which original rows the oracle gets right."""
    check_floating("x", x)
    check_positive("step", step)
    check_int("budget", budget, low=0)
    check_between("sparse", sparse, 0, 1, open_low=True)
    check_ball(0.0, "linf", bounds)
    oracles = _functions(oracle, encoder, decoder, bounds)

    def logits_of(z: Tensor) -> Tensor:
        return model(_inputs(decoder, z, x))

    with resting(model, *oracles, encoder, decoder):
        with torch.no_grad():
            logits = _logits(model, x)
        check_classes(logits, target)
        agreed = _agrees(oracles, x, target)
        best, margin, steps = x.detach().clone(), _margin(logits, target), torch.zeros_like(target)
        rows = agreed.nonzero().flatten()
        z = x.detach()[rows] if encoder is None or not len(rows) else _codes(encoder, x[rows])
        for _ in range(budget):
            if not len(rows):
                break
            z = _moved(logits_of, z, target[rows], step, sparse)
            if bounds is not None:
                z = z.clamp(*(torch.as_tensor(bound, dtype=z.dtype, device=z.device) for bound in bounds))
            with torch.no_grad():
                changed = _inputs(decoder, z, x)
                went = _agrees(oracles, changed, target[rows])
                rows, z, changed = rows[went], z[went], changed[went]
                steps[rows] += 1
                own = _margin(model(changed), target[rows])
            lower = own < margin[rows]
            best[rows[lower]], margin[rows[lower]] = changed[lower].to(best.dtype), own[lower]
    return OracleAttack(best, steps), agreed


def _functions(
    oracle: Oracle | Sequence[Oracle], encoder: object, decoder: object, bounds: Bounds | None
) -> list[Oracle]:
    """The oracles as a list, or an error where one of the arguments is no function."""
    if callable(oracle):
        oracle = [oracle]
    check_sequence("oracle", oracle)
    if not len(oracle):
        raise ValueError("oracle must be one function at least, got none")
    for one in oracle:
        check_function("oracle", one, "the input")
    if (encoder is None) != (decoder is None):
        raise ValueError("encoder and decoder must be given together, or neither")
    for name, given in (("encoder", encoder), ("decoder", decoder)):
        if given is not None:
            check_function(name, given, "a tensor")
    if decoder is not None and bounds is not None:
        raise ValueError("bounds must be None with a decoder, which gives inputs in their range itself")
    return list(oracle)


def _codes(encoder: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        z = _asked("encoder", encoder, x)
    check_floating("encoder's codes", z)
    if z.ndim == 0 or len(z) != len(x):
        raise ValueError(f"encoder must give a code for each of {len(x)} rows, it gave {tuple(z.shape)}")
    return z.detach()


def _inputs(decoder: Callable[[Tensor], Tensor] | None, z: Tensor, x: Tensor) -> Tensor:
    """The inputs that the codes stand for, each in the shape of a row of x."""
    if decoder is None:
        return z
    changed = _asked("decoder", decoder, z)
    check_floating("decoder's inputs", changed)
    wanted = z.shape[:1] + x.shape[1:]
    if changed.shape != wanted:
        raise ValueError(f"decoder must give inputs of shape {tuple(wanted)}, it gave {tuple(changed.shape)}")
    return changed


def _asked(name: str, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """The function's answer, or an error of one line that names the function if it cannot take the rows."""
    with taken(f"{name} must take rows of shape {tuple(rows.shape[1:])}"):
        return function(rows)


def _moved(logits: Callable[[Tensor], Tensor], z: Tensor, target: Tensor, step: float, sparse: float) -> Tensor:
    """One step along the sign of the gradient; only its largest entries where ``sparse`` is below 1."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(logits(leaf), target, reduction="sum"), leaf)
    kept = math.ceil(sparse * slope[0].numel())
    if kept < slope[0].numel():
        flat = slope.flatten(1)
        largest = flat.abs().topk(kept, dim=1).indices
        slope = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest)).reshape(slope.shape)
    return z + step * slope.sign()


def _margin(logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """By how much the target's logit is above the largest other logit."""
    own = torch.arange(logits.shape[1], device=logits.device) == target[:, None]
    return logits.gather(1, target[:, None])[:, 0] - logits.masked_fill(own, -torch.inf).amax(dim=1)


def _agrees(oracles: Sequence[Oracle], x: Tensor, target: Tensor) -> Tensor:
    """Whether more than half of the oracles answer the target, for each row."""
    votes = torch.zeros_like(target)
    with torch.no_grad():
        for oracle in oracles:
            votes += _answer(oracle, x) == target
    return 2 * votes > len(oracles)


def _answer(oracle: Oracle, x: Tensor) -> Int[Tensor, " n"]:
    answer = _asked("oracle", oracle, x)
    if isinstance(answer, Tensor) and answer.ndim == 2 and answer.is_floating_point() and answer.shape[1]:
        answer = answer.argmax(dim=1)
    if not isinstance(answer, Tensor) or answer.dtype != torch.int64 or answer.shape != x.shape[:1]:
        what = f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"oracle must give logits ({len(x)}, C) or int64 classes ({len(x)},), it gave {what}")
    return answer
