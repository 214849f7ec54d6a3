"""The versions of the software that the numbers depend on."""

import functools
import importlib.metadata
import platform

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """The version of Python and of each package that the numbers depend on."""
    packages = ("lossworks", "torch", "numpy", "scikit-learn", "scipy", "polars")
    return {"python": platform.python_version()} | {name: _installed(name) for name in packages}


_installed = functools.cache(importlib.metadata.version)
