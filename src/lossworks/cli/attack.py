"""``lossworks attack``: how the accuracy of a run's model falls as its inputs are moved."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lossworks.cli.options import AsJson, OwnModel, Quiet, Run, find_model
from lossworks.cli.screen import number, out, print_json

__all__ = ["attack"]


def attack(
    run: Run,
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Rows with their target, as a CSV, TSV, Parquet, Arrow or NPZ file."),
    ],
    eps: Annotated[
        float,
        typer.Option(metavar="RADIUS", help="The largest radius, in the units of the scaled columns."),
    ],
    norm: Annotated[str, typer.Option(metavar="NORM", help="The norm that measures the radius: linf or l2.")] = "linf",
    steps: Annotated[int, typer.Option(metavar="N", help="The number of steps of each search.")] = 20,
    restarts: Annotated[int, typer.Option(metavar="N", help="The number of searches from a new start.")] = 5,
    seed: Annotated[int, typer.Option(metavar="N", help="The seed of the random starts.")] = 0,
    model: OwnModel = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure how the accuracy of a run's model falls when its inputs are moved a little."""
    from lossworks.comparison import load

    trained = load(run, factory=None if model is None else find_model(model))
    curve = trained.robustness(data, eps, norm=norm, steps=steps, restarts=restarts, seed=seed)
    if as_json:
        print_json({"norm": norm, "steps": steps, "restarts": restarts, "curve": curve.to_dicts()})
        return
    table = Table(box=None, pad_edge=False, show_header=not quiet)
    for heading in (f"{norm} radius", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for radius, accuracy in curve.rows():
        table.add_row(f"{radius:g}", number(accuracy))
    out.print(table)
    if not quiet:
        out.print("The search may miss an input that fools the model: each accuracy is an upper bound.", style="dim")
