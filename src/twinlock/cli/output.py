"""What commands print: JSON for programs, tables and progress for people, plain text for files and pipes.

A command makes one `Output`, and ends with `show(data, ...)`: with `--json` the data goes to standard output
as one object `{"version": 1, ...}`, otherwise the texts and tables do. Warnings and progress go to standard
error. Colour only on a terminal, and not with NO_COLOR. Text from devices and servers never reaches a
terminal with control characters in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

from twinlock.cli.text import JSON_VERSION as JSON_VERSION
from twinlock.cli.text import clean as clean
from twinlock.cli.text import error_text as error_text
from twinlock.cli.text import json_text as json_text
from twinlock.cli.text import size_text as size_text

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]


class OutputClosedError(Exception):
    """Whoever read the output closed it; nothing more can be said to them."""


@contextmanager
def _closing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as problem:
        raise OutputClosedError from problem


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under column titles."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    empty: str = "nothing to list"

    def plain(self) -> str:
        """Aligned columns, nothing cut, for files and pipes."""
        if not self.rows:
            return self.empty
        lines = [tuple(self.columns), *(tuple(clean(cell) for cell in row) for row in self.rows)]
        widths = [max(len(line[number]) for line in lines) for number in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


class Output:
    """Where one command's results go. `as_json` is the command's `--json`."""

    def __init__(
        self, as_json: bool = False, *, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.as_json: Final = as_json
        self._stdout: Final = stdout or sys.stdout
        self._stderr: Final = stderr or sys.stderr

    def show(self, data: Mapping[str, Any], *parts: str | Table) -> None:
        """The command's result: `data` with --json, else `parts` one after the other."""
        if self.as_json:
            self._write(json_text(data))
            return
        for part in parts:
            self._print(part)

    def note(self, text: str) -> None:
        """A sentence for people while the command works; nothing with --json."""
        if not self.as_json:
            self._print(text)

    def warn(self, text: str) -> None:
        """Something the user should know though the command goes on; standard error."""
        line = json_text({"warning": text}) if self.as_json else f"warning: {clean(text)}"
        self._stderr.write(line + "\n")
        self._stderr.flush()

    def _print(self, part: str | Table) -> None:
        if isinstance(part, Table) and part.rows and self._stdout.isatty():
            with _closing():
                self._print_rich(part)
            return
        self._write(part.plain() if isinstance(part, Table) else "\n".join(map(clean, part.split("\n"))))

    def _write(self, line: str) -> None:
        with _closing():
            self._stdout.write(line + "\n")
            self._stdout.flush()

    def _print_rich(self, part: Table) -> None:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=part.title or None, box=box.SIMPLE_HEAD, title_justify="left")
        for column in part.columns:
            table.add_column(column, overflow="fold")
        for row in part.rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        console(self._stdout).print(table)

    @contextmanager
    def progress(self, label: str, total_bytes: int) -> Iterator[Advance]:
        """A bar on a terminal's standard error; the caller tells each number of bytes that is done."""
        if self.as_json or not self._stderr.isatty():
            yield lambda size_bytes: None
            return
        from rich import progress as rich

        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.DownloadColumn(binary_units=True),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(),
        )
        with rich.Progress(*columns, console=console(self._stderr), transient=True) as bars:
            task = bars.add_task(clean(label), total=total_bytes)
            yield lambda size_bytes: bars.advance(task, size_bytes)

    @contextmanager
    def steps(self, label: str, total: int) -> Iterator[Advance]:
        """The same for things that are counted."""
        if self.as_json or not self._stderr.isatty():
            yield lambda count: None
            return
        from rich import progress as rich

        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
        )
        with rich.Progress(*columns, console=console(self._stderr), transient=True) as bars:
            task = bars.add_task(clean(label), total=total)
            yield lambda count: bars.advance(task, count)


def console(file: TextIO) -> Console:
    """A Rich console on `file`: no markup in texts, no colour with NO_COLOR or off a terminal."""
    from rich.console import Console

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            raise OutputClosedError

    return OurConsole(file=file, markup=False, highlight=False, no_color="NO_COLOR" in os.environ or None)


def _json_option() -> Any:
    import typer

    return typer.Option("--json", help="Print one JSON object instead of text.")


JsonOption = Annotated[bool, _json_option()]
