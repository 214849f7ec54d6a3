"""The live display of a run: what is running, how many models are done, the time left and the best so far."""

import contextlib
from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from lossworks.cli.screen import err, plain
from lossworks.runs.bench import Progress, Watch

__all__ = ["watching"]

BAR, BESIDE_THE_NAME = 20, 46


class _Display(Bar):
    """A display of two lines: what is running, with a bar, and below it what is best so far."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the lines to draw now."""
        yield from super().get_renderables()
        for task in self.tasks:
            yield Text(f"best so far {task.fields['best']}", style="dim", no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def watching(*, silent: bool) -> Iterator[Watch | None]:
    """Show a run's progress on the terminal; yield the function that the run calls with it, or None if silent."""
    if silent:
        yield None
        return
    name = Column(no_wrap=True, overflow="ellipsis", max_width=err.width - BESIDE_THE_NAME)
    columns = (
        TextColumn("{task.fields[running]}", style="bold", markup=False, table_column=name),
        BarColumn(bar_width=BAR),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with _Display(*columns, console=err, transient=True, disable=not err.is_terminal) as display:
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
    """The time as minutes and seconds, or, if it is an hour or more, as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
