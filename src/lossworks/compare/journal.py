"""What has been trained, committed group by group to SQLite: a run that stops keeps what it finished."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lossworks.compare.errors import InputError

VERSION = 1


class Journal:
    """The results of a run's groups, by group number; in memory without a path.

    Args:
        path: The SQLite file, made if it is not there.
        fingerprint: The plan's; a journal of another plan is refused.

    Raises:
        InputError: the file is not a journal, is one of another version or plan, or cannot be written.
    """

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self.path = path
        with self._explained():
            self._store = sqlite3.connect(path or ":memory:", isolation_level=None)
            self._store.execute("PRAGMA journal_mode = WAL")
            self._store.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._store.execute("CREATE TABLE IF NOT EXISTS groups (number INTEGER PRIMARY KEY, result TEXT NOT NULL)")
            for key, value in (("version", str(VERSION)), ("plan", fingerprint)):
                self._store.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
            meta = dict(self._store.execute("SELECT key, value FROM meta"))
        if meta["version"] != str(VERSION):
            raise InputError(f"{path}: the journal is of version {meta['version']}, this lossworks reads {VERSION}")
        if meta["plan"] != fingerprint:
            raise InputError(
                f"{path}: the journal is of another plan (other data, options or seed); choose another --out"
            )

    def add(self, number: int, replicas: list[dict[str, Any]]) -> None:
        """Commit a group's results."""
        with self._explained():
            self._store.execute("INSERT OR REPLACE INTO groups VALUES (?, ?)", (number, json.dumps(replicas)))

    def done(self) -> set[int]:
        """The numbers of the groups that are committed."""
        with self._explained():
            return {number for (number,) in self._store.execute("SELECT number FROM groups")}

    def replicas(self) -> list[dict[str, Any]]:
        """The results of every committed replica, in the plan's order."""
        with self._explained():
            rows = self._store.execute("SELECT result FROM groups ORDER BY number").fetchall()
        return [replica for (text,) in rows for replica in json.loads(text)]

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(f"{self.path or 'journal'}: cannot use the journal ({error})") from error
