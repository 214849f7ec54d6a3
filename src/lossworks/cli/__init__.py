"""The command line: one command a file, each a thin face on a function that Python has too."""

from lossworks.cli.app import main

__all__ = ["main"]
