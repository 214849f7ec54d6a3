"""The journal: finished units are committed one by one to SQLite, so a run that stops keeps what it finished."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lossworks.checks import InputError
from lossworks.runs.files import check_own, parse_json
from lossworks.runs.units import Results

VERSION = 2
MADE = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "groups": "CREATE TABLE groups (number INTEGER PRIMARY KEY, result TEXT, digest TEXT)",
}
"""The tables and the statements that make them; a journal may have nothing else, such as a trigger."""
FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
CLOSED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


class Journal:
    """The results of a run's units, by the units' numbers; kept in memory if there is no path.

    While the file is open, the operating system locks it for this process alone; the lock ends with the process,
    however that ends. When :meth:`add` returns, a commit is in the write-ahead log and flushed to the disk
    (``synchronous = FULL``), so it survives a killed process, and also a loss of power if the disk keeps what it has
    flushed. Each row has a digest, which finds damage that SQLite does not see.

    Args:
        path: The SQLite file, made if it does not exist.
        fingerprint: The plan's fingerprint; a journal of another plan is refused.
        begun: Whether the file must exist already and not be empty.

    Attributes:
        kept: Whether there is something to resume: the file existed before, or a unit has been committed.

    Raises:
        InputError: the file is not a journal, is damaged, in use, or of another version or plan, or cannot be written.
    """

    def __init__(self, path: Path | None, fingerprint: str, *, begun: bool = False) -> None:
        self.path, self._fingerprint, self.kept = path, fingerprint, begun
        self._parsed: dict[str, Results] = {}
        if path is not None:
            check_own(path)
        if begun and path is not None and not (path.is_file() and path.stat().st_size):
            raise self._damaged("it is empty or gone")
        with self._explained():
            self._store = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=0)
        try:
            with self._explained():
                self._open(begun)
        except BaseException:
            self._store.close()
            raise

    def _open(self, begun: bool) -> None:
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            self._store.execute(f"PRAGMA {pragma}")
        self._store.execute("BEGIN IMMEDIATE")
        new = not self._store.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if new and begun:
            raise self._damaged("it is empty or gone")
        if new:
            for statement in MADE.values():
                self._store.execute(statement)
            meta = {"version": str(VERSION), "plan": self._fingerprint}
            self._store.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        self._store.execute("COMMIT")
        self.kept = not new
        if not new:
            self._check()

    def _check(self) -> None:
        tables = [("table", name, name, statement) for name, statement in MADE.items()]
        made = {*tables, ("index", "sqlite_autoindex_meta_1", "meta", None)}
        if set(self._store.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")) != made:
            raise self._damaged("it has other tables than a run makes, or more than tables")
        found = self._store.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._damaged(found)
        meta = dict(self._store.execute("SELECT key, value FROM meta"))
        if meta.get("version") != str(VERSION):
            raise InputError(
                f"{self.path}: the journal is of version {meta.get('version')}, this lossworks reads {VERSION}; "
                f"choose another --out"
            )
        if meta.get("plan") != self._fingerprint:
            raise InputError(
                f"{self.path}: the journal is of another plan (other data, options or seed); choose another --out"
            )
        self.results()

    def add(self, number: int, results: Results) -> None:
        """Commit a unit's results."""
        text = json.dumps(results)
        with self._explained():
            row = (number, text, self._digest(number, text))
            self._store.execute("INSERT OR REPLACE INTO groups VALUES (?, ?, ?)", row)
        self.kept = True

    def done(self) -> set[int]:
        """The numbers of the units that are committed."""
        with self._explained():
            return {number for (number,) in self._store.execute("SELECT number FROM groups")}

    def results(self) -> Results:
        """The results of every committed unit, in the order of the units' numbers."""
        with self._explained():
            rows = self._store.execute("SELECT number, result, digest FROM groups ORDER BY number").fetchall()
        results: Results = []
        for number, text, digest in rows:
            if digest != self._digest(number, text):
                raise self._damaged(f"the results of unit {number} are not those that were committed")
            try:
                if digest not in self._parsed:
                    self._parsed[digest] = read_results(text)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                raise self._damaged(str(error)) from error
            results += self._parsed[digest]
        return results

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def _digest(self, number: int, text: object) -> str:
        return hashlib.sha256(f"{self._fingerprint} {number} {text}".encode(errors="replace")).hexdigest()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from error
        except UnicodeDecodeError as error:  # SQLite's own message quotes the damaged text
            raise self._damaged("a name in it is no text") from error

    def _error(self, error: sqlite3.Error) -> InputError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if self.path is None:
            return InputError(f"journal: cannot be kept in memory ({error})")
        folder = self.path.parent
        if code == sqlite3.SQLITE_BUSY:
            return InputError(
                f"{folder}: another process is at work on this run; wait until it ends, or choose another --out"
            )
        if code in FULL:
            room = "make room on the disk"
            way = f"what was committed is kept: {room}, then go on with --resume {folder}"
            return InputError(
                f"{self.path}: cannot be written ({error}); {way if self.kept else f'{room} and start again'}"
            )
        if code in CLOSED:
            return InputError(f"{self.path}: cannot be written ({error}); choose another --out")
        return self._damaged(str(error))

    def _damaged(self, reason: str) -> InputError:
        reason = " ".join(reason.split())
        return InputError(
            f"{self.path}: the journal is damaged ({reason}); it was left as it is: restore it from a copy, or choose "
            f"another --out"
        )


def read_results(text: str) -> Results:
    """Parse the results of one unit.

    Raises:
        ValueError: the text is no list of results; the message says why, in one line.
    """
    found = parse_json(text, nan=True)
    if not isinstance(found, list) or not all(isinstance(result, dict) for result in found):
        raise ValueError("a unit must have a list of results")
    return found
