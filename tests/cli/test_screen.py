import io
import shlex
import sys

import pytest
from command_line import FAST

from lossworks.cli.screen import number, out, plain, say_command, say_item


def test_a_command_that_is_printed_is_one_that_a_shell_takes(capsys):
    words = ["predict", "my 'runs'/[b] $1", "new.csv"]
    say_command(out, "predict", *words)
    assert shlex.split(capsys.readouterr().out) == ["predict", "lossworks", *words]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_screen_of_another_encoding_shows_what_it_can(cli, csv, monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", screen := io.TextIOWrapper(io.BytesIO(), encoding))
    assert cli("compare", csv, "--target", "churn", *FAST).code == 0
    assert {"ascii": b"\\xb1", "latin-1": b"\xb1"}[encoding] in screen.buffer.getvalue()


def test_a_screen_without_width_shows_all(cli, monkeypatch):
    monkeypatch.setattr(out, "width", 0)
    assert "TemperatureScaling" in cli("list").out


def test_text_is_printed_as_it_is(capsys):
    for text in ("[b]x[/b]", ":dog:", "ends in\\", "ends in\\\\"):
        out.print(plain(text), plain("more"))
        assert capsys.readouterr().out == f"{text} more\n"
    out.print(":dog:")
    assert capsys.readouterr().out == ":dog:\n"


def test_further_lines_of_an_item_stand_below_its_first_word_and_no_word_is_broken(capsys, monkeypatch):
    monkeypatch.setattr(out, "width", 80)
    text = " ".join(f"word{number}" for number in range(30))
    say_item(text, style="default")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert [line[:2] for line in lines] == ["- ", *["  "] * (len(lines) - 1)]
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(line[2:] for line in lines).split()) == text


@pytest.mark.parametrize(
    ("value", "sign", "said"),
    [
        (0.12345, False, "0.123"),
        (0.12345, True, "+0.123"),
        (-0.5, True, "-0.500"),
        (999.9994, False, "999.999"),
        (1000.0, False, "1000"),
        (12345.6, False, "1.235e+04"),
        (123456.0, True, "+1.23e+05"),
        (None, True, ""),
        (float("nan"), False, ""),
    ],
)
def test_numbers_have_three_decimals_or_four_digits(value, sign, said):
    assert number(value, sign=sign) == said
