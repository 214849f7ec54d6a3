"""Numbers that many losses read from a row of logits, with closed-form gradients that cost less than torch's steps."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import readable

_BLOCK = 2**17  # numbers a block: half a megabyte in float32, beside a few intermediate results of that size
_LARGEST_POWER = 16  # powers up to this one are taken by multiplication


def surprise_and_total(
    output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Each row's cross-entropy, and the sum of the cross-entropies over all labels that it could have."""
    # The compiler fuses the steps by itself, and accepts no function with a forward-mode derivative.
    steps = _Surprise.forward if torch.compiler.is_compiling() else _Surprise.apply
    own, total, _ = steps(output, target)
    return own, total


def soft_cross_entropy(output: Float[Tensor, "n classes"], target: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """Each row's cross-entropy with class probabilities; a class of probability 0 adds nothing, also at -inf."""
    log_p = output.log_softmax(dim=1)
    if readable(log_p) and log_p.numel() and bool(log_p.detach().amin() > -torch.inf):  # no class is masked
        return -(target * log_p).sum(dim=1)
    return (target * _present(-log_p, target)).sum(dim=1)


def present_surprises(
    output: Float[Tensor, "n classes"], target: Float[Tensor, "n classes"]
) -> Float[Tensor, "n classes"]:
    """``-log p`` of every class, and 0 in place of infinity where the class has probability 0 in the target."""
    return _present(-output.log_softmax(dim=1), target)


def _present(surprise: Tensor, target: Tensor) -> Tensor:
    return surprise.masked_fill((target == 0) & surprise.isinf(), 0)


def from_the_top(output: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """Each row's logits less the largest, so that what is added to them keeps its digits at a common offset.

    The largest is a constant for the gradient: a function that no common offset changes has the same one.
    """
    return output - output.detach().amax(dim=1, keepdim=True) if output.shape[1] else output


def in_blocks(
    function: Callable[[Tensor], tuple[Tensor, ...]], rows: Float[Tensor, "n *rest"], *, size: int | None = None
) -> tuple[Tensor, ...]:
    """The results of ``function`` on the rows, computed in blocks that fit the processor's cache.

    ``size`` is how many numbers the intermediate steps have a row; by default, as many as the row itself.
    """
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return function(rows)
    count = len(rows)
    step = max(torch.get_num_threads(), _BLOCK // max(rows[:1].numel() if size is None else size, 1))
    if count <= step:
        return function(rows)
    whole: tuple[Tensor, ...] = ()
    for start in range(0, count, step):
        results = function(rows[start : start + step])
        whole = whole or tuple(result.new_empty((count, *result.shape[1:])) for result in results)
        for into, result in zip(whole, results, strict=True):
            into[start : start + step] = result
    return whole


def softmax_and_surprise(
    output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n classes"], Float[Tensor, " n"]]:
    """Each row's softmax and its label's cross-entropy, from a single exponential; not recorded by autograd."""
    probability = output.softmax(dim=1)
    behind = output.amax(dim=1) - output.gather(1, target[:, None]).squeeze(1)
    # The largest probability is exp(0) over the sum, so the sum needs no pass of its own.
    return probability, behind - probability.amax(dim=1).log()


def with_entropy(
    output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], price: float | Tensor
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
    """Each row's cross-entropy plus ``price`` times its prediction's entropy, and the gradient; without autograd."""
    log_p = output.log_softmax(dim=1)
    p = log_p.exp()
    own = -log_p.gather(1, target[:, None])
    # Below -1e4, p is 0 in every dtype, and 0 times -inf would be NaN.
    part = log_p.clamp_(min=-1e4).mul_(p).mul_(price)
    entropy = -part.sum(dim=1, keepdim=True)
    gradient = p.mul_(1 - entropy).sub_(part).scatter_add_(1, target[:, None], -torch.ones_like(own))
    return (own + entropy).squeeze(1), gradient


def whole_number(number: float) -> int | None:
    """The number as an int if it is a small whole number up to a few rounding errors, else None."""
    nearest = round(number)
    return nearest if 0 <= nearest <= _LARGEST_POWER and abs(number - nearest) <= 1e-14 * number else None


def whole_power(x: Tensor, exponent: int) -> Tensor:
    """``x ** exponent`` for an exponent >= 1, by squaring; torch's own takes a log and an exponential from 4 on."""
    if exponent == 1:
        return x
    half = whole_power(x, exponent // 2)
    return half * half * x if exponent % 2 else half * half


class _Surprise(torch.autograd.Function):
    """The log-probabilities are an output so that the backward pass may itself be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_p = output.log_softmax(dim=1)
        return -log_p.gather(1, target[:, None]).squeeze(1), -log_p.sum(dim=1), log_p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], output[2])
        ctx.save_for_forward(inputs[1], output[2])

    @staticmethod
    def backward(ctx: Any, own: Tensor | None, total: Tensor | None, log_p_grad: Tensor | None) -> tuple[Tensor, None]:
        target, log_p = ctx.saved_tensors
        none = torch.zeros_like(log_p[:, 0])
        own, total = none if own is None else own, none if total is None else total
        slope = own + log_p.shape[1] * total
        if log_p_grad is not None:
            slope = slope - log_p_grad.sum(dim=1)
        p = log_p.exp()
        gradient = p * slope[:, None] if torch.is_grad_enabled() else p.mul_(slope[:, None])
        gradient = gradient.sub_(total[:, None]).scatter_add_(1, target[:, None], -own[:, None])
        return gradient if log_p_grad is None else gradient + log_p_grad, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor]:
        target, log_p = ctx.saved_tensors
        change = tangent - (log_p.exp() * tangent).sum(dim=1, keepdim=True)
        return -change.gather(1, target[:, None]).squeeze(1), -change.sum(dim=1), change
