"""The error that a user of ``compare`` sees."""

__all__ = ["InputError"]


LONGEST = 800


class InputError(ValueError):
    """One line for the user: what is wrong, where (file, column, row) and what to do.

    Names and values come from files that anyone may have made, so whatever would break the line or steer a terminal is
    shown as an escape, and the line is shortened.
    """

    def __init__(self, message: str) -> None:
        kept = message if len(message) <= 2 * LONGEST else message[:LONGEST] + message[-LONGEST:]
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in kept)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 255]} ... {line[-250:]}")
