"""What a person on a terminal, or another program, sees of the agent's work. Is a `ports.Display`."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO

import msgspec

from twinlock.core.errors import TwinlockError

if TYPE_CHECKING:
    from twinlock.agent.ports import Clock, Store

PROGRESS_FILE: Final = "progress.json"
STEP_S: Final = 1.0
BAR_WIDTH: Final = 30
_WORDS: Final = {"look": "looking", "fetch": "fetching", "verify": "verifying"}


class Shown(msgspec.Struct, frozen=True):
    """What progress.json holds; `time_s` is the wall clock when it was written."""

    phase: str
    done_bytes: int
    total_bytes: int
    time_s: float


class AgentDisplay:
    """Plain sentences to `stream`; a bar if that is a terminal; progress.json once a second."""

    def __init__(self, store: Store, clock: Clock, stream: TextIO | None = None) -> None:
        self._store = store
        self._clock = clock
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._last_s = float("-inf")
        self._phase = ""
        self._bar_open = False

    def note(self, text: str) -> None:
        """One sentence on a line of its own."""
        self._close_bar()
        clean = "".join(char if char.isprintable() else " " for char in text)
        print(f"twinlock-agent: {clean}", file=self._stream, flush=True)

    def progress(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        """At most once a second, and at the start and the end of each phase."""
        now_s = self._clock.monotonic_s()
        ended = done_bytes >= total_bytes
        if phase == self._phase and not ended and now_s - self._last_s < STEP_S:
            return
        self._last_s, self._phase = now_s, phase
        with suppress(TwinlockError):  # a full disk is noticed where it matters
            shown = Shown(phase, done_bytes, total_bytes, self._clock.now_s())
            self._store.write_volatile(PROGRESS_FILE, msgspec.json.encode(shown))
        if self._is_terminal:
            part = done_bytes / total_bytes if total_bytes else 1.0
            bar = ("#" * round(part * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
            self._stream.write(f"\r{_WORDS.get(phase, phase):9} [{bar}] {part:4.0%}")
            self._bar_open = True
            if ended:
                self._close_bar()
            self._stream.flush()

    def _close_bar(self) -> None:
        if self._bar_open:
            self._stream.write("\n")
            self._bar_open = False
