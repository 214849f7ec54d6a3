"""The error that a user of ``compare`` sees."""

__all__ = ["InputError"]


class InputError(ValueError):
    """One line for the user: what is wrong, where (file, column, row) and what to do."""
