"""The kinds of target that a loss takes, one class each.

Code that needs to know something about a kind asks the object; no other file compares kinds by name.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lossworks.checks import (
    check_binary,
    check_choice,
    check_classes,
    check_floating,
    check_real,
    check_same_shape,
    readable,
    shown,
)
from lossworks.roles.reduction import over_rows

__all__ = [
    "BINARY",
    "CLASSES",
    "COUNTS",
    "KINDS",
    "PAIRS",
    "REAL",
    "Binary",
    "Classes",
    "Counts",
    "Kind",
    "Pairs",
    "Real",
    "Rows",
    "TakesKind",
    "find_kind",
]


class Rows(NamedTuple):
    """Outputs and targets as flat rows.

    Attributes:
        output: One output per row ``(rows,)``, or one per class ``(rows, C)``.
        target: One target per row ``(rows,)``, or one probability per class ``(rows, C)``. An ignored row has class 0.
        kept: Which rows are not ignored ``(rows,)``, or None if all are kept.
        shape: The original shape of the rows, which is also the shape of their losses.
    """

    output: Tensor
    target: Tensor
    kept: Bool[Tensor, " rows"] | None
    shape: torch.Size


class Kind(ABC):
    """A kind of target: how a loss's output and target fit together as tensors, and what they mean.

    A kind has no state, so all objects of one class are equal. For code of a user's own a kind also equals its name.

    Class attributes:
        name: The kind's name in class bodies and saved models.
        title: The kind's name in error messages, after "takes".
        flat: Whether an output is one number per row, so that output and target have the same shape. Otherwise an
            output is one number per class, ``(n, C)`` or ``(n, C, d1, ...)``.
        has_classes: Whether a target is a class, as an int64 number, with one value that marks ignored rows.
        scalable: Whether a target is a quantity with a unit, which may be shifted and scaled before training.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    flat: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False
    scalable: ClassVar[bool] = False

    def outputs(self, num_classes: int) -> int:
        """How many outputs a model needs for a target with this number of classes."""
        return 1

    def levels(self, num_classes: int) -> int | None:
        """How many values a target can have, which are 0, 1, ...; None if they can't be counted."""
        return None

    @abstractmethod
    def predict(self, output: Tensor) -> Tensor:
        """What an output predicts: probabilities of classes, the probability of class 1, or a value."""

    def check_dtype(self, target: Tensor) -> None:
        """Raise unless the target has a dtype that this kind takes."""
        check_real("target", target)

    def check_values(self, target: Tensor) -> None:  # noqa: B027  # most kinds allow every number
        """Raise unless the target has values that this kind allows."""

    def rows(self, output: Tensor, target: Tensor, ignore_index: int = -100) -> Rows:
        """Output and target as flat rows of the output's dtype.

        Raises:
            ValueError: shapes that don't match, or a target with a value that the kind does not allow.
            TypeError: a target of a dtype that the kind does not take.
        """
        check_same_shape(output, target)
        self.check_dtype(target)
        flat = target.flatten().to(output.dtype)
        self.check_values(flat)
        return Rows(output.flatten(), flat, None, target.shape)

    def row_shape(self, target: Tensor) -> torch.Size:
        """The shape of the rows of this target."""
        return target.shape

    def kept(self, target: Tensor, ignore_index: int) -> Bool[Tensor, "*rows"] | None:
        """Which rows are not ignored, in the target's shape; None if a target of this kind can't mark ignored rows."""
        return None

    def without(self, target: Tensor, absent: Bool[Tensor, "*rows"], ignore_index: int) -> Tensor:
        """The target in which absent rows hold nothing that counts or that could be refused."""
        return torch.where(over_rows(absent, target), 0, target)

    def filled(self, target: Tensor, ignore_index: int) -> Tensor:
        """The target with class 0 in place of ``ignore_index``."""
        kept = self.kept(target, ignore_index)
        return target if kept is None else torch.where(kept, target, 0)

    def example(
        self,
        rows: int,
        classes: int,
        dtype: torch.dtype,
        generator: torch.Generator | None = None,
        *,
        outputs: int | None = None,
    ) -> tuple[Float[Tensor, "rows *outputs"], Shaped[Tensor, " rows"]]:
        """Random outputs and targets, for the tests of a part.

        Args:
            rows: How many rows.
            classes: How many classes a target has, if it has classes.
            dtype: The dtype of the outputs, and of targets that are not classes.
            generator: Where the numbers are drawn from.
            outputs: How many outputs a row has, if a loss needs another number than its kind.
        """
        outputs = self.outputs(classes) if outputs is None else outputs
        shape = (rows,) if self.flat and outputs == 1 else (rows, outputs)
        output = torch.randn(shape, dtype=dtype, generator=generator)
        return output, self.example_target(rows, classes, dtype, generator)

    @abstractmethod
    def example_target(
        self, rows: int, classes: int, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Shaped[Tensor, " rows"]:
        """Random targets, see :meth:`example`."""

    @abstractmethod
    def refused(self, target: Tensor, classes: int) -> tuple[Tensor, ...]:
        """Variants of this target that the kind refuses, for the tests of a part."""

    def __eq__(self, other: object) -> bool:
        return other == self.name if isinstance(other, str) else type(self) is type(other)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Classes(Kind):
    """Classification: the target is one of C classes.

    The output is ``(n, C)`` or ``(n, C, d1, ...)``. The target is int64 classes ``(n,)`` or ``(n, d1, ...)``, in which
    ``ignore_index`` marks ignored rows, or class probabilities in the output's shape.
    """

    name = "classes"
    title = "classes"
    flat = False
    has_classes = True

    def outputs(self, num_classes: int) -> int:
        """See :class:`Kind`."""
        return num_classes

    def levels(self, num_classes: int) -> int | None:
        """See :class:`Kind`."""
        return num_classes

    def predict(self, output: Tensor) -> Tensor:
        """Class probabilities ``(n, C)``."""
        return output.softmax(dim=-1)

    def rows(self, output: Tensor, target: Tensor, ignore_index: int = -100) -> Rows:
        """See :class:`Kind`."""
        if output.ndim < 2:
            raise ValueError(f"output must have shape (n, C) or (n, C, d1, ...), got {tuple(output.shape)}")
        shape = output.shape[:1] + output.shape[2:]
        flat = output.movedim(1, -1).flatten(0, -2)
        if target.is_floating_point():
            check_same_shape(output, target)
            return Rows(flat, target.movedim(1, -1).reshape(flat.shape).to(flat.dtype), None, shape)
        if target.dtype != torch.int64:
            raise TypeError(f"target must be int64 classes, got {target.dtype}")
        if target.shape != shape:
            raise ValueError(
                f"target must have shape {tuple(shape)} for output {tuple(output.shape)}, got {tuple(target.shape)}"
            )
        target = target.flatten()
        check_classes(flat, target, ignore_index=ignore_index)
        kept = target != ignore_index
        return Rows(flat, torch.where(kept, target, 0), kept, shape)

    def row_shape(self, target: Tensor) -> torch.Size:
        """See :class:`Kind`."""
        if not target.is_floating_point():
            return target.shape
        if target.ndim < 2:
            raise TypeError(f"target must be int64 classes, or probabilities (n, C, ...), got {target.dtype}")
        return target.shape[:1] + target.shape[2:]

    def kept(self, target: Tensor, ignore_index: int) -> Bool[Tensor, "*rows"] | None:
        """See :class:`Kind`; class probabilities mark no row as ignored."""
        return None if target.is_floating_point() else target != ignore_index

    def without(self, target: Tensor, absent: Bool[Tensor, "*rows"], ignore_index: int) -> Tensor:
        """See :class:`Kind`: absent rows are ignored, or equally of every class."""
        if not target.is_floating_point():
            return torch.where(over_rows(absent, target), ignore_index, target)
        return torch.where(over_rows(absent, target), 1 / target.shape[1], target)

    def example_target(
        self, rows: int, classes: int, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Shaped[Tensor, " rows"]:
        """See :class:`Kind`."""
        return torch.randint(classes, (rows,), generator=generator)

    def refused(self, target: Tensor, classes: int) -> tuple[Tensor, ...]:
        """A class out of range, and another integer dtype."""
        return target + classes, target.int()


class Binary(Kind):
    """Binary classification: the output is a score whose sign is the answer.

    The target is 0 or 1, floating-point, int64 or bool, in the output's shape.
    """

    name = "binary"
    title = "two classes"

    def levels(self, num_classes: int) -> int | None:
        """See :class:`Kind`."""
        return 2

    def predict(self, output: Tensor) -> Tensor:
        """The probability of class 1."""
        return output.sigmoid()

    def check_values(self, target: Tensor) -> None:
        """See :class:`Kind`."""
        check_binary(target)

    def example_target(
        self, rows: int, classes: int, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Shaped[Tensor, " rows"]:
        """See :class:`Kind`."""
        return torch.randint(2, (rows,), generator=generator).to(dtype)

    def refused(self, target: Tensor, classes: int) -> tuple[Tensor, ...]:
        """Values that are neither 0 nor 1."""
        return (target + 2,)


class _Numbers(Kind):
    """A floating-point target in the output's shape; the output itself is its estimate."""

    def predict(self, output: Tensor) -> Tensor:
        """The output itself."""
        return output

    def check_dtype(self, target: Tensor) -> None:
        """See :class:`Kind`."""
        check_floating("target", target)

    def example_target(
        self, rows: int, classes: int, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Shaped[Tensor, " rows"]:
        """See :class:`Kind`."""
        return torch.randn(rows, dtype=dtype, generator=generator)

    def refused(self, target: Tensor, classes: int) -> tuple[Tensor, ...]:
        """An integer dtype."""
        return (target.long(),)


class Real(_Numbers):
    """Regression: the target is a real value, floating-point, in the output's shape, and the output its estimate."""

    name = "real"
    title = "real values"
    scalable = True


class Pairs(_Numbers):
    """Ranking: output and target are two scores of the model, in one shape, with gradients in both.

    The output is the score that should be the higher one of the pair. No table has such a target.
    """

    name = "pairs"
    title = "pairs of scores"


class Counts(Kind):
    """Counts: the target says how often something happened, the output is the logarithm of the expected number.

    The target is >= 0, in the output's shape, of any real dtype; it need not be whole.
    """

    name = "counts"
    title = "counts"

    def predict(self, output: Tensor) -> Tensor:
        """The expected count."""
        return output.exp()

    def check_values(self, target: Tensor) -> None:
        """See :class:`Kind`."""
        flat = target.flatten()
        if readable(flat) and not bool(((flat >= 0) & (flat < math.inf)).all()):
            row = int((~((flat >= 0) & (flat < math.inf))).nonzero()[0])
            raise ValueError(f"target must be counts, finite and >= 0, got {flat[row].item():g} at {row}")

    def example_target(
        self, rows: int, classes: int, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Shaped[Tensor, " rows"]:
        """See :class:`Kind`."""
        return torch.randint(6, (rows,), generator=generator).to(dtype)

    def refused(self, target: Tensor, classes: int) -> tuple[Tensor, ...]:
        """Negative counts."""
        return (-1 - target,)


CLASSES, BINARY, REAL, COUNTS, PAIRS = Classes(), Binary(), Real(), Counts(), Pairs()
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (CLASSES, BINARY, REAL, COUNTS, PAIRS)}
"""All kinds by name."""


def find_kind(name: str) -> Kind:
    """Find the kind with this name.

    Raises:
        ValueError: there is no such kind.

    >>> find_kind("binary").title
    'two classes'
    """
    return KINDS[check_choice("kind", name, KINDS)]


class TakesKind:
    """What takes a target of some kind, and says in its class body which one.

    The kind holds for the whole class, because a comparison chooses losses by it before it builds one.

    Attributes:
        kind: The :class:`Kind`; a class body may give the kind's name.

    Raises:
        ValueError: a class body gives the name of no kind.
        TypeError: a class body gives neither a kind nor a name, a kind without a name or a title, or an instance is
            given a kind of its own.
    """

    kind: ClassVar[Kind]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" not in cls.__dict__:
            return
        given: Any = cls.__dict__["kind"]
        if isinstance(given, str):
            cls.kind = KINDS[check_choice(f"{cls.__name__}.kind", given, KINDS)]
        elif not isinstance(given, Kind):
            raise TypeError(f"{cls.__name__}.kind must be a Kind or the name of one, got {shown(given)}")
        elif missing := [word for word in ("name", "title") if not hasattr(given, word)]:
            raise TypeError(f"{cls.__name__}.kind: {type(given).__name__} must define {' and '.join(missing)}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "kind":
            own = type(self).__name__
            raise TypeError(
                f"{own}.kind is set in the class body, not on an instance: write kind = {shown(value)} there"
            )
        super().__setattr__(name, value)
