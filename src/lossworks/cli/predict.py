"""``lossworks predict``: new rows, by the model of a run."""

from pathlib import Path
from typing import Annotated

import typer

from lossworks.checks import InputError
from lossworks.cli.options import OwnModel, Run, find_model, path
from lossworks.cli.screen import print_utf8

__all__ = ["predict"]


def predict(
    run: Run,
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="The new rows, as a CSV, TSV, Parquet, Arrow or NPZ file.")
    ],
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=path,
            metavar="FILE",
            help="The .csv or .parquet file to write. Without it, CSV is printed, its control characters escaped.",
        ),
    ] = None,
    model: OwnModel = None,
) -> None:
    """Predict new rows with the model of a run."""
    from lossworks.comparison import load
    from lossworks.comparison.handover.model import write_csv
    from lossworks.runs.files import whole

    if out_ is not None and out_.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out {out_}: predictions are written as .csv or .parquet; end the name with one of them")
    trained = load(run, factory=None if model is None else find_model(model))
    predicted = trained.frame(data)
    if out_ is None:
        print_utf8(write_csv(predicted) or "")
        return
    with whole(out_) as unfinished:
        if out_.suffix == ".parquet":
            predicted.write_parquet(unfinished)
        else:
            write_csv(predicted, unfinished)
