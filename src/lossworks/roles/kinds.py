"""The kinds of target that a loss takes."""

from typing import Literal

__all__ = ["Kind"]

Kind = Literal["classes", "binary", "real", "pairs"]
