"""The serial console of a virtual device: everything it printed, and waiting for what it should print."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, BinaryIO, Final

from twinlock.core.limits import MIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHOWN_BYTES_MAX: Final = 16 * MIB
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def plain(text: str) -> str:
    """`text` without terminal control sequences and carriage returns: firmware and GRUB print many."""
    return _CONTROL.sub("", text)


class Console:
    """Reads the console in a thread, into memory and a log file; at most 16 MiB are kept."""

    def __init__(self, source: BinaryIO, log: Path) -> None:
        self._source = source
        self._log = log.open("ab")
        self._text = bytearray()
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="console", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while data := self._source.read1(65536):  # type: ignore[attr-defined]  # a pipe's BufferedReader
            with self._changed:
                if len(self._text) < SHOWN_BYTES_MAX:
                    self._text += data
                    self._log.write(data)
                    self._log.flush()
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._log.close()
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether the machine has closed its console."""
        with self._changed:
            return self._ended

    def text(self, since: int = 0) -> str:
        """What was printed from byte `since` on, as plain text."""
        with self._changed:
            return plain(self._text[since:].decode("utf-8", "replace"))

    def position(self) -> int:
        """How many bytes were printed so far: a `since` for later."""
        with self._changed:
            return len(self._text)

    def wait(self, pattern: re.Pattern[str], since: int, give_up: Callable[[], bool]) -> re.Match[str] | None:
        """The first match after byte `since`; None when the console ended or `give_up` says so without one.

        `give_up` is asked whenever something was printed, and a few times a second.
        """
        while True:
            with self._changed:
                ended = self._ended
                text = plain(self._text[since:].decode("utf-8", "replace"))
                if (match := pattern.search(text)) is not None:
                    return match
                if ended or give_up():
                    return None
                self._changed.wait(0.2)

    def join(self) -> None:
        """Waits until everything that was printed is here; call it after the machine has ended."""
        self._reader.join()
