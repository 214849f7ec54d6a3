import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console

import lossworks_command
from lossworks.cli.app import GROUPS, app


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("arguments", [["predict", "{0}/run", "{0}/customers.csv"], ["list"], ["--help"]])
def test_an_output_that_is_full_or_closed_is_one_line(cli, finished, monkeypatch, arguments):
    arguments = [argument.format(finished) for argument in arguments]
    monkeypatch.setattr("lossworks.cli.list.out", Console())  # which keeps what it could not write
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        result = cli(*arguments)
    assert (result.code, result.one_line()) == (1, "error: the standard output: No space left on device\n")
    monkeypatch.setattr(sys, "stdout", None)
    result = cli(*arguments)
    assert (result.code, result.one_line()) == (1, "error: the standard output: it is closed\n")


@pytest.mark.parametrize("arguments", [["predict", "{0}/run", "{0}/customers.csv"], ["list"]])
def test_a_reader_who_has_enough_is_no_error(cli, finished, monkeypatch, arguments):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr("lossworks.cli.list.out", Console())  # which goes quiet
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        result = cli(*(argument.format(finished) for argument in arguments))
    assert result.err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "LDRLos"], "did you mean 'LDRLoss'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["compare", "--nonsense"], "No such option: --nonsense"),
        (["compare", "--folds", "two"], "--folds"),
    ],
)
def test_bad_commands_are_one_line(cli, arguments, says):
    result = cli(*arguments)
    assert result.code == 2
    assert says in result.one_line()


def test_help_is_no_error(cli):
    result = cli("--help")
    assert result.code == 0
    assert "compare" in result.out


def test_ctrl_c_is_no_traceback(cli, csv, monkeypatch):
    monkeypatch.setattr("lossworks.comparison.compare", interrupted)
    result = cli("compare", csv, "--target", "churn")
    assert (result.code, result.err) == (130, "stopped\n")


def test_ctrl_c_is_heard_while_the_library_is_imported():
    code = """
import os, signal, sys

class Impatient:
    def find_spec(self, name, *_):
        if name == "lossworks":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Impatient())
import lossworks_command
lossworks_command.main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "stopped\n")


def test_another_ctrl_c_is_no_traceback(monkeypatch, capfd):
    def ended(code):
        raise SystemExit(code)

    monkeypatch.setattr("sys.argv", ["lossworks", "compare"])
    monkeypatch.setattr("lossworks.cli.main", interrupted)
    monkeypatch.setattr(os, "_exit", ended)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit, match="130"):
            lossworks_command.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "stopped\n"


def test_the_installed_command_ends_with_one_line_and_exit_code_2(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "lossworks.cli", "compare", "nowhere.csv", "--target", "y"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: nowhere.csv does not exist: check its name\n"
    assert list(tmp_path.iterdir()) == []


def test_help_has_the_commands_in_groups_of_what_a_person_wants(cli):
    printed = cli("--help").out
    groups = re.findall(r"^╭─ (\w+) ─", printed, re.MULTILINE)
    assert groups == ["Options", "Decide", "Use", "Learn"]
    listed = re.findall(r"^│ ([a-z]\w*) ", printed, re.MULTILINE)
    assert listed == ["compare", "predict", "attack", "find", "show", "list", "claims"]
    assert list(GROUPS) == ["Decide", "Use", "Data", "Model", "Learn"]


def test_json_and_quiet_mean_the_same_in_every_command_that_answers():
    commands = typer.main.get_command(app).commands
    options = {name: {o: p for p in command.params for o in p.opts} for name, command in commands.items()}
    del options["predict"]  # it prints CSV
    for option in ("--json", "--quiet"):
        assert len({(own[option].help, own[option].default, own[option].is_flag) for own in options.values()}) == 1


@pytest.mark.parametrize("command", [name for commands in GROUPS.values() for name in commands])
def test_the_help_of_a_command_fits_the_screen_and_every_option_says_what_it_is(cli, command):
    result = cli(command, "--help")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    for parameter in typer.main.get_command(app).commands[command].params:
        assert parameter.help.endswith(".")


def test_the_command_line_starts_without_what_only_a_comparison_needs():
    code = "import sys, lossworks.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = ("polars", "sklearn", "scipy", "pyarrow", "lossworks.comparison", "lossworks.losses", "lossworks.runs")
    assert not [name for name in done.stdout.split() if name.startswith(heavy)]
