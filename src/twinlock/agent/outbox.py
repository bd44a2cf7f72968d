"""Reports that wait for the server: one file each, in order, until the server says that it holds them.

`outbox/NNNNNNNNNN.json` is an unsigned Report; the metadata process, which has the key, signs it on the way
out. A report's number is never used twice: the next one follows both the highest file and the counter, which
has two copies (`seq.0`, `seq.1`, written in turn) and is raised before a file may be removed. If a copy is
damaged a number is left out, which is harmless.

The number of waiting reports is bounded; to make room the oldest that is not an outcome goes.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent import noticed
from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.protocol import FINAL_STATES, Report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twinlock.agent.ports import Store

FOLDER: Final = "outbox"
REFUSED: Final = "refused"
WAITING_MAX: Final = 64
REFUSED_MAX: Final = 16
DETAIL_SIZE_BYTES_MAX: Final = 6 * limits.KIB


class Outbox:
    """The queue. Only one process uses it at a time (see `lock`)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, report: Report) -> bool:
        """Queues `report` under the next number (its own `seq` is ignored); durable when it returns.

        False, and nothing is queued, for one that says the same as one that waits, or for one that is no
        outcome when there is no room. A power cut leaves it queued or not; then it is queued again.
        """
        waiting = self.waiting()
        if any(_same(one, report) for one in waiting):
            return False
        final = report.state in FINAL_STATES
        if len(waiting) >= WAITING_MAX:
            passing = [one.seq for one in waiting if one.state not in FINAL_STATES]
            if passing:
                self._store.remove(_name(passing[0]))
            elif not final:
                return False
        seq = self._next()
        counts = noticed.waiting(self._store)
        report = msgspec.structs.replace(report, seq=seq, noticed=counts)
        self._store.write(_name(seq), msgspec.json.encode(report))
        if counts:
            noticed.told(self._store)
        self._raise_counter(seq)
        return True

    def waiting(self) -> list[Report]:
        """The reports that wait, in order. A damaged file is passed over; it stays for whoever looks."""
        reports = (self._load(seq) for seq in self._numbers())
        return [report for report in reports if report is not None]

    def sent(self, numbers: Iterable[int]) -> None:
        """The server holds these durably; numbers that do not wait are ignored."""
        waiting = set(self._numbers())
        if waiting:
            self._raise_counter(max(waiting))
        for seq in sorted(waiting.intersection(numbers)):
            self._store.remove(_name(seq))

    def refuse(self, report: Report) -> None:
        """The server will never take this one: it stops the queue no longer, but is kept for a person."""
        self._store.write(f"{REFUSED}/{report.seq:010d}.json", msgspec.json.encode(report))
        for name in self._store.names(REFUSED)[:-REFUSED_MAX]:
            self._store.remove(f"{REFUSED}/{name}")
        self.sent([report.seq])

    def _load(self, seq: int) -> Report | None:
        try:
            data = self._store.read(_name(seq), limits.REPORT_SIZE_BYTES_MAX)
            return None if data is None else msgspec.json.decode(data, type=Report)
        except (msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
            return None

    def _numbers(self) -> list[int]:
        names = (name.removesuffix(".json") for name in self._store.names(FOLDER))
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal())

    def _next(self) -> int:
        return max(self._counter(), *self._numbers(), 0) + 1

    def _counter(self) -> int:
        """The highest number ever used, or one more if that may have been lost."""
        copies = self._copies()
        known = max(copies)
        return known if known < 2 or min(copies) == known - 1 else known + 1

    def _raise_counter(self, seq: int) -> None:
        """Makes the copies hold `seq` and the number before it, the lower one first."""
        copies = self._copies()
        if seq <= max(copies):
            return
        for value in (seq - 1, seq):
            if value > 0 and copies[value % 2] != value:
                self._store.write(f"seq.{value % 2}", b"%d %08x" % (value, zlib.crc32(b"%d" % value)))

    def _copies(self) -> list[int]:
        return [self._copy(f"seq.{number}") for number in (0, 1)]

    def _copy(self, name: str) -> int:
        try:
            value, _, crc = (self._store.read(name, 64) or b"").partition(b" ")
        except TwinlockError:
            return 0
        return int(value) if value.isdigit() and crc == b"%08x" % zlib.crc32(value) else 0


def _name(seq: int) -> str:
    return f"{FOLDER}/{seq:010d}.json"


def _same(a: Report, b: Report) -> bool:
    return (a.state, a.assignment_id, a.code, a.detail) == (b.state, b.assignment_id, b.code, b.detail)


def clip_detail(text: str) -> str:
    """`text` as a report may hold it: printable lines, its end if it is too long."""
    clean = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    clean = clean[-limits.REPORT_DETAIL_LENGTH_MAX :]
    return clean.encode("utf-8", "replace")[-DETAIL_SIZE_BYTES_MAX:].decode("utf-8", "ignore")
