"""A run's folder: ``run.json`` holds what was asked for, and the journal holds what has been trained so far.

These two suffice to resume a run. ``run.json`` holds plain values only: the data's path and digest, every option that
affects a number, and the software's versions. It never holds code, so the user must give code of their own again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossworks.checks import InputError, shown
from lossworks.runs.files import check_own, parse_json, synced, whole
from lossworks.runs.journal import Journal
from lossworks.runs.software import versions

__all__ = ["Options", "continued", "described", "finish", "opened"]

VERSION = 1
RUN, JOURNAL, MODEL = "run.json", "journal.sqlite", "model.json"
FIELDS: Mapping[str, type] = {"version": int, "software": dict, "data": dict, "options": dict, "finished": bool}


@dataclass(frozen=True)
class Options:
    """How the options of a job are kept in ``run.json``: as plain values; nothing else is read from it.

    Attributes:
        kinds: The types that ``run.json`` may hold for each option.
        plain: A function from an option's name and value to the value as JSON; the user's own code is kept by name
            only.
        is_plain: A function from an option's name and its value in ``run.json`` to whether :attr:`plain` could have
            made that value.
        again: A function from the folder, an option's name, its kept value, the value that the user gave again and the
            option's default to the option's value in the resumed run.
    """

    kinds: Mapping[str, tuple[type, ...]]
    plain: Callable[[str, Any], Any]
    is_plain: Callable[[str, Any], bool]
    again: Callable[[Path, str, Any, Any, Any], Any]


DATA: Mapping[str, dict[str, type]] = {
    "embedded": {"kind": str},
    "given": {"kind": str},
    "file": {"kind": str, "path": str, "sha256": str},
}


# The description of a run


def described(data: Any, given: Mapping[str, Any], device: str, options: Options) -> dict[str, Any]:
    """A run's data and options as ``run.json`` holds them; ``device`` is the device that was found."""
    return {
        "version": VERSION,
        "software": _software(),
        "data": _data(data),
        "options": {name: options.plain(name, value) for name, value in given.items()} | {"device": device},
        "finished": False,
    }


def _software() -> dict[str, str]:
    """The versions of the software that the numbers depend on."""
    return {name: version for name, version in versions().items() if name != "python"}


def _data(data: Any) -> dict[str, str]:
    if data is None:
        return {"kind": "embedded"}
    if not isinstance(data, (str, Path)):
        return {"kind": "given"}
    path = Path(data).expanduser().resolve()
    return {"kind": "file", "path": str(path), "sha256": _digest(path)}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


# Resuming a run


def continued(
    folder: Path, data: Any, given: Mapping[str, Any], defaults: Mapping[str, Any], options: Options
) -> tuple[Any, dict[str, Any]]:
    """The data and the options of a run that is to be resumed.

    Args:
        folder: The run's folder.
        data: The data as the user gave it again; needed if the run's data was no file.
        given: The options as the user gave them; they must include the user's own code and may include others.
        defaults: The values of options that were not given.
        options: How the options are kept in ``run.json``.

    Raises:
        InputError: there is no run to resume, the data has changed, or an option contradicts the run's.
    """
    run = _read(folder, options)
    if run is None:
        what = "no run was begun here" if folder.is_dir() else "there is no such run folder"
        raise InputError(f"{folder}: {what}: there is nothing to resume")
    if _is_finished(folder, run):
        report = folder / "report.html"
        raise InputError(f"{folder}: this run is finished, there is nothing to resume; its report is {report}")
    found = {
        name: options.again(folder, name, kept, given[name], defaults[name]) for name, kept in run["options"].items()
    }
    return _same_data(folder, run["data"], data), found


def _same_data(folder: Path, kept: Mapping[str, str], given: Any) -> Any:
    if kept["kind"] == "embedded":
        if given is not None:
            raise InputError(f"{folder}: the run is on the embedded data: leave the data out")
        return None
    if kept["kind"] == "given":
        if given is None or isinstance(given, (str, Path)):
            raise InputError(f"{folder}: the run's data was given from Python, as no file: give it again, as data=")
        return given
    if given is not None and not isinstance(given, (str, Path)):
        raise InputError(f"{folder}: the run's data is the file {kept['path']}: leave the data out")
    path = Path(kept["path"] if given is None else given)
    try:
        path = path.expanduser()
        there = path.is_file()
    except (OSError, RuntimeError):  # a name that is too long, or the home of an unknown user
        there = False
    if not there:
        raise InputError(f"{path} is no file, but the run in {folder} needs it: name it again if it has moved")
    if _digest(path) != kept["sha256"]:
        raise InputError(f"{path} has changed since the run in {folder} was begun: a run goes on with the same data")
    return path


def _read(folder: Path, options: Options) -> dict[str, Any] | None:
    """The content of ``run.json``, checked, or None if there is none; raise for another version or other software."""
    path = folder / RUN
    try:
        run = parse_json(check_own(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    version = run.get("version") if isinstance(run, dict) else None
    if version != VERSION:
        raise InputError(f"{path}: is of version {version}, this lossworks reads {VERSION}; choose another --out")
    _check(path, "", run, {name: (kind,) for name, kind in FIELDS.items()})
    _check(path, "options: ", run["options"], options.kinds)
    for name, value in run["options"].items():
        if not options.is_plain(name, value):
            raise InputError(f"{path}: options: {name} must be as a run writes it, of texts alone, got {shown(value)}")
    if {name: type(value) for name, value in run["data"].items()} != DATA.get(str(run["data"].get("kind"))):
        raise InputError(f"{path}: data: {run['data']!r} is not known to this lossworks")
    for name, here in _software().items():
        if run["software"].get(name) != here:
            raise InputError(
                f"{path}: the run was begun with {name} {run['software'].get(name)}, here is {here}, which may give "
                f"other numbers: go on with that version, or choose another --out"
            )
    return run


def _check(path: Path, where: str, found: Mapping[str, Any], known: Mapping[str, tuple[type, ...]]) -> None:
    """Raise unless there are exactly the known fields, each of its type."""
    if strange := sorted(set(found) ^ set(known)):
        lacks = "lacks" if strange[0] in known else "has the unknown"
        raise InputError(f"{path}: {where}{lacks} {strange[0]!r}")
    for name, kinds in known.items():
        if not isinstance(found[name], kinds) or (isinstance(found[name], bool) and bool not in kinds):
            raise InputError(f"{path}: {where}{name} must be of type {kinds[0].__name__}, got {found[name]!r}")


def _is_finished(folder: Path, run: Mapping[str, Any] | None) -> bool:
    return run is not None and run["finished"] and (folder / MODEL).exists()


# The folder while a run works in it


@contextlib.contextmanager
def opened(
    folder: Path | None, fingerprint: str, describe: Callable[[], dict[str, Any]], options: Options
) -> Iterator[Journal]:
    """Open the journal of the run folder, which is made if needed; if nothing was done, what was made is removed again.

    Args:
        folder: The run's folder; without one the journal is kept in memory.
        fingerprint: The plan's fingerprint.
        describe: A function that returns what ``run.json`` is to hold.
        options: How the job's options are kept in ``run.json``.

    Raises:
        InputError: the folder cannot be written, holds a finished run, a run of another plan, version or software, or a
            damaged journal, or another process works in it.
    """
    if folder is None:
        with contextlib.closing(Journal(None, fingerprint)) as journal:
            yield journal
        return
    run = _read(folder, options)
    unknown = run is None and (folder / MODEL).exists() and not (folder / JOURNAL).exists()
    if unknown or _is_finished(folder, run):
        raise InputError(f"{folder}: there is a finished run; choose another --out or remove it")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        _make(folder)
        with contextlib.closing(Journal(folder / JOURNAL, fingerprint, begun=run is not None)) as journal:
            try:
                _begin(folder, describe())
                yield journal
            except BaseException:
                if not journal.kept:
                    for leftover in (RUN, *(JOURNAL + end for end in ("", "-wal", "-shm", "-journal"))):
                        (folder / leftover).unlink(missing_ok=True)
                raise
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that is not empty stays, with all folders above it
            for empty in made:
                empty.rmdir()
        raise


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written; choose another --out")


def _begin(folder: Path, run: dict[str, Any]) -> None:
    """Write ``run.json``, and remove what a killed process left unfinished."""
    for leftover in folder.glob(".unfinished-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    _write(folder, run)


def _write(folder: Path, run: dict[str, Any]) -> None:
    with whole(folder / RUN) as unfinished:
        unfinished.write_text(json.dumps(run, indent=1), encoding="utf-8")
    synced(folder)


def finish(folder: Path, options: Options) -> None:
    """Record in ``run.json`` that the run is finished and all its results are written."""
    run = _read(folder, options)
    if run is None:
        raise InputError(f"{folder / RUN} is gone: was the folder moved while the run was at work?")
    _write(folder, run | {"finished": True})
