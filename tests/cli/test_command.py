"""Where the command starts: what it imports before it says something, and Ctrl-C meanwhile."""

import subprocess
import sys

import pytest

STARTED = """
import atexit, os, signal, sys

class Watching:
    def find_spec(self, name, *_):
        if name == {interrupted!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Watching())
atexit.register(lambda: print("trains:", "lossworks.comparison" in sys.modules))
sys.argv[1:] = {arguments!r}
import lossworks_command
lossworks_command.main()
"""


def started(arguments, interrupted=""):
    """The command in a process of its own, which says at its end whether it imported what trains."""
    code = STARTED.format(arguments=arguments, interrupted=interrupted)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["claims"], ["show", "LDRLoss"]])
def test_what_only_reads_imports_nothing_that_trains(arguments):
    ran = started(arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[-1] == "trains: False"


def test_what_trains_is_imported_for_the_other_commands():
    ran = started(["compare", "nowhere.csv", "--target", "y"])
    assert ran.returncode == 2
    assert ran.stdout == "trains: True\n"


@pytest.mark.parametrize(
    ("arguments", "interrupted"),
    [
        (["show", "LDRLoss"], "lossworks.cli"),
        (["show", "LDRLoss"], "lossworks.losses"),
        (["compare", "nowhere.csv"], "lossworks.comparison"),
    ],
)
def test_ctrl_c_is_one_line_whatever_is_being_imported(arguments, interrupted):
    ran = started(arguments, interrupted)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "stopped\n")
