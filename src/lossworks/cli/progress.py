"""The live display of a run: what is running, how many of how many, the time left and the best so far."""

import contextlib
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Display

from lossworks.cli.screen import err, plain
from lossworks.runs.bench import Progress, Watch

__all__ = ["watching"]


@contextlib.contextmanager
def watching(*, silent: bool) -> Iterator[Watch | None]:
    """Show a run's progress on the terminal while it lasts; yields the function that the run calls, None if silent."""
    if silent:
        yield None
        return
    columns = (
        TextColumn("{task.fields[running]}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("best so far {task.fields[best]}", style="dim", markup=False),
    )
    with Display(*columns, console=err, transient=True, disable=not err.is_terminal) as display:
        task = display.add_task("", total=None, running="reading", left="", best="none yet")
        said = {""}

        def watch(progress: Progress) -> None:
            if progress.note not in said:
                said.add(progress.note)
                display.print(plain(progress.note))
            left = "" if progress.seconds_left is None else f"{_clock(progress.seconds_left)} left"
            display.update(
                task,
                total=progress.total,
                completed=progress.done,
                running=progress.running,
                left=left,
                best=progress.best or "none yet",
            )

        yield watch


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
