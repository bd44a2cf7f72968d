"""A disk with a volatile write cache, as real ones have: what was not flushed may be lost, whole or in part.

Reads see the latest writes. A flush makes everything durable; a write through (FUA) makes itself durable.
When the power goes, each 512-byte sector that was written since holds any one of the values it had since the
last flush, each sector on its own: real caches reorder freely. A sector is written whole or not at all, as
media promise; `tear_bytes` breaks even that promise for the last write, since some media do.

The cache is bounded: when it is full, the oldest writes reach the medium by themselves, as in a real one.
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error
from twinlock.core.limits import MIB
from twinlock.lab.qemu.writelog import SECTOR_SIZE_BYTES, Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CACHE_SIZE_BYTES_MAX: Final = 64 * MIB


@dataclass(frozen=True, slots=True)
class CutPlan:
    """When the power goes: as the write with this number (from 1) arrives; and what is lost, by seed.

    `keep` is the chance of each unflushed sector version to have reached the medium; None draws it too.
    """

    at_write: int
    seed: int
    keep: float | None = None
    tear_bytes: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """What a cut did, in sectors."""

    unflushed: int
    kept: int
    torn: int


class PowerCutError(Exception):
    """The disk has lost its power: nothing is read or written any more."""


class VolatileDisk:
    """The disk. `path` is the medium, changed in place: give it a copy. Thread-safe."""

    def __init__(
        self,
        path: Path,
        *,
        log: Callable[[Entry], None] | None = None,
        cut: CutPlan | None = None,
        cache_size_bytes_max: int = CACHE_SIZE_BYTES_MAX,
    ) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._fd).st_size
        self._log = log
        self._cut_plan = cut
        self._cache_max = cache_size_bytes_max
        self._lock = threading.Lock()
        self._pending: deque[Entry] = deque()
        self._pending_bytes = 0
        self._latest: dict[int, Entry] = {}  # sector number -> the newest unflushed write to it
        self._dead = False
        self.writes = 0
        self.flushes = 0
        self.loss: Loss | None = None
        self.cut_happened = threading.Event()

    def read(self, offset: int, length: int) -> bytes:
        """Raises PowerCutError after a cut, InputError `input-invalid` beyond the disk's end."""
        with self._lock:
            self._check(offset, length)
            data = bytearray(os.pread(self._fd, length, offset))
            first = offset // SECTOR_SIZE_BYTES
            for number in range(first, (offset + length - 1) // SECTOR_SIZE_BYTES + 1 if length else first):
                if (entry := self._latest.get(number)) is not None:
                    _overlay(data, offset, number * SECTOR_SIZE_BYTES, _sector_of(entry, number))
            return bytes(data)

    def write(self, offset: int, data: bytes, *, through: bool = False) -> None:
        """Raises like `read`; PowerCutError also when this is the write at which the power goes."""
        with self._lock:
            self._check(offset, len(data))
            if offset % SECTOR_SIZE_BYTES or len(data) % SECTOR_SIZE_BYTES:
                raise error("input-invalid", f"a write of {len(data)} bytes at {offset} is not whole sectors")
            self.writes += 1
            entry = Entry(Kind.WRITE_THROUGH if through else Kind.WRITE, offset, data)
            self._note(entry)
            self._cache(entry)
            if self._cut_plan is not None and self.writes == self._cut_plan.at_write:
                self._cut(self._cut_plan)
                raise PowerCutError
            if through:
                self._destage_through(entry)
            while self._pending_bytes > self._cache_max:
                self._destage(self._pending[0])

    def flush(self) -> None:
        """Makes every write so far durable. Raises PowerCutError after a cut."""
        with self._lock:
            self._check(0, 0)
            self.flushes += 1
            self._note(Entry(Kind.FLUSH))
            while self._pending:
                self._destage(self._pending[0])

    def mark(self, text: str) -> None:
        """Puts a named point into the log, for reading it later."""
        with self._lock:
            self._note(Entry(Kind.MARK, 0, text.encode("utf-8")[:256]))

    def cut(self, seed: int, *, keep: float | None = None, tear_bytes: bool = False) -> Loss:
        """Takes the power away now. What each unflushed sector then holds follows from the seed alone."""
        with self._lock:
            self._check(0, 0)
            return self._cut(CutPlan(self.writes, seed, keep, tear_bytes))

    def close(self) -> None:
        """Lets the medium go. What is still in the cache is lost, as when a device is unplugged."""
        with self._lock:
            self._dead = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    @property
    def unflushed_writes(self) -> int:
        """Writes in the cache."""
        with self._lock:
            return len(self._pending)

    @property
    def unflushed_sectors(self) -> int:
        """Sectors whose newest content is in the cache."""
        with self._lock:
            return len(self._latest)

    def _check(self, offset: int, length: int) -> None:
        if self._dead:
            raise PowerCutError
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise error("input-invalid", f"{length} bytes at {offset} lie beyond the disk's end")

    def _note(self, entry: Entry) -> None:
        if self._log is not None:
            self._log(entry)

    def _cache(self, entry: Entry) -> None:
        self._pending.append(entry)
        self._pending_bytes += len(entry.data)
        for number in _numbers(entry):
            self._latest[number] = entry

    def _destage(self, entry: Entry) -> None:
        """Brings the oldest write to the medium."""
        os.pwrite(self._fd, entry.data, entry.offset)
        self._pending.popleft()
        self._pending_bytes -= len(entry.data)
        self._forget(entry)

    def _destage_through(self, entry: Entry) -> None:
        """Brings the newest write to the medium, past older ones; of those, its sectors are superseded."""
        os.pwrite(self._fd, entry.data, entry.offset)
        self._pending.pop()
        covered = set(_numbers(entry))
        kept: deque[Entry] = deque()
        for older in self._pending:
            if covered.isdisjoint(_numbers(older)):
                kept.append(older)
                continue
            pieces = _without(older, covered)
            for piece in pieces:
                for number in _numbers(piece):
                    if self._latest.get(number) is older:
                        self._latest[number] = piece
            kept.extend(pieces)
        self._pending = kept
        self._pending_bytes = sum(len(left.data) for left in kept)
        for number in covered:
            self._latest.pop(number, None)

    def _forget(self, entry: Entry) -> None:
        for number in _numbers(entry):
            if self._latest.get(number) is entry:
                del self._latest[number]

    def _cut(self, plan: CutPlan) -> Loss:
        rng = random.Random(plan.seed)
        keep = rng.random() if plan.keep is None else plan.keep
        versions: dict[int, list[bytes]] = {}
        for entry in self._pending:
            for number, sector in _sectors(entry):
                versions.setdefault(number, []).append(sector)
        last = self._pending[-1] if self._pending else None
        kept = torn = 0
        for number in sorted(versions):
            # The newest version that reached the medium wins; older ones count only when newer ones did not.
            survivor = next((sector for sector in reversed(versions[number]) if rng.random() < keep), None)
            if survivor is not None:
                kept += 1
                os.pwrite(self._fd, survivor, number * SECTOR_SIZE_BYTES)
        if plan.tear_bytes and last is not None and last.data:
            number = last.offset // SECTOR_SIZE_BYTES + rng.randrange(len(last.data) // SECTOR_SIZE_BYTES)
            at = rng.randrange(1, SECTOR_SIZE_BYTES)
            start = number * SECTOR_SIZE_BYTES
            os.pwrite(self._fd, last.data[start - last.offset :][:at], start)
            torn = 1
        os.fsync(self._fd)
        self._dead = True
        self._note(Entry(Kind.CUT))
        self.loss = Loss(unflushed=len(versions), kept=kept, torn=torn)
        self._pending.clear()
        self._latest.clear()
        self.cut_happened.set()
        return self.loss


def _numbers(entry: Entry) -> range:
    """The sectors that a write covers."""
    first = entry.offset // SECTOR_SIZE_BYTES
    return range(first, first + len(entry.data) // SECTOR_SIZE_BYTES)


def _sector_of(entry: Entry, number: int) -> bytes:
    at = number * SECTOR_SIZE_BYTES - entry.offset
    return entry.data[at : at + SECTOR_SIZE_BYTES]


def _sectors(entry: Entry) -> list[tuple[int, bytes]]:
    return [(number, _sector_of(entry, number)) for number in _numbers(entry)]


def _without(entry: Entry, covered: set[int]) -> list[Entry]:
    """The write without the covered sectors, one piece for each sector that is left."""
    return [
        Entry(entry.kind, number * SECTOR_SIZE_BYTES, sector)
        for number, sector in _sectors(entry)
        if number not in covered
    ]


def _overlay(data: bytearray, offset: int, start: int, sector: bytes) -> None:
    """Puts the part of `sector` (at `start` on the disk) that `data` (at `offset`) covers into it."""
    low = max(offset, start)
    high = min(offset + len(data), start + len(sector))
    data[low - offset : high - offset] = sector[low - start : high - start]
