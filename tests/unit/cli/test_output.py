"""Output: JSON for programs, text for pipes, tables and bars for terminals, and no control characters."""

from __future__ import annotations

import io
import json

import pytest

from twinlock.cli.output import Output, OutputClosedError, Table, size_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


EVIL = "a\x1b]0;owned\x07b\r\nc\u202ed\x9be"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (64 << 20, "64.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (5000 << 30, "5000.0 GiB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


def test_json_is_one_object_with_its_version() -> None:
    out = io.StringIO()
    Output(True, stdout=out).show({"hash": b"\x01\xff", "rows": [{"x": b"\x02"}], "pair": (1, None)}, "text")
    assert json.loads(out.getvalue()) == {
        "version": 1,
        "hash": "01ff",
        "rows": [{"x": "02"}],
        "pair": [1, None],
    }
    assert out.getvalue().count("\n") == 1


def test_a_field_cannot_take_the_versions_place() -> None:
    with pytest.raises(AssertionError):
        Output(True, stdout=io.StringIO()).show({"version": "1.1"})


def test_text_in_a_pipe_is_plain_and_nothing_is_cut() -> None:
    out = io.StringIO()
    table = Table(["name", "value"], [["x" * 200, "1"], ["b", "[bold]2[/bold]"]])
    Output(stdout=out).show({}, "first\nsecond", table, Table(["a"], [], empty="none"))
    assert out.getvalue() == (
        f"first\nsecond\nname{' ' * 196}  value\n{'x' * 200}  1\nb{' ' * 199}  [bold]2[/bold]\nnone\n"
    )


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_control_characters_never_reach_a_terminal(stream: type[io.StringIO]) -> None:
    out, err = stream(), stream()
    output = Output(stdout=out, stderr=err)
    output.show({}, EVIL, Table(["x"], [[EVIL]]))
    output.note(EVIL)
    output.warn(EVIL)
    written = (out.getvalue() + err.getvalue()).replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert [char for char in written if not char.isprintable() and char != "\n"] == []


def test_a_terminal_gets_a_table_and_colour_only_if_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colour, plain = Terminal(), Terminal()
    Output(stdout=colour).show({}, Table(["name"], [["[red]x[/red]"]], title="T"))
    assert "[red]x[/red]" in colour.getvalue()  # markup in data is text
    assert "─" in colour.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    Output(stdout=plain).show({}, Table(["name"], [["x"]]))
    assert "\x1b[3" not in plain.getvalue()


def test_notes_are_for_people_warnings_for_both() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(True, stdout=out, stderr=err)
    output.note("working")
    output.warn("careful")
    assert out.getvalue() == ""
    assert json.loads(err.getvalue()) == {"version": 1, "warning": "careful"}


def test_progress_is_drawn_on_a_terminal_only() -> None:
    for err, as_json, drawn in [
        (Terminal(), False, True),
        (io.StringIO(), False, False),
        (Terminal(), True, False),
    ]:
        with Output(as_json, stderr=err).progress("packing", 100) as advance:
            advance(60)
            advance(40)
        assert ("packing" in err.getvalue()) is drawn


def test_whoever_closed_the_output_is_told_nothing_more() -> None:
    class Closed(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for part in ("text", Table(["x"], [["y"]])):
        with pytest.raises(OutputClosedError):
            Output(stdout=Closed()).show({}, part)
    with pytest.raises(OutputClosedError):
        Output(True, stdout=Closed()).show({})
