"""The journal: what is committed is there afterwards, and what is not as it was is said."""

import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from lossworks.checks import InputError
from lossworks.runs.journal import Journal

RESULTS = [{"objective": "a", "value": 1 / 3, "curve": [[number, 0.5] for number in range(50)]}]


@pytest.fixture
def path(tmp_path) -> Path:
    """A journal of three groups."""
    with closing(Journal(tmp_path / "journal.sqlite", "plan")) as journal:
        for number in range(3):
            journal.add(number, RESULTS)
    return tmp_path / "journal.sqlite"


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as store, store:
        store.execute(statement, values)


def test_what_was_added_is_there_after_reopening_in_the_plan_s_order(tmp_path):
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path, "plan")) as journal:
        journal.add(2, [{"objective": "b", "value": 0.1}])
        journal.add(0, [{"objective": "a", "value": 1 / 3}])
    with closing(Journal(path, "plan")) as reopened:
        assert reopened.done() == {0, 2}
        assert reopened.results() == [{"objective": "a", "value": 1 / 3}, {"objective": "b", "value": 0.1}]


def test_there_is_something_to_go_on_with_once_a_group_is_committed(tmp_path):
    with closing(Journal(tmp_path / "journal.sqlite", "plan")) as journal:
        assert not journal.kept
        journal.add(0, RESULTS)
        assert journal.kept
    with closing(Journal(tmp_path / "journal.sqlite", "plan")) as reopened:
        assert reopened.kept


def test_it_is_write_ahead_and_each_commit_is_flushed(tmp_path):
    with closing(Journal(tmp_path / "journal.sqlite", "plan")) as journal:
        assert journal._store.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert journal._store.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_without_a_path_it_is_kept_in_memory():
    journal = Journal(None, "plan")
    journal.add(0, [{"a": 1}])
    assert journal.results() == [{"a": 1}]


def test_a_journal_of_another_plan_is_refused(path):
    with pytest.raises(InputError, match="another plan"):
        Journal(path, "other")


def test_a_journal_of_another_version_is_refused(path):
    change(path, "UPDATE meta SET value = '1' WHERE key = 'version'")
    with pytest.raises(InputError, match="version 1, this lossworks reads 2"):
        Journal(path, "plan")


# One process at a time

ASK = """
import sys
from pathlib import Path
from lossworks.checks import InputError
from lossworks.runs.journal import Journal
for path in sys.stdin:
    try:
        print(len(Journal(Path(path.strip()), "plan").done()), flush=True)
    except InputError as error:
        print(error, flush=True)
"""


def test_a_second_process_is_refused_in_one_line_until_the_first_is_gone(path):
    second = subprocess.Popen([sys.executable, "-c", ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask() -> str:
        second.stdin.write(f"{path}\n")
        second.stdin.flush()
        return second.stdout.readline()

    with second, closing(Journal(path, "plan")) as journal:
        wanted = f"{path.parent}: another process is at work on this run; wait until it ends, or choose another --out\n"
        assert ask() == wanted
        with pytest.raises(InputError, match="another process is at work"):
            Journal(path, "plan")
        journal.add(3, RESULTS)
        journal.close()
        assert ask() == "4\n"
        with pytest.raises(InputError, match="another process is at work"):
            Journal(path, "plan")
        second.kill()
        second.wait()
        Journal(path, "plan").close()  # a lock ends with its process


# Damage


def no_sqlite(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 2 * 4096 + 100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage_in_a_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4096:] = b"\xa5" * 4096
    path.write_bytes(content)


def one_digit_in_a_result(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b"0.3333333333333333") == 3
    path.write_bytes(content.replace(b"0.3333333333333333", b"0.3333333333333334", 1))


def bad_json(path: Path) -> None:
    change(path, "UPDATE groups SET result = ? WHERE number = 1", '[{"objective": "a"')


def no_text(path: Path) -> None:
    change(path, "UPDATE groups SET result = ? WHERE number = 1", b"\xff\xfe")


def a_name_that_is_no_text(path: Path) -> None:
    """SQLite's message quotes the name as it is, which Python can't decode."""
    content = path.read_bytes()
    assert content.count(b"CREATE TABLE meta (key") == 1
    path.write_bytes(content.replace(b"CREATE TABLE meta (key", b"CREATE TABL\xff\xff\xff\xffta (key"))


def a_row_of_another_group(path: Path) -> None:
    change(path, "UPDATE groups SET number = 7 WHERE number = 1")


def a_table_dropped(path: Path) -> None:
    change(path, "DROP TABLE groups")


def a_trigger(path: Path) -> None:
    change(path, "CREATE TRIGGER t AFTER INSERT ON groups BEGIN DELETE FROM groups; END")


def a_view_for_a_table(path: Path) -> None:
    change(path, "ALTER TABLE groups RENAME TO others")
    change(path, "CREATE VIEW groups AS SELECT * FROM others")


def a_column_more(path: Path) -> None:
    change(path, "ALTER TABLE groups ADD COLUMN more TEXT")


DAMAGE = [no_sqlite, truncated, emptied, garbage_in_a_page, one_digit_in_a_result, bad_json, no_text]
DAMAGE += [a_name_that_is_no_text, a_row_of_another_group, a_table_dropped, a_trigger]
DAMAGE += [a_view_for_a_table, a_column_more]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_journal_is_said_in_one_line_and_left_as_it_is(damage, path):
    damage(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="the journal is damaged") as caught:
        Journal(path, "plan", begun=True)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


# A full disk


def test_a_database_that_may_not_grow_is_said_and_keeps_what_was_committed(path):
    with closing(Journal(path, "plan")) as journal:
        pages = journal._store.execute("PRAGMA page_count").fetchone()[0]
        journal._store.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(InputError, match=r"database or disk is full.*what was committed is kept.*--resume"):
            journal.add(3, RESULTS * 100)
        assert journal.done() == {0, 1, 2}
    with closing(Journal(path, "plan")) as journal:
        assert journal.results() == RESULTS * 3


def test_of_a_full_disk_before_anything_is_committed_the_advice_can_be_followed(tmp_path):
    with closing(Journal(tmp_path / "journal.sqlite", "plan")) as journal:
        pages = journal._store.execute("PRAGMA page_count").fetchone()[0]
        journal._store.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(InputError, match="make room on the disk and start again") as caught:
            journal.add(0, RESULTS * 100)
    assert "--resume" not in str(caught.value)


def fill(journal: Journal) -> None:
    for number in range(3, 1000):
        journal.add(number, [{"text": "x" * 5000}])


def test_a_file_that_may_not_grow_is_said_and_keeps_what_was_committed(path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(Journal(path, "plan")) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
        try:
            with pytest.raises(InputError, match=r"cannot be written \(disk I/O error\); what was committed is kept"):
                fill(journal)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        committed = journal.done()
    assert len(committed) > 4
    with closing(Journal(path, "plan")) as journal:
        assert journal.done() == committed == set(range(len(committed)))
        assert journal.results()[-1] == {"text": "x" * 5000}
