import re

from command_line import FAST
from rich.console import Console

from lossworks.cli.progress import watching
from lossworks.comparison import Progress


def test_a_terminal_shows_what_is_running_and_the_best_so_far(cli, csv, monkeypatch):
    monkeypatch.setattr("lossworks.cli.progress.err", Console(stderr=True, force_terminal=True, width=120))
    result = cli("compare", csv, "--target", "churn", *FAST)
    assert result.code == 0
    for shown in ("FocalLoss", "best so far", "/10"):
        assert shown in result.err
    assert "best so far" not in result.out


def test_what_is_running_is_named_as_it_is(monkeypatch, capsys):
    monkeypatch.setattr("lossworks.cli.progress.err", Console(stderr=True, force_terminal=True, width=120))
    with watching(silent=False) as watch:
        watch(Progress(running=":dog: [b]x", done=1, total=2, share=0.5, seconds_left=None, best=":cat: [b]y"))
    shown = capsys.readouterr().err
    assert ":dog: [b]x" in shown
    assert ":cat: [b]y" in shown


def test_a_silent_run_is_watched_by_nobody(capsys):
    with watching(silent=True) as watch:
        assert watch is None
    assert capsys.readouterr() == ("", "")


def test_long_names_hide_neither_the_count_nor_the_time_nor_the_best_score(monkeypatch, capsys):
    monkeypatch.setattr("lossworks.cli.progress.err", Console(stderr=True, force_terminal=True, width=80))
    name = "AsymmetricGeneralizedCrossEntropyLoss+ClassBalanced"
    with watching(silent=False) as watch:
        watch(Progress(running=name, done=1234, total=9999, share=0.5, seconds_left=45296, best=f"{name} 0.721"))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    for told in ("AsymmetricGeneralized", "1234/9999", "12:34:56 left", f"best so far {name} 0.721"):
        assert told in shown
    assert max(map(len, re.split(r"[\r\n]", shown))) <= 80
