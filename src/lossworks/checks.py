"""Argument checks whose errors name the argument, what came and what was wanted; they cost nothing on the hot path.

Shapes and dtypes are checked always. Values (a label's range, NaN, the value of a tensor hyperparameter) are checked in
eager mode on the CPU, never inside ``torch.func`` transforms or ``torch.compile``, and never by waiting for a GPU;
``with lossworks.checks():`` turns them on wherever reading a value is possible at all.
"""

import contextlib
import difflib
import math
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "HALF",
    "InputError",
    "as_float",
    "check_amounts",
    "check_batch",
    "check_between",
    "check_binary",
    "check_bool",
    "check_choice",
    "check_classes",
    "check_finite",
    "check_floating",
    "check_function",
    "check_generator",
    "check_ignore_index",
    "check_int",
    "check_positive",
    "check_probabilities",
    "check_real",
    "check_rows",
    "check_same_shape",
    "check_sample_weight",
    "check_sequence",
    "check_tensor",
    "check_total",
    "checks",
    "listed",
    "nearest",
    "number",
    "precise",
    "readable",
    "shown",
    "taken",
    "wide",
]

FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""The floating-point dtypes that can be computed with; float8 and complex numbers cannot."""
HALF = (torch.float16, torch.bfloat16)
"""The dtypes of half precision, which round counts and have no room for many sums."""
LONGEST_SHOWN = 100
LONGEST_LINE = 800

Number = TypeVar("Number", float, Tensor, float | Tensor)

_asked: ContextVar[bool | None] = ContextVar("lossworks_checks", default=None)


class InputError(ValueError):
    """An error told to the user in one line: what is wrong, where (file, column, row) and what to do.

    Names and values come from files that anyone may have made, so whatever would break the line or steer a terminal is
    shown as an escape, and the line is shortened.
    """

    def __init__(self, message: str) -> None:
        kept = message if len(message) <= 2 * LONGEST_LINE else message[:LONGEST_LINE] + message[-LONGEST_LINE:]
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in kept)
        super().__init__(line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 255]} ... {line[-250:]}")


@contextlib.contextmanager
def checks(enabled: bool = True) -> Iterator[None]:
    """Turn value checks on for tensors on any device, at the price of waiting for it; ``checks(False)`` turns them off.

    >>> with checks():
    ...     pass
    """
    token = _asked.set(enabled)
    try:
        yield
    finally:
        _asked.reset(token)


def readable(tensor: Tensor) -> bool:
    """Whether the tensor's values may be read here: eager, untransformed, and on the CPU or under ``checks()``."""
    if torch.compiler.is_compiling() or tensor.device.type == "meta":
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:  # inside a transform of torch.func
        return False
    asked = _asked.get()
    return tensor.device.type == "cpu" if asked is None else asked


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'churn'?``, or nothing when no known name is near."""
    known = list(known)
    folded = {k.casefold(): k for k in known}
    match = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean {folded[match[0]]!r}?" if match else ""


def listed(names: Sequence[str], limit: int = 8) -> str:
    """The first few names in quotes, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def number(value: float | None, *, sign: bool = False) -> str:
    """Three decimals, four digits from 1,000 on and three from 100,000 on; empty where there is no number."""
    if value is None or value != value:
        return ""
    digits = ".3f" if abs(value) < 1000 else ".4g" if abs(value) < 1e5 else ".3g"
    return f"{value:{'+' if sign else ''}{digits}}"


def shown(value: object) -> str:
    """The value as text for an error message, on one line and shortened."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 63:
        return f"an int of {value.bit_length()} bits"
    text = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else _brief.repr(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = LONGEST_SHOWN


@contextlib.contextmanager
def taken(by: str) -> Iterator[None]:
    """Run code that a user gave; where it fails on what it is given, raise a one-line error that begins with ``by``.

    An error that the device is out of memory passes through, because it is no fault of what was given.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"{by}, which fails ({shown(first)})") from error


def as_float(number: float | Tensor) -> float:
    """The number as a float, without a gradient."""
    return float(number.detach() if isinstance(number, Tensor) else number)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def precise(device: torch.device) -> torch.dtype:
    """The dtype for sums that must lose no digits on the device: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _number(name: str, value: float | Tensor) -> float | None:
    """The hyperparameter's value where it may be read, else None; a wrong type raises."""
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise ValueError(f"{name} must be a number or a 0-d tensor, got a tensor of shape {tuple(value.shape)}")
        if value.dtype not in FLOATING:
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
        check_tensor(name, value)
        return as_float(value) if readable(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a 0-d tensor, got {type(value).__name__}")
    if isinstance(value, int) and value.bit_length() > 63:  # no tensor can be multiplied by it
        raise ValueError(f"{name} must be a float or an int of 64 bits, got {shown(value)}")
    return float(value)


def check_positive(name: str, value: Number, *, allow_zero: bool = False) -> Number:
    """Return the hyperparameter unchanged; raise unless it is finite and > 0 (>= 0 with ``allow_zero``)."""
    number = _number(name, value)
    if number is not None and not (math.isfinite(number) and (number > 0 or (allow_zero and number == 0))):
        raise ValueError(f"{name} must be finite and {'>= 0' if allow_zero else '> 0'}, got {number:g}")
    return value


def check_between(
    name: str, value: Number, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> Number:
    """Return the hyperparameter unchanged; raise unless it lies within the bounds (each included unless open)."""
    number = _number(name, value)
    if number is not None and not (
        (number > low if open_low else number >= low) and (number < high if open_high else number <= high)
    ):
        wanted = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must be in {wanted}, got {number:g}")
    return value


def check_finite(name: str, value: Number) -> Number:
    """Return the hyperparameter unchanged; raise unless it is a finite number of either sign."""
    number = _number(name, value)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number:g}")
    return value


def check_int(name: str, value: int, *, low: int, high: int | None = None) -> int:
    """Return the hyperparameter unchanged; raise unless it is an ``int`` of 64 bits in ``[low, high]``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low or value > (2**63 - 1 if high is None else high):
        wanted = f">= {low}" if high is None else f"in [{low}, {high}]"
        wanted = "below 2**63" if high is None and value > low else wanted
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    return value


def check_ignore_index(ignore_index: int) -> int:
    """Return the class that marks ignored rows unchanged; raise unless it is an int that an int64 target can hold."""
    return check_int("ignore_index", ignore_index, low=-(2**63), high=2**63 - 1)


def check_choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """Return the option unchanged; raise unless it is one of ``allowed``, and suggest the nearest."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        hint = nearest(value, allowed) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}{hint}")
    return value


def check_generator(name: str, value: torch.Generator | None) -> torch.Generator | None:
    """Return the generator unchanged; raise unless it is a generator or None."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"{name} must be a torch.Generator or None, got {type(value).__name__}")
    return value


def check_bool(name: str, value: bool) -> bool:
    """Return the switch unchanged; raise unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


def check_sequence(name: str, value: object) -> None:
    """Raise unless ``value`` is a sequence such as a list or a tuple, and not a string."""
    if isinstance(value, str) or not isinstance(value, (Sequence, torch.nn.ModuleList)):
        raise TypeError(f"{name} must be a sequence, got {type(value).__name__}")


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise unless ``tensor`` is a dense tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {tensor.layout}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise unless ``tensor`` is a dense floating-point tensor that can be computed with."""
    check_tensor(name, tensor)
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be floating-point, got {tensor.dtype}")


def check_batch(name: str, tensor: Tensor) -> None:
    """Raise unless the tensor is floating-point with an axis of rows."""
    check_floating(name, tensor)
    if tensor.ndim == 0:
        raise ValueError(f"{name} must have shape (n, ...), got ()")


def check_function(name: str, value: object, of: str) -> None:
    """Raise unless the value can be called; ``of`` names its arguments in the error."""
    if not callable(value):
        raise TypeError(f"{name} must be a function of {of}, got {type(value).__name__}")


def check_probabilities(name: str, tensor: Tensor) -> None:
    """Raise unless ``tensor`` is floating-point with all its numbers in [0, 1]."""
    check_floating(name, tensor)
    if readable(tensor) and not bool(((tensor >= 0) & (tensor <= 1)).all()):
        low, high = (float(bound) for bound in tensor.detach().aminmax())
        raise ValueError(f"{name} must be in [0, 1], got {low:g}..{high:g}")


def check_real(name: str, tensor: Tensor) -> None:
    """Raise unless ``tensor`` is dense and holds real numbers or booleans that can be computed with."""
    check_tensor(name, tensor)
    if tensor.dtype not in FLOATING and (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}")


def check_amounts(name: str, tensor: Tensor, dim: str, *, least: int) -> None:
    """Raise unless ``tensor`` is one finite number >= 0 for each of ``dim``, with a positive sum."""
    check_floating(name, tensor)
    if tensor.ndim != 1 or len(tensor) < least:
        raise ValueError(f"{name} must have shape ({dim},) with {dim} >= {least}, got {tuple(tensor.shape)}")
    if not readable(tensor):
        return
    amounts = tensor.detach()
    if not (bool((amounts >= 0).all()) and 0 < float(amounts.double().sum()) < math.inf):
        raise ValueError(f"{name} must be >= 0 with a positive, finite sum, got {shown(amounts.tolist())}")


def check_same_shape(output: Tensor, target: Tensor, *, names: tuple[str, str] = ("output", "target")) -> None:
    """Raise unless both tensors have the same shape, so that nothing broadcasts unnoticed."""
    check_tensor(names[0], output)
    check_tensor(names[1], target)
    if output.shape != target.shape:
        raise ValueError(
            f"{names[1]} must have the shape of {names[0]}, got {tuple(target.shape)} beside {tuple(output.shape)}"
        )


def check_sample_weight(sample_weight: Tensor, shape: torch.Size | None, *, name: str = "sample_weight") -> bool:
    """Raise unless ``sample_weight`` is finite and >= 0 everywhere, and has ``shape`` unless that is None.

    Returns:
        Whether some weights may be 0; True where the values may not be read.
    """
    check_floating(name, sample_weight)
    if shape is not None and sample_weight.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(sample_weight.shape)}")
    if not readable(sample_weight):
        return True
    if not sample_weight.numel():
        return False
    low = float(sample_weight.detach().min())
    if not low >= 0 or not math.isfinite(float(sample_weight.detach().max())):
        row = int(((sample_weight < 0) | ~sample_weight.isfinite()).flatten().nonzero()[0])
        raise ValueError(
            f"{name} must be finite and >= 0, got {float(sample_weight.detach().flatten()[row]):g} at {row}"
        )
    return low == 0


def check_binary(target: Tensor) -> None:
    """Raise unless every number is 0 or 1."""
    check_real("target", target)
    flat = target.flatten()
    if readable(flat) and flat.dtype != torch.bool and not torch.equal(flat.square(), flat):
        row = int((flat.square() != flat).nonzero()[0])
        raise ValueError(f"target must be 0 or 1, got {flat[row].item():g} at {row}")


def check_total(total: float | Tensor) -> None:
    """Raise unless ``total``, what a mean divides by, is one finite number >= 0 of any dtype."""
    if isinstance(total, Tensor):
        check_real("total", total)
        if total.ndim != 0 or total.dtype is torch.bool:
            raise ValueError(f"total must be a number or a 0-d tensor, got {total.dtype} of shape {tuple(total.shape)}")
        if not readable(total):
            return
        total = float(total.detach())
    check_positive("total", total, allow_zero=True)


def check_rows(name: str, rows: Int[Tensor, " n"], count: int, *, low: int = 0) -> None:
    """Raise unless these row numbers lie in ``[low, count)``, as far as they may be read."""
    if readable(rows) and rows.numel():
        least, most = (int(bound) for bound in rows.aminmax())
        if least < low or most >= count:
            raise ValueError(f"{name} must be in [0, {count}), got {least}..{most}")


def check_classes(
    output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], *, ignore_index: int | None = None
) -> None:
    """Raise unless ``output`` is ``(n, C)`` scores and ``target`` is ``(n,)`` int64 classes in ``[0, C)``."""
    check_floating("output", output)
    check_tensor("target", target)
    if output.ndim != 2:
        raise ValueError(f"output must have shape (n, C), got {tuple(output.shape)}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64 classes, got {target.dtype}")
    if target.shape != output.shape[:1]:
        raise ValueError(
            f"target must have shape {tuple(output.shape[:1])}, one class a row, got {tuple(target.shape)}"
        )
    if readable(target) and target.numel():
        low, high = (int(bound) for bound in target.aminmax())
        if low < 0 or high >= output.shape[1]:
            wrong = (target < 0) | (target >= output.shape[1])
            if ignore_index is not None:
                wrong &= target != ignore_index
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise ValueError(f"target must be in [0, {output.shape[1]}), got {int(target[row])} in row {row}")
