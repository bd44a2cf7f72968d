"""How the demo tells its story on a terminal, in a pipe, and to programs."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from twinlock.cli import demo
from twinlock.cli.output import Output
from twinlock.lab.demo import story
from twinlock.lab.demo.scene import Row

LONG = "one thing that was found out, which takes more than a line to tell because it is told at length"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def tell(output: Output) -> None:
    terminal = demo.Terminal(output)
    terminal.begin(2, "Do it")
    terminal.fact(LONG)
    terminal.fact("from a device: \x1b[31mred\r\n")
    terminal.done(f"Did {LONG}.", 12.34)


def test_on_a_terminal_lines_fit_and_nobody_else_s_escapes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    narrow = Console(file=shown, force_terminal=True, width=60, markup=False, highlight=False)
    monkeypatch.setattr(demo, "console", lambda file: narrow)
    tell(Output(False, stdout=shown))
    text = shown.getvalue()
    assert "\x1b[31m" not in text
    lines = ESCAPES.sub("", text).split("\n")
    assert max(map(len, lines)) < 60
    assert lines[1] == " 2/7  Do it ..."
    assert lines[-2].endswith("(12.3 s)")


def test_in_a_pipe_it_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(demo, "console", lambda file: Console(file=shown, width=60))
    tell(Output(False, stdout=shown))
    assert "\x1b" not in shown.getvalue()
    assert max(map(len, shown.getvalue().split("\n"))) <= demo.WIDTH_MAX


def test_programs_hear_nothing_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(demo, "console", lambda file: Console(file=shown, force_terminal=True))
    tell(Output(True, stdout=shown))
    assert shown.getvalue() == ""


def test_the_result_for_programs() -> None:
    row = Row("1.1", "succeeded", 5, 1.23456, "healthy, committed")
    told = story.Told(1, "Title", "Sentence.", 0.12345)
    data = story.as_data(story.Ended((told,), (row,), "http://127.0.0.1:1", "http://127.0.0.1:1/login/x"))
    assert data["steps"] == [{"number": 1, "title": "Title", "sentence": "Sentence.", "seconds": 0.123}]
    assert data["releases"][0]["seconds"] == 1.235
    assert data["ok"] is True
