"""Interval and linear-relaxation bounds: the least and greatest outputs of a model whose input lies in a ball."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import vjp
from torch.nn import functional as F

from lossworks.certify.graph import NORMALISED, Graph, Step, graph_of, refresh_weights
from lossworks.checks import check_bool, check_choice, check_floating, check_int, check_positive, check_tensor
from lossworks.roles import cite

__all__ = ["Region", "crown_bounds", "interval_bounds", "margin_spec", "verified"]

Slope = Literal["adaptive", "zero", "same"]
Statistics = Literal["running", "clean"]
Pair = tuple[Tensor, Tensor]
NORMS = ("linf", "l2", "l1")
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
CHUNK = 2**24
"""How many coefficients of a relaxation are held in memory at once."""
MOST_CLASSES = 2**14
"""The largest number of classes: a row's margins take its square in memory, which beyond this does not fit."""


@dataclass(frozen=True)
class Region:
    """The set in which the input may lie: a ball around x, or a box."""

    x: Tensor
    low: Tensor
    high: Tensor
    eps: float | Tensor
    norm: str

    @classmethod
    def of(cls, x: Tensor, eps: float | Tensor, norm: str = "linf", box: Sequence[Tensor] | None = None) -> "Region":
        """The region with its arguments checked; ``box``, if given, replaces the ball."""
        check_floating("x", x)
        if x.ndim < 2:
            raise ValueError(f"x must have shape (n, ...) with features, got {tuple(x.shape)}")
        check_positive("eps", eps, allow_zero=True)
        check_choice("norm", norm, NORMS)
        if box is None:
            return cls(x, x - eps, x + eps, eps, norm)
        if not isinstance(box, Sequence) or len(box) != 2:
            raise ValueError(f"box must be a pair (low, high), got {type(box).__name__}")
        low, high = box
        for bound in box:
            check_floating("box", bound)
            if bound.shape != x.shape:
                raise ValueError(f"box must have x's shape {tuple(x.shape)}, got {tuple(bound.shape)}")
        if not bool((low <= high).all()):
            raise ValueError("box must have low <= high")
        return cls((low + high) / 2, low, high, eps, "box")

    def least(self, slopes: Float[Tensor, "n s *features"]) -> Float[Tensor, "n s"]:
        """The least value of each linear function of the input over the region."""
        flat = slopes.flatten(2)
        value = (flat @ self.x.flatten(1)[..., None])[..., 0]
        if self.norm in ("linf", "box"):
            radius = ((self.high - self.low) / 2).flatten(1)
            return value - (flat.abs() @ radius[..., None])[..., 0]
        return value - self.eps * torch.linalg.vector_norm(flat, ord=DUAL[self.norm], dim=2)


@cite("gowal2018ibp", helps=("attacks", "worst case"))
def interval_bounds(
    model: nn.Module,
    x: Float[Tensor, "n *features"],
    eps: float | Tensor,
    *,
    box: Sequence[Tensor] | None = None,
    statistics: str = "running",
) -> Pair:
    r"""Interval bound propagation (IBP): bounds on each output for inputs in a linf ball or a box.

    .. math::
        c' = W c + b, \qquad r' = |W|\, r, \qquad [l, u] = [c' - r', c' + r'], \qquad
        \mathrm{ReLU}: [\max(l, 0), \max(u, 0)]

    It costs about two forward passes. The bounds ignore rounding errors: for a certificate that must hold against
    attackers who exploit rounding, convert model and x to float64, whose rounding is far below any radius.

    Args:
        model: A module made of linear and convolutional layers, batch normalisation, ReLU, max and average pooling,
            flattening and sums of branches. It is used as it is and traced by torch.fx.
        x: The ball's centre.
        eps: The radius of the linf ball, in x's units, >= 0.
        box: ``(low, high)`` in place of the ball, each in x's shape.
        statistics: How batch normalisation in training mode is treated: ``"running"`` refuses it, ``"clean"`` uses the
            mean and variance of the batch at x itself (and updates nothing).

    Shape:
        - x: ``(n, ...)``; returns lower and upper bounds, each in the output's shape, with gradients.

    Raises:
        ValueError: ``eps < 0``, a box that doesn't fit, layers in training mode.
        TypeError: a layer that is not known; the error names it and says what to do.

    Use it in certified training, where it is cheap and becomes tight. For a model that was not trained for it, the
    bounds are too loose to be of use: see :func:`crown_bounds`.

    Papers: gowal2018ibp

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -2.0]]))
    >>> low, high = interval_bounds(model, torch.zeros(1, 2), 0.1)
    >>> round(low.item(), 4), round(high.item(), 4)
    (-0.3, 0.3)
    """
    check_choice("statistics", statistics, ("running", "clean"))
    region = Region.of(x, eps, box=box)
    return intervals(graph_of(model), region, cast(Statistics, statistics))[-1]


def intervals(graph: Graph, region: Region, statistics: Statistics = "running") -> list[Pair]:
    """The interval of every step of the graph."""
    found: list[Pair] = [(region.low, region.high)]
    clean = [region.x]
    training = any(isinstance(s.module, NORMALISED) and s.module.training for s in graph)
    sharp = _sharp(graph) if region.norm in ("l2", "l1") else ()
    for number, step in enumerate(graph[1:], 1):
        function = _affine(step, clean[step.inputs[0]] if training else None, statistics)
        try:
            found.append(_interval(step, [found[i] for i in step.inputs], function))
            if number in sharp:
                found[number] = _sharpened(graph, region, found, number, None)
            if training:
                clean.append(_value(step, [clean[i] for i in step.inputs], function))
        except (RuntimeError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"x must be what model takes, {step.name!r} fails ({reason})") from error
    return found


def _interval(step: Step, inputs: Sequence[Pair], function: Callable[[Tensor], Tensor]) -> Pair:
    low, high = inputs[0]
    if step.kind in ("relu", "max") or step.monotone:
        return _value(step, [low], function), _value(step, [high], function)
    if step.kind == "add":
        return low + inputs[1][0], high + inputs[1][1]
    centre, radius = function((low + high) / 2), _absolute(step, function)((high - low) / 2)
    return centre - radius, centre + radius


def _value(step: Step, inputs: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> Tensor:
    if step.kind == "relu":
        return inputs[0].relu()
    if step.kind == "max":
        assert step.module is not None
        return cast(Tensor, step.module(inputs[0]))
    return inputs[0] + inputs[1] if step.kind == "add" else function(inputs[0])


def _affine(step: Step, clean: Tensor | None, statistics: Statistics = "running") -> Callable[[Tensor], Tensor]:
    """The affine step as a function; batch normalisation uses the statistics that ``statistics`` asks for."""
    norm = step.module
    if not isinstance(norm, NORMALISED):
        return step.affine or (lambda x: x)
    if norm.training or norm.running_mean is None or norm.running_var is None:
        if statistics == "running" or clean is None:
            raise ValueError(
                f"model must not depend on the rest of its batch, {step.name!r} ({type(norm).__name__}) goes by the "
                f"batch's statistics: call model.eval()"
            )
        axes = [axis for axis in range(clean.ndim) if axis != 1]
        mean, variance = clean.mean(axes), clean.var(axes, correction=0)
    else:
        mean, variance = norm.running_mean, norm.running_var
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale if norm.bias is None else norm.bias - mean * scale

    def normalise(x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return x * scale.reshape(shape) + shift.reshape(shape)

    return normalise


def _absolute(step: Step, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The step's linear map, with its coefficients replaced by their absolute values."""
    module = step.module
    if isinstance(module, nn.Linear):
        return lambda r: F.linear(r, module.weight.abs())
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return lambda r: module._conv_forward(r, module.weight.abs(), None)
    return lambda r: (function(r) - function(torch.zeros_like(r))).abs()  # the map is one scale per channel


@cite("zhang2018crown", "xu2020autolirpa", helps=("attacks", "worst case"))
def crown_bounds(
    model: nn.Module,
    x: Float[Tensor, "n *features"],
    eps: float | Tensor,
    *,
    norm: str = "linf",
    box: Sequence[Tensor] | None = None,
    spec: Float[Tensor, "n s outputs"] | None = None,
    method: str = "crown",
    lower_slope: str = "adaptive",
    upper: bool = True,
) -> Pair:
    r"""CROWN bounds on each output: linear functions are passed backwards through the model, from output to input.

    .. math::
        l < 0 < u: \quad a z \le \max(z, 0) \le s (z - l), \qquad s = \tfrac{u}{u - l}, \; a \in [0, 1]; \qquad
        f \ge A x + d \ge A x_0 + d - \varepsilon \|A\|_q

    Max pooling is bounded below by the input with the largest lower bound, and above by a constant. Where intervals are
    tighter, they are used instead. As with :func:`interval_bounds`, use float64 for a certificate.

    Args:
        model: As in :func:`interval_bounds`, in evaluation mode, with outputs ``(n, outputs)``.
        x: The ball's centre.
        eps: The ball's radius, in x's units, >= 0.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        box: ``(low, high)`` in place of the ball.
        spec: The linear combinations of outputs to bound, such as :func:`margin_spec`; each output by default.
        method: ``"crown"`` bounds every layer by its own backward pass; ``"crown-ibp"`` bounds the inner layers by
            intervals, except that over a l2 or l1 ball, affine functions of the input count by the ball itself.
        lower_slope: The slope a of the lower line: ``"adaptive"`` is 1 where s > 1/2 and else 0, ``"zero"`` is 0, and
            ``"same"`` is s.
        upper: Whether to compute the upper bounds; without them they are returned infinite, for half the cost.

    Shape:
        - x: ``(n, ...)``; returns lower and upper bounds ``(n, s)``, with gradients.

    Raises:
        ValueError: numbers out of range, shapes that don't fit, layers in training mode.
        TypeError: a layer that is not known; the error names it and says what to do.

    Use it to certify a trained model, or use ``"crown-ibp"`` in certified training. It is exact for affine models. For
    other models it is usually tighter than intervals, but not always. A row that it does not certify may still be safe;
    only a successful attack shows that it is not.

    Papers: zhang2018crown, xu2020autolirpa

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> x = torch.ones(1, 2)
    >>> low, high = crown_bounds(model, x, 0.1)
    >>> bool((low <= model(x)).all() and (model(x) <= high).all())
    True
    """
    check_choice("method", method, ("crown", "crown-ibp"))
    check_choice("lower_slope", lower_slope, ("adaptive", "zero", "same"))
    check_bool("upper", upper)
    region = Region.of(x, eps, norm, box)
    graph = graph_of(model)
    found = intervals(graph, region)
    output = found[-1][0]
    if output.ndim != 2:
        raise ValueError(f"model must give outputs of shape (n, outputs), got {tuple(output.shape)}")
    if method == "crown":
        _tighten(graph, region, found, cast(Slope, lower_slope))
    if spec is None:
        spec = torch.eye(output.shape[1], dtype=output.dtype, device=output.device).expand(len(x), -1, -1)
        return _of_spec(graph, region, found, spec, cast(Slope, lower_slope), upper, found[-1])
    check_floating("spec", spec)
    if spec.ndim != 3 or len(spec) != len(x) or spec.shape[2] != output.shape[1]:
        raise ValueError(f"spec must have shape ({len(x)}, s, {output.shape[1]}), got {tuple(spec.shape)}")
    spec = spec.to(output.dtype)
    plain = combined(graph, spec, found)
    return _of_spec(graph, region, found, spec, cast(Slope, lower_slope), upper, plain)


def combined(graph: Graph, spec: Tensor, found: list[Pair]) -> Pair:
    """The interval of each combination of outputs, computed through the last layer where that is linear."""
    module, (low, high), constant = graph[-1].module, found[-1], spec.new_zeros(())
    if isinstance(module, nn.Linear):
        low, high = found[graph[-1].inputs[0]]
        constant = spec.new_zeros(()) if module.bias is None else spec @ module.bias
        spec = spec @ module.weight
    middle = (spec @ ((low + high) / 2)[..., None])[..., 0] + constant
    reach = (spec.abs() @ ((high - low) / 2)[..., None])[..., 0]
    return middle - reach, middle + reach


def _of_spec(
    graph: Graph, region: Region, found: list[Pair], spec: Tensor, slope: Slope, upper: bool, plain: Pair
) -> Pair:
    last = len(graph) - 1
    low = torch.maximum(_lower(graph, region, found, last, spec, slope), plain[0])
    if not upper:
        return low, torch.full_like(low, torch.inf)
    return low, torch.minimum(-_lower(graph, region, found, last, -spec, slope), plain[1])


def _tighten(graph: Graph, region: Region, found: list[Pair], slope: Slope) -> None:
    """Bound the input of every ReLU and max pooling by a backward pass of its own, in the order of the layers."""
    read = _read(graph)
    for number in range(len(graph)):
        if number in read and not _is_exact(graph, number):
            found[number] = _sharpened(graph, region, found, number, slope)
        elif graph[number].kind in ("relu", "max"):
            low, high = found[graph[number].inputs[0]]
            apply = graph[number].module if graph[number].kind == "max" else torch.relu
            assert apply is not None
            found[number] = (apply(low), apply(high))


def _read(graph: Graph) -> set[int]:
    """The steps whose values a ReLU or a max pooling reads."""
    return {step.inputs[0] for step in graph if step.kind in ("relu", "max")}


def _sharp(graph: Graph) -> set[int]:
    """The steps whose intervals over a round ball one backward pass makes tighter: affine ones that see the input."""
    seen = [True]
    for step in graph[1:]:
        seen.append(step.kind in ("affine", "add") and any(seen[i] for i in step.inputs))
    return {number for number in {*_read(graph), len(graph) - 1} if seen[number]}


def _is_exact(graph: Graph, number: int) -> bool:
    """Whether a step's interval cannot be tighter: true of the input and of a first affine layer."""
    step = graph[number]
    return step.kind == "input" or (step.kind == "affine" and step.inputs == (0,))


def _sharpened(graph: Graph, region: Region, found: list[Pair], number: int, slope: Slope | None) -> Pair:
    """A step's interval where a backward pass of each of its values makes it tighter."""
    low, high = found[number]
    size = prod(low.shape[1:])
    eye = torch.eye(size, dtype=low.dtype, device=low.device)
    at_once = max(1, CHUNK // max(size * len(low), 1))
    lows, highs = [], []
    for rows in eye.split(at_once):
        some = rows.reshape(1, len(rows), *low.shape[1:])
        lows.append(_lower(graph, region, found, number, some, slope))
        highs.append(-_lower(graph, region, found, number, -some, slope))
    return (
        torch.maximum(low, torch.cat(lows, dim=1).reshape(low.shape)),
        torch.minimum(high, torch.cat(highs, dim=1).reshape(high.shape)),
    )


def _lower(graph: Graph, region: Region, found: list[Pair], start: int, spec: Tensor, slope: Slope | None) -> Tensor:
    """The lower bound ``(n, s)`` of linear functions of a step's value: ``(n, s, ...)``, or ``(1, s, ...)`` for all.

    Without a slope the pass ends at each ReLU and max pooling, whose values then lie in their intervals.
    """
    slopes: dict[int, Tensor] = {start: spec}
    constant = spec.new_zeros(len(region.x), spec.shape[1])
    for number in range(start, 0, -1):
        if number not in slopes:
            continue
        step, arriving = graph[number], slopes.pop(number)
        if step.kind == "add":
            for source in step.inputs:
                _join(slopes, source, arriving, found)
            continue
        if slope is None and step.kind != "affine":
            low, high = found[number]
            constant = constant + Region((low + high) / 2, low, high, 0.0, "box").least(arriving)
            continue
        source = step.inputs[0]
        low, high = found[source]
        if step.kind == "relu":
            assert slope is not None
            leaving, added = _through_relu(arriving, low, high, slope)
        elif step.kind == "max":
            assert step.module is not None
            leaving, added = _through_max(arriving, low, high, step.module)
        else:
            leaving, added = _through_affine(arriving, low, step)
        constant = constant + added
        _join(slopes, source, leaving, found)
    return region.least(slopes[0]) + constant if 0 in slopes else constant


def _join(slopes: dict[int, Tensor], source: int, slope: Tensor, found: list[Pair]) -> None:
    slope = _fitted(slope, found[source][0])
    slopes[source] = slopes[source] + slope if source in slopes else slope


def _fitted(slope: Tensor, like: Tensor) -> Tensor:
    """The slopes, or an error where a sum's term was broadcast, so that its shape differs from the sum's."""
    if slope.shape[2:] == like.shape[1:]:
        return slope
    raise ValueError(f"model must add branches of one shape, got {tuple(slope.shape[2:])} and {tuple(like.shape[1:])}")


def _through_affine(arriving: Tensor, low: Tensor, step: Step) -> Pair:
    """The slopes before an affine step, and the constant that the step adds."""
    if isinstance(step.module, nn.Linear) and arriving.ndim == 3:
        bias = step.module.bias
        added = arriving.new_zeros(()) if bias is None else arriving @ bias
        return arriving @ step.module.weight, added
    function = _affine(step, None)
    rows = arriving.shape[0] * arriving.shape[1]
    start = low.new_zeros(rows, *low.shape[1:])
    value, pull = cast(Any, vjp)(function, start)
    (leaving,) = pull(arriving.reshape(rows, *arriving.shape[2:]).expand_as(value))
    added = (value * arriving.reshape(value.shape)).flatten(1).sum(dim=1)
    return leaving.reshape(*arriving.shape[:2], *low.shape[1:]), added.reshape(arriving.shape[:2])


def _through_relu(arriving: Tensor, low: Tensor, high: Tensor, slope: Slope) -> Pair:
    """The slopes before a ReLU: positive coefficients take the lower line, negative ones the upper line."""
    unstable = (low < 0) & (high > 0)
    width = torch.where(unstable, high - low, 1.0)
    above = torch.where(unstable, high / width, (low >= 0).to(low.dtype))
    if slope == "same":
        below = above
    else:
        chosen = (above > 0.5).to(low.dtype) if slope == "adaptive" else torch.zeros_like(above)
        below = torch.where(unstable, chosen, above)
    offset = torch.where(unstable, -above * low, 0.0)
    leaving = arriving * torch.where(arriving > 0, below[:, None], above[:, None])
    negative = arriving.clamp(max=0).flatten(2)
    return leaving, (negative @ offset.flatten(1)[..., None])[..., 0]


def _through_max(arriving: Tensor, low: Tensor, high: Tensor, module: nn.Module) -> Pair:
    """Bound a maximum below by the input of largest lower bound, above by it if it always leads, else by a constant."""
    pooling = cast(Any, module)
    options = {name: getattr(pooling, name) for name in ("stride", "padding", "dilation", "ceil_mode")}
    pool = cast(Any, F.max_pool2d if isinstance(module, nn.MaxPool2d) else F.max_pool1d)
    lead, index = pool(low, pooling.kernel_size, return_indices=True, **options)
    top = module(high)
    alone = torch.zeros_like(top, dtype=torch.bool)
    if pooling.stride == pooling.kernel_size and pooling.dilation in (1, (1, 1)):
        others = high.flatten(2).scatter(2, index.flatten(2), -torch.inf).reshape(high.shape)
        alone = module(others) <= lead
    positive, negative = arriving.clamp(min=0), arriving.clamp(max=0)
    passed = positive + negative * alone[:, None]
    rows, count = passed.shape[:2]
    spread = passed.new_zeros(rows, count, *low.shape[1:]).flatten(3)
    where = index[:, None].expand(rows, count, *index.shape[1:]).flatten(3)
    leaving = spread.scatter_add(3, where, passed.flatten(3)).reshape(rows, count, *low.shape[1:])
    return leaving, (negative * (top * ~alone)[:, None]).flatten(2).sum(dim=2)


@cite("xu2020autolirpa")
def margin_spec(target: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "n others classes"]:
    r"""The margin combinations :math:`f_y - f_j` of outputs, for every class j except the row's own class y.

    Args:
        target: :math:`y`, int64.
        num_classes: The number of classes C, >= 2.

    Shape:
        - target ``(n,)``; returns ``(n, C - 1, C)`` float32.

    Raises:
        ValueError: ``num_classes < 2``, a class out of range.

    Use it as ``spec`` of :func:`crown_bounds`: a row is certified where all its lower bounds are above 0.

    Papers: xu2020autolirpa

    >>> margin_spec(torch.tensor([1]), 3)
    tensor([[[-1.,  1.,  0.],
             [ 0.,  1., -1.]]])
    """
    check_tensor("target", target)
    if target.dtype != torch.int64 or target.ndim != 1:
        raise TypeError(f"target must be (n,) int64, got {target.dtype} {tuple(target.shape)}")
    check_int("num_classes", num_classes, low=2, high=MOST_CLASSES)
    if target.numel() and not bool(((target >= 0) & (target < num_classes)).all()):
        raise ValueError(f"target must be in [0, {num_classes})")
    eye = torch.eye(num_classes, device=target.device)
    classes = torch.arange(num_classes, device=target.device)
    others = classes.expand(len(target), -1)[classes != target[:, None]].reshape(len(target), num_classes - 1)
    return eye[target][:, None] - eye[others]


@cite("xu2020autolirpa", helps=("attacks", "worst case"))
@torch.no_grad()
def verified(
    model: nn.Module,
    x: Float[Tensor, "n *features"],
    target: Int[Tensor, " n"],
    eps: float | Tensor,
    *,
    norm: str = "linf",
    box: Sequence[Tensor] | None = None,
    method: str = "crown",
) -> Tensor:
    """Certified robustness: which rows provably keep their class in the whole ball, by :func:`crown_bounds` of margins.

    It computes in float64, whatever the model's dtype, so that rounding decides no row except an exact tie.

    Args:
        model: As in :func:`crown_bounds`, with one logit per class.
        x: The ball's centre.
        target: The classes, int64.
        eps: The ball's radius, >= 0.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        box: ``(low, high)`` in place of the ball.
        method: As in :func:`crown_bounds`.

    Shape:
        - x ``(n, ...)``, target ``(n,)``; returns ``(n,)`` bool. A row that is not verified may still be safe.

    Raises:
        ValueError: as in :func:`crown_bounds`, and a class out of range.

    Use it for verified accuracy, the mean over rows. It is a lower bound on the accuracy under any attack in the ball.

    Papers: xu2020autolirpa

    >>> verified(nn.Linear(2, 2), torch.ones(3, 2), torch.tensor([0, 1, 0]), 0.0).shape
    torch.Size([3])
    """
    check_tensor("target", target)
    check_floating("x", x)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    Region.of(x, eps, norm, box)  # raises for what does not fit
    if target.shape != x.shape[:1]:
        raise ValueError(f"target must have shape ({len(x)},), one class a row of x, got {tuple(target.shape)}")
    refresh_weights(model)
    model, x = copy.deepcopy(model).double(), x.double()
    refresh_weights(model)
    if box is not None:
        box = [bound.double() for bound in box]
    classes = intervals(graph_of(model), Region.of(x[:1], eps, norm, None))[-1][0].shape[-1]
    spec = margin_spec(target, classes)
    low, _ = crown_bounds(model, x, eps, norm=norm, box=box, spec=spec, method=method, upper=False)
    return (low > 0).all(dim=1)
