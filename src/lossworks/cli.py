"""The command line: a thin face on the library."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from lossworks.comparison import Comparison, Progress

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
out, err = Console(emoji=False, highlight=False), Console(stderr=True, emoji=False, highlight=False)
NARROWEST, WIDE = 80, 120
LONGEST_STEM = 100
UNWRITTEN, INTERRUPTED = 1, 130
METRIC_HEADINGS = {"balanced_accuracy": "bal. accuracy", "average_precision": "avg. precision"}
EXTRA_HEADINGS = {"robust_accuracy": "under\nattack", "verified_accuracy": "proved"}
VERDICTS = {"reference": "dim", "better": "green", "equal": "default", "worse": "red", "unclear": "dim"}


def main() -> None:
    """Run the command line: bad input is one line and exit code 2."""
    from lossworks.checks import InputError

    _fit_the_screen()
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except (InputError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        if message:
            _refuse(" ".join(message.split()))
        sys.exit(2)
    except BrokenPipeError:
        _write_no_more()
        sys.exit(UNWRITTEN)
    except OSError as error:
        _refuse(f"{error.filename or 'the standard output'}: {error.strerror or error}")
        _write_no_more()
        sys.exit(UNWRITTEN)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        err.print("stopped")
    sys.exit(code)


def _fit_the_screen() -> None:
    """Have all shown: as an escape where the encoding lacks a character, and nothing cut off as too wide."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for screen in (out, err):
        if screen.width < NARROWEST:
            screen.width = NARROWEST


def _refuse(message: str) -> None:
    err.print("[red]error:[/red]", _plain(message), soft_wrap=True)


def _write_no_more() -> None:
    """Let go what the standard output did not take, or the interpreter tries it again when it ends."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _path(text: str) -> Path:
    if not text:
        raise typer.BadParameter("it is empty")  # which as a path would be the current folder
    return Path(text)


@app.command("compare")
def compare_command(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Argument(help="CSV, TSV, Parquet, Arrow or NPZ; the embedded example without it.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="What decides: balanced_accuracy, rmse, worst_group_accuracy and others.")
    ] = None,
    objectives: Annotated[str | None, typer.Option(help="Names joined by commas; parts of one joined by +.")] = None,
    model: Annotated[str, typer.Option(help="mlp, linear, cnn, or FILE.py:FUNCTION of your own.")] = "mlp",
    folds: Annotated[int, typer.Option(help="How many folds.")] = 5,
    repeats: Annotated[int, typer.Option(help="How often the folds are drawn anew.")] = 2,
    group: Annotated[
        str | None, typer.Option(help="A column of groups: the worst group is reported too, and guarded.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="binary, multiclass or real, if the target does not say it.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column to leave out; may be repeated.")] = None,
    as_: Annotated[
        list[str] | None, typer.Option("--as", help="NAME=category, NAME=number or NAME=date; may be repeated.")
    ] = None,
    rope: Annotated[float | None, typer.Option(help="Differences within this count as equal in practice.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    budget: Annotated[float | None, typer.Option(help="Seconds after which nothing further is begun.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out_: Annotated[
        Path | None, typer.Option("--out", parser=_path, help="The run folder; runs/TARGET-N by default.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(parser=_path, help="A run folder: go on with a run that was stopped; it knows its options."),
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: on the machines of a Ray cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the Ray cluster's head, or auto; this machine alone without it.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What models in training may take, such as 4GB; half of what is free by default.")
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="linf:RADIUS or l2:RADIUS in scaled units: report the accuracy under attack, and train on it."
        ),
    ] = None,
    certify: Annotated[
        bool, typer.Option("--certify", help="With --attack: the accuracy that no attack can break is reported too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the answer alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train every fitting objective on your data and say which is better, and whether that is real."""
    from lossworks.comparison import compare, embedded

    if resume is not None:
        _leave_to_the_run(context)
    name = target or (embedded().target_name if data is None else "run")
    folder = resume or out_ or _free_folder(name)
    with _told_to_resume(folder), _watching(quiet or as_json) as watch:
        result = compare(
            data,
            target,
            objectives=None if objectives is None else [name.strip() for name in objectives.split(",")],
            metric=metric,
            model=_model(model),
            folds=folds,
            repeats=repeats,
            group=group,
            seed=seed,
            budget=budget,
            device=device,
            out=None if resume else folder,
            task=task,
            drop=tuple(drop or ()),
            columns=_columns(as_ or []),
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
        print(json.dumps(result.to_json() | {"run": str(folder)}, default=str))  # noqa: T201
    elif quiet:
        out.print(_plain(result.answer), soft_wrap=True)
    else:
        _tell(result, folder)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[Path, typer.Argument(help="New rows: CSV, TSV, Parquet, Arrow or NPZ.")],
    out_: Annotated[
        Path | None, typer.Option("--out", parser=_path, help="A CSV or Parquet file; by default CSV on the screen.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="FILE.py:FUNCTION, if the run used a model of your own.")] = None,
) -> None:
    """Predict new rows with the model of a run."""
    from lossworks.checks import InputError
    from lossworks.comparison import load
    from lossworks.comparison.handover.model import write_csv
    from lossworks.runs.files import whole

    if out_ is not None and out_.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out {out_}: predictions are written as .csv or .parquet")
    trained = load(run, factory=None if model is None else _model(model))
    predicted = trained.frame(data)
    if out_ is None:
        _print_utf8(write_csv(predicted) or "")
        return
    with whole(out_) as unfinished:
        if out_.suffix == ".parquet":
            predicted.write_parquet(unfinished)
        else:
            write_csv(predicted, unfinished)


@app.command()
def attack(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[Path, typer.Argument(help="Rows with their target: CSV, TSV, Parquet, Arrow or NPZ.")],
    eps: Annotated[float, typer.Option(help="The largest radius, in the units of the scaled columns.")],
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    steps: Annotated[int, typer.Option(help="Steps of each search.")] = 20,
    restarts: Annotated[int, typer.Option(help="How often each search begins anew.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the restarts.")] = 0,
    model: Annotated[str | None, typer.Option(help="FILE.py:FUNCTION, if the run used a model of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure how the model of a run holds up when inputs are moved a little."""
    from lossworks.comparison import load

    trained = load(run, factory=None if model is None else _model(model))
    curve = trained.robustness(data, eps, norm=norm, steps=steps, restarts=restarts, seed=seed)
    if as_json:
        print(json.dumps({"norm": norm, "steps": steps, "restarts": restarts, "curve": curve.to_dicts()}))  # noqa: T201
        return
    table = Table(box=None, pad_edge=False)
    for heading in (f"{norm} radius", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for radius, accuracy in curve.rows():
        table.add_row(f"{radius:g}", _number(accuracy))
    out.print(table)
    out.print("[dim]What this search does not find may still be there.[/dim]")


@app.command()
def find(
    text: Annotated[str, typer.Argument(help='What troubles you, such as "my labels are noisy".')],
    limit: Annotated[int, typer.Option(help="How many parts at most.")] = 10,
) -> None:
    """Find the parts that help with what you describe."""
    from lossworks.catalog import HELPS
    from lossworks.catalog import find as search
    from lossworks.checks import InputError

    try:
        found = search(text, limit)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not found:
        out.print(f"Nothing found. Parts help with: {', '.join(HELPS)}.")
        raise typer.Exit(1)
    for entry, terms in found:
        out.print(f"[bold]{entry.name}[/bold]  [dim]{entry.role}; {', '.join(terms or entry.helps)}[/dim]")
        out.print(Padding(_plain(_words(entry.summary)), (0, 0, 0, 4)))
    out.print("[dim]lossworks show NAME tells more.[/dim]")


@app.command("list")
def list_() -> None:
    """List every part by role."""
    from lossworks.catalog import parts

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for role, entries in groupby(sorted(parts().values(), key=lambda entry: entry.role), lambda entry: entry.role):
        table.add_row(f"[bold]{role}[/bold]")
        for entry in entries:
            table.add_row(f"  {entry.name}", ", ".join(entry.helps))
    out.print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A part, such as LDRLoss.")]) -> None:
    """Show one part: what it is for, its equation, arguments, papers and measured claim."""
    import inspect

    from lossworks.catalog import claims as measured
    from lossworks.catalog import papers
    from lossworks.catalog import show as look
    from lossworks.checks import InputError

    try:
        entry = look(name)
    except KeyError as error:
        raise InputError(str(error.args[0])) from error
    out.print(
        f"[bold]{entry.path}[/bold]  [dim]{entry.role}; helps with {', '.join(entry.helps) or 'nothing named'}[/dim]\n"
    )
    out.print(_plain(inspect.getdoc(entry.part) or ""), soft_wrap=True)
    for key in entry.papers:
        paper = papers()[key]
        out.print(f"\n[bold]{key}[/bold] ", _plain(paper.cite()), soft_wrap=True)
        if paper.claim or paper.note:
            out.print(_plain(f"  {paper.claim or paper.note}"), soft_wrap=True)
        if key in measured():
            claim = measured()[key]
            out.print(_plain(f"  measured: {claim.verdict}. {claim.measured}"), soft_wrap=True)


@app.command()
def claims() -> None:
    """List the papers' claims that were measured, whether each showed, and where the experiments are."""
    from lossworks.catalog import claims_text

    out.print(_plain(claims_text()), soft_wrap=True)


def _plain(text: str) -> Text:
    """Text in which brackets are brackets, not markup, and nothing steers the terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def _print_utf8(text: str) -> None:
    """Print what is read by programs: the same bytes in every locale, as a file would have them."""
    sys.stdout.buffer.write(text.encode())


def _words(text: str) -> str:
    """A docstring's line without its markup."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")


def _free_folder(name: str) -> Path:
    from lossworks.checks import InputError

    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:LONGEST_STEM] or "run"
    number = 1
    try:
        while (Path("runs") / f"{stem}-{number}").exists():
            number += 1
    except OSError as error:
        raise InputError(f"runs: cannot be read ({error.strerror}); choose another folder with --out") from error
    return Path("runs") / f"{stem}-{number}"


SESSION = {"data", "model", "budget", "engine", "address", "memory", "resume", "quiet", "as_json"}
"""What is of a call of its own, not of the run that it resumes; data and a model of one's own may be named again."""


def _leave_to_the_run(context: typer.Context) -> None:
    """Raise if an option is given that a resumed run has in its folder."""
    from lossworks.checks import InputError

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in SESSION:
            raise InputError(f"--resume takes the run's options from its folder: leave {parameter.opts[0]} out")


def _columns(given: list[str]) -> dict[str, str]:
    from lossworks.checks import InputError

    pairs = [pair.rpartition("=") for pair in given]
    for name, _, kind in pairs:
        if not name:
            raise InputError(f"--as must be NAME=category, NAME=number or NAME=date, got {kind!r}")
    return {name: kind for name, _, kind in pairs}


def _model(name: str) -> Any:
    """A built-in model's name, or the factory in the file that the user names: only then is a file's code run."""
    from lossworks.checks import InputError

    if ".py:" not in name:
        return name
    path, _, function = name.rpartition(":")
    try:
        if not Path(path).is_file():
            raise InputError(f"--model {name}: no such file {path}")
    except OSError as error:
        raise InputError(f"--model {name}: cannot be read ({error.strerror})") from error
    spec = importlib.util.spec_from_file_location("lossworks_user_model", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--model {name}: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"--model {name}: {path} fails when imported ({type(error).__name__}: {error})") from error
    if not callable(getattr(module, function, None)):
        raise InputError(f"--model {name}: {path} has no function {function!r}")
    return getattr(module, function)


@contextlib.contextmanager
def _told_to_resume(folder: Path) -> Iterator[None]:
    """Say how to go on with a run that the user stops before there is anything to report."""
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if not json.loads((folder / "run.json").read_text(encoding="utf-8"))["finished"]:
                _command(err, "resume", "compare", "--resume", str(folder))
        raise


@contextlib.contextmanager
def _watching(silent: bool) -> Iterator[Any]:
    """A live display of what is running, how many of how many, time left and best so far."""
    if silent:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Display

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

        def watch(progress: "Progress") -> None:
            if progress.note not in said:
                said.add(progress.note)
                display.print(_plain(progress.note))
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


def _tell(result: "Comparison", folder: Path) -> None:
    """The answer, the ranking and where everything lies."""
    out.print(_plain(f"\n{result.answer}\n"), style="bold")
    if result.partial:
        out.print(f"[yellow]Partial: {result.partial}.[/yellow]\n")
    out.print(_ranking(result, wide=out.width >= WIDE), crop=False)
    out.print()
    for finding in result.findings:
        colour = {"info": "dim", "notice": "default", "warning": "yellow"}[finding.level]
        out.print(_plain(f"- {finding.text}"), style=colour)
    out.print(_plain(f"\nreport   {folder}/report.html"), soft_wrap=True)
    _command(out, "predict", "predict", str(folder), "new.csv")
    if result.partial:
        _command(out, "resume", "compare", "--resume", str(folder))


def _command(screen: Console, what: str, *words: str) -> None:
    """Say a command that a shell takes as it stands."""
    screen.print(_plain(f"{what:<8} lossworks {shlex.join(words)}"), soft_wrap=True)


def _ranking(result: "Comparison", *, wide: bool) -> Table:
    """The ranking; a narrow screen has what decides, a wide one also the settings and the chances."""
    metric = result.plan.metric
    table = Table(box=None, pad_edge=False)
    also = [name for name in result.ranking.columns if name in EXTRA_HEADINGS or name.startswith("worst_group_")]
    also = [name for name in also if name != metric]
    p_value = wide or not also
    table.add_column("objective", overflow="fold", min_width=18)
    headings = [EXTRA_HEADINGS.get(name, "worst\ngroup") for name in also]
    for heading in (METRIC_HEADINGS.get(metric, metric), *headings, "difference", *(["adj. p"] if p_value else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("P(better)", "P(equal)", "P(worse)") if wide else ():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    if wide:
        table.add_column("setting")
    for row in result.ranking.to_dicts():
        reference = row["role"] == "reference"
        chances = [_number(row[key]) for key in ("p_better", "p_equal", "p_worse")]
        table.add_row(
            _plain(row["objective"]),
            _with_margin(row[metric], row["high"]),
            *(_number(row[name]) for name in also),
            "" if reference else _with_margin(row["difference"], row["difference_high"], sign=True),
            *([_number(row["p_adjusted"])] if p_value else []),
            *(chances if wide else ()),
            f"[{VERDICTS[row['verdict']]}]{row['verdict']}[/]",
            *((_plain(row["setting"]),) if wide else ()),
        )
    return table


def _with_margin(mean: float | None, high: float | None, *, sign: bool = False) -> str:
    """A mean with half of its 95 % interval."""
    margin = "" if mean is None or high is None else f" ± {_number(high - mean)}"
    return _number(mean, sign=sign) + margin


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None or value != value:
        return ""
    digits = ".3f" if abs(value) < 1000 else ".4g"
    return f"{value:{'+' if sign else ''}{digits}}"


if __name__ == "__main__":
    main()
