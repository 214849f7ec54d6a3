"""``lossworks compare``: which objective is better on this data, and whether that is real."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lossworks.checks import InputError
from lossworks.cli.options import AsJson, Quiet, column_kinds, find_model, path
from lossworks.cli.screen import err, out, plain, print_json, say_command

__all__ = ["compare", "free_folder"]

LONGEST_STEM = 100
DATA, TRIED, JUDGED, TRAINED, FOLDER = "Data", "What is compared", "How it is judged", "Where it runs", "Run folder"


def compare(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="A CSV, TSV, Parquet, Arrow or NPZ file. Without it, the example in lossworks is taken.",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column to predict.", rich_help_panel=DATA)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="What the target is: binary, multiclass, real or counts. Without it, the target's values decide.",
            rich_help_panel=DATA,
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="A column of groups. It adds the worst group's metric to the report, and objectives that guard the "
            "worst group to the candidates.",
            rich_help_panel=DATA,
        ),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column to leave out. Repeat it for several.", rich_help_panel=DATA),
    ] = None,
    as_: Annotated[
        list[str] | None,
        typer.Option(
            "--as",
            metavar="NAME=KIND",
            help="Read the column NAME as a category, number or date. Repeat it for several.",
            rich_help_panel=DATA,
        ),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="The objectives, joined by commas; parts of one objective are joined by +, as in "
            "FocalLoss,LDRLoss+ClassBalanced. Without it, those that fit the data are tried.",
            rich_help_panel=TRIED,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="What every objective trains: mlp, linear, cnn, or a function of yours as FILE.py:FUNCTION.",
            rich_help_panel=TRIED,
        ),
    ] = "mlp",
    attack: Annotated[
        str | None,
        typer.Option(
            metavar="NORM:RADIUS",
            help="An attack, as linf:RADIUS or l2:RADIUS in the units of the scaled columns. It adds the accuracy "
            "under this attack to the report, and objectives that train against it to the candidates.",
            rich_help_panel=TRIED,
        ),
    ] = None,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify",
            help="Also report the accuracy that no attack within the radius of --attack can break.",
            rich_help_panel=TRIED,
        ),
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="The metric that decides, such as balanced_accuracy, rmse or worst_group_accuracy. Without it, the "
            "usual one for the target decides.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    rope: Annotated[
        float | None,
        typer.Option(
            metavar="DIFFERENCE",
            help="The largest difference of the metric that counts as equal in practice. Without it, 0.01 for metrics "
            "in [0, 1], and 1 % of the reference's value for others.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(metavar="N", help="The number of folds of the cross-validation.", rich_help_panel=JUDGED)
    ] = 5,
    repeats: Annotated[
        int,
        typer.Option(metavar="N", help="How many times the data is split into folds anew.", rich_help_panel=JUDGED),
    ] = 2,
    seed: Annotated[
        int, typer.Option(metavar="N", help="The seed of everything that is drawn at random.", rich_help_panel=JUDGED)
    ] = 0,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="The time after which no further training begins. What is finished by then is reported.",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The memory that the models in training may take, such as 4GB. Without it, half of what is free.",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="The device that trains the models: auto, cpu or cuda.", rich_help_panel=TRAINED
        ),
    ] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINE",
            help="Who does the trainings: local, which is this machine, or ray, the machines of a Ray cluster.",
            rich_help_panel=TRAINED,
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The head of the Ray cluster, or auto. Without it, Ray uses this machine alone.",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=path,
            metavar="FOLDER",
            help="The run folder to write. Without it, it is runs/TARGET-N with the first free number.",
            rich_help_panel=FOLDER,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            metavar="FOLDER",
            help="Go on with the stopped run in this folder, with the options that it was begun with.",
            rich_help_panel=FOLDER,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train every objective that fits your data, and say which is better and whether the difference is real."""
    from lossworks import comparison
    from lossworks.cli.answer import tell
    from lossworks.cli.progress import watching

    if resume is not None:
        _refuse_the_runs_options(context)
    name = target or (comparison.embedded().target_name if data is None else "run")
    folder = resume or out_ or free_folder(name)
    with _told_to_resume(folder), watching(silent=quiet or as_json) as watch:
        result = comparison.compare(
            data,
            target,
            objectives=None if objectives is None else [name.strip() for name in objectives.split(",")],
            metric=metric,
            model=find_model(model),
            folds=folds,
            repeats=repeats,
            group=group,
            seed=seed,
            budget=budget,
            device=device,
            out=None if resume else folder,
            task=task,
            drop=tuple(drop or ()),
            columns=column_kinds(as_ or []),
            rope=rope,
            resume=resume,
            engine=engine,
            address=address,
            memory=memory,
            attack=attack,
            certify=certify,
            watch=watch,
        )
    if as_json:
        print_json(result.to_json() | {"run": str(folder)})
    elif quiet:
        out.print(plain(result.answer), soft_wrap=True)
    else:
        tell(result, folder)


def free_folder(name: str) -> Path:
    """The first folder ``runs/NAME-N`` that is not there yet, whatever characters the name has.

    Raises:
        InputError: the folder ``runs`` cannot be read.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:LONGEST_STEM] or "run"
    number = 1
    try:
        while (Path("runs") / f"{stem}-{number}").exists():
            number += 1
    except OSError as error:
        raise InputError(f"runs: cannot be read ({error.strerror}); choose another folder with --out") from error
    return Path("runs") / f"{stem}-{number}"


WITH_RESUME = {"data", "model", "budget", "engine", "address", "memory", "resume", "quiet", "as_json"}
"""The parameters that may be given beside ``--resume``; a run keeps all others in its folder.

Data and a model of the user's own may be named again, because the folder has only their names.
"""


def _refuse_the_runs_options(context: typer.Context) -> None:
    """Raise if an option is given that a resumed run has in its folder."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in WITH_RESUME:
            raise InputError(f"--resume takes the run's options from its folder: leave {parameter.opts[0]} out")


@contextlib.contextmanager
def _told_to_resume(folder: Path) -> Iterator[None]:
    """Print how to go on with the run where the user stops it before there is anything to report."""
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if not json.loads((folder / "run.json").read_text(encoding="utf-8"))["finished"]:
                say_command(err, "resume", "compare", "--resume", str(folder))
        raise
