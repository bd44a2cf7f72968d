"""`twinlock demo`: a whole update on this machine, from image to rollback, checked at every step."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from twinlock.cli.api import Api
from twinlock.cli.ending import ended_by_signals
from twinlock.cli.output import JsonOption, Output, Table, clean, console, size_text
from twinlock.core.limits import MIB
from twinlock.lab import images
from twinlock.lab.demo import story

app: Final = typer.Typer()

ONCE_VARIABLE: Final = "DEMO_ONCE"
WIDTH_MAX: Final = 100
_INDENT: Final = "      "
_UNBROKEN: Final = "\x1f"  # stands for a space at which no line may end


class Terminal:
    """Tells the story to people: a sentence per step, facts under it, bars while something takes time."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._console = console(sys.stdout)
        # one column less than the terminal has, so that no line wraps by itself
        self._width = min(WIDTH_MAX, self._console.width - 1) if self._console.is_terminal else WIDTH_MAX

    def begin(self, number: int, title: str) -> None:
        self._say(f"\n {number}/{len(story.STEPS)}  {title} ...", "bold")

    @contextmanager
    def bar(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        with self._output.progress(f"{_INDENT}{label}", total_bytes) as advance:
            yield advance

    def fact(self, text: str) -> None:
        self._say(self._wrapped(f"- {clean(text)}", f"{_INDENT}", f"{_INDENT}  "), "dim")

    def done(self, sentence: str, seconds: float) -> None:
        took = f"({seconds:.1f} s)".replace(" ", _UNBROKEN)
        text = self._wrapped(f"{clean(sentence)} {took}", _INDENT, _INDENT)
        self._say(text.replace(_UNBROKEN, " "), "green")

    def _wrapped(self, text: str, first: str, rest: str) -> str:
        return textwrap.fill(
            text, self._width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
        )

    def _say(self, text: str, style: str) -> None:
        if self._console.is_terminal and not self._output.as_json:
            self._console.print(Text(text, style=style), soft_wrap=True)
        else:
            self._output.note(text)


@app.callback(invoke_without_command=True)
def demo(
    once: Annotated[
        bool,
        typer.Option("--once", help=f"End after the last step instead of serving on; {ONCE_VARIABLE}=1 too."),
    ] = False,
    folder: Annotated[
        Path,
        typer.Option("--folder", metavar="DIR", help="Where everything goes; cleared when a demo begins."),
    ] = Path(".demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the files there at the end.")] = False,
    image_mib: Annotated[
        int, typer.Option("--image-size", min=8, max=1024, metavar="MIB", help="Size of each image.")
    ] = images.SIZE_BYTES // MIB,
    as_json: JsonOption = False,
) -> None:
    """Show a whole update on this machine: pack, sign, publish, install, boot, commit, roll back, refuse.

    Everything runs for real, as processes of this user: the server, the agent, a device that is a disk file.
    No root and no service is needed. At the end the server goes on, so that you can look at its page.
    """
    output = Output(as_json)
    once = once or os.environ.get(ONCE_VARIABLE, "") not in ("", "0")
    folder = folder.absolute()
    output.note(f"Twinlock, from image to rollback, in {len(story.STEPS)} steps. Everything is in {folder}")
    with ended_by_signals():
        with story.tell(folder, Terminal(output), Api, image_size_bytes=image_mib * MIB) as ended:
            if not once:
                output.note(f"\nThe server goes on, its page is at {ended.server}/ (Ctrl-C ends it).")
            output.show(story.as_data(ended), "", _table(ended), "", "demo: ok")
            if not once:
                _wait_for_interrupt()
        if not keep:
            story.clear(folder)
            folder.rmdir()


def _table(ended: story.Ended) -> Table:
    rows = [
        [row.release, row.outcome, size_text(row.bytes_fetched), f"{row.seconds:.1f}", row.reason]
        for row in ended.rows
    ]
    return Table(["release", "outcome", "fetched", "seconds", "reason"], rows)


def _wait_for_interrupt() -> None:
    """Returns when the user has seen enough."""
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return
