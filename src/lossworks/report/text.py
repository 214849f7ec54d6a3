"""Numbers and names as a reader wants them."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup, escape

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
PERCENT = "\N{NO-BREAK SPACE}%"
BREAKS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[_/.,\\-])(?=\S)")


def is_number(value: object) -> bool:
    """Whether the value can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def decimals(values: Iterable[Any]) -> int:
    """The number of decimals that shows the largest of the values with three or four digits."""
    largest = max((abs(value) for value in values if is_number(value)), default=0.0)
    if largest == 0:
        return 3
    magnitude = math.floor(math.log10(largest))
    return min(8, 3 if -2 <= magnitude <= 0 else max(0, (3 if magnitude > 0 else 1) - magnitude))


def number(value: Any, digits: int | None = None, *, sign: bool = False) -> str:
    """Write the number with a true minus sign and grouped thousands, or a dash if there is no number.

    Without ``digits``, the number of decimals depends on the number's size.
    """
    if not is_number(value):
        return MISSING
    if abs(value) >= 1e9 or 0 < abs(value) < 1e-8:
        text = f"{value:{'+' if sign else ''}.3g}"
    else:
        text = f"{value:{'+' if sign else ''},.{decimals([value]) if digits is None else digits}f}"
        if digits is None and "." in text:
            text = text.rstrip("0").rstrip(".")
        if not re.search("[1-9]", text):
            text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(value: Any) -> str:
    """Write a probability in whole percent; one that is not certain is never rounded to 0 or 100 %."""
    if not is_number(value):
        return MISSING
    if 0 < value < 0.01:
        return f"<1{PERCENT}"
    if 0.99 < value < 1:
        return f">99{PERCENT}"
    return f"{100 * value:.0f}{PERCENT}"


def p_value(value: Any) -> str:
    """Write a p-value with three decimals."""
    if not is_number(value):
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """A time in the two largest units that it fills."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def label(name: str, titles: Mapping[str, str] | None = None) -> str:
    """The name's title, or else the name in words."""
    return (titles or {}).get(name, name.replace("_", " "))


def heading(name: str, titles: Mapping[str, str] | None = None) -> str:
    """The label with a capital."""
    words = label(name, titles)
    return words[:1].upper() + words[1:]


def soft(name: object) -> Markup:
    """The name, escaped, with places where a line may break."""
    return Markup("<wbr>").join(escape(piece) for piece in BREAKS.split(str(name)))


def plain(value: Any) -> str:
    """Any value of a finding's numbers as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ", ".join(map(plain, value)) if isinstance(value, (list, tuple)) else str(value)
    return number(value, 0 if isinstance(value, int) else None)
