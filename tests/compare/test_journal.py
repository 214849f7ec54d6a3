import sqlite3

import pytest

from lossworks.compare.errors import InputError
from lossworks.compare.journal import Journal


def test_what_was_added_is_there_after_reopening_in_the_plan_s_order(tmp_path):
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, "plan")
    journal.add(2, [{"objective": "b", "value": 0.1}])
    journal.add(0, [{"objective": "a", "value": 1 / 3}])
    reopened = Journal(path, "plan")  # as after a kill: the first was never closed
    assert reopened.done() == {0, 2}
    assert reopened.replicas() == [{"objective": "a", "value": 1 / 3}, {"objective": "b", "value": 0.1}]


def test_a_journal_of_another_plan_is_refused(tmp_path):
    Journal(tmp_path / "journal.sqlite", "one").close()
    with pytest.raises(InputError, match="another plan"):
        Journal(tmp_path / "journal.sqlite", "other")


def test_a_journal_of_another_version_is_refused(tmp_path):
    path = tmp_path / "journal.sqlite"
    Journal(path, "plan").close()
    with sqlite3.connect(path) as store:
        store.execute("UPDATE meta SET value = '999' WHERE key = 'version'")
    with pytest.raises(InputError, match="version 999"):
        Journal(path, "plan")


def test_a_file_that_is_no_journal_is_named(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(InputError, match=r"journal\.sqlite: cannot use the journal"):
        Journal(path, "plan")


def test_without_a_path_it_is_kept_in_memory():
    journal = Journal(None, "plan")
    journal.add(0, [{"a": 1}])
    assert journal.replicas() == [{"a": 1}]
