"""Simulated storage with a volatile cache: what is not flushed may be lost, kept or torn by a loss of power.

Each class is one of `agent.ports`' and means what the real one does; `lose_power` is what the real world
does to it. A kill of the process alone loses nothing here: the kernel still has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.agent.boot.base import Booted
from twinlock.agent.boot.file import FileBootControl
from twinlock.core import bootrecord
from twinlock.core.errors import error
from twinlock.lab.sim.fate import ROT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from random import Random

    from twinlock.core.bootrecord import BootRecord
    from twinlock.lab.sim.fate import Fate

SECTOR_SIZE_BYTES: Final = 512


class SimStore:
    """Is a `ports.Store`: a folder of whole files."""

    def __init__(self, fate: Fate, files: Mapping[str, bytes]) -> None:
        self._fate = fate
        self._now: dict[str, bytes] = dict(files)
        self._durable: dict[str, bytes] = dict(files)

    def read(self, name: str, size_bytes_max: int) -> bytes | None:
        data = self._now.get(name)
        if data is not None and len(data) > size_bytes_max:
            raise error("input-too-large", f"state file {name} is larger than {size_bytes_max} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        cut = self._fate.begin(f"store.write {name}")
        self._fate.check_space(name)
        if not self._fate.torn(cut) or self._fate.part(2):  # torn: before or behind the rename
            self._now[name] = self._durable[name] = bytes(data)
        self._fate.end(cut)

    def write_volatile(self, name: str, data: bytes) -> None:
        cut = self._fate.begin(f"store.write {name}")
        self._fate.check_space(name)
        if not self._fate.torn(cut):
            self._now[name] = bytes(data)
        self._fate.end(cut)

    def append(self, name: str, data: bytes) -> None:
        cut = self._fate.begin(f"store.append {name}")
        self._fate.check_space(name)
        data = data[: self._fate.part(len(data))] if self._fate.torn(cut) else data
        self._now[name] = self._now.get(name, b"") + bytes(data)
        self._fate.end(cut)

    def remove(self, name: str) -> None:
        cut = self._fate.begin(f"store.remove {name}")
        if not self._fate.torn(cut):
            self._now.pop(name, None)
            self._durable.pop(name, None)
        self._fate.end(cut)

    def names(self, folder: str) -> list[str]:
        start = f"{folder}/"
        return sorted(name.removeprefix(start) for name in self._now if name.startswith(start))

    def lose_power(self, rng: Random) -> None:
        """A file that was not flushed is old, new, or new and cut short; an old one is whole."""
        for name, data in self._now.items():
            before = self._durable.get(name)
            if data == before:
                continue
            kept = data[: rng.randrange(len(data) + 1)]
            if before is not None and data.startswith(before):  # appended to
                self._durable[name] = data[: rng.randint(len(before), len(data))]
            else:
                self._durable[name] = rng.choice([data, kept] if before is None else [before, data, kept])
        self._now = dict(self._durable)


class SimMedium:
    """One slot. Writes are visible at once and durable after `sync`; sectors are written whole or not."""

    def __init__(self, data: bytes) -> None:
        self.now = bytearray(data)
        self.durable = bytearray(data)
        self.version = 0  # rises whenever `now` changes
        self._dirty: list[tuple[int, int]] = []

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self.version += 1
        self.now[offset : offset + len(data)] = data
        self._dirty.append((offset, offset + len(data)))

    def sync(self) -> None:
        for start, end in self._dirty:
            self.durable[start:end] = self.now[start:end]
        self._dirty.clear()

    def lose_power(self, rng: Random) -> None:
        """Of each write that was not flushed some sectors arrived, in no order."""
        for start, end in self._dirty:
            for _ in range(rng.randint(0, 4)):
                first = rng.randrange(start, end) // SECTOR_SIZE_BYTES * SECTOR_SIZE_BYTES
                last = min(end, first + rng.randint(1, 64) * SECTOR_SIZE_BYTES)
                self.durable[first:last] = self.now[first:last]
            if rng.random() < 0.2:
                self.durable[start:end] = self.now[start:end]
        self.version += 1
        self.now[:] = self.durable
        self._dirty.clear()


class SimDevice:
    """An open slot. Is a `ports.BlockDevice`."""

    def __init__(self, medium: SimMedium, fate: Fate) -> None:
        self._medium = medium
        self._fate = fate

    @property
    def size_bytes(self) -> int:
        return len(self._medium.now)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        data = self._medium.now[offset : offset + len(buffer)]
        if len(data) != len(buffer):
            raise error("io-error", f"the slot ends at {len(self._medium.now)} bytes")
        buffer[:] = data

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        if offset < 0 or offset + len(data) > self.size_bytes:
            raise error("internal", f"bytes {offset} to {offset + len(data)} are outside the slot")
        cut = self._fate.begin("slot.write")
        if self._fate.torn(cut):
            data = memoryview(data)[: self._fate.part(len(data), SECTOR_SIZE_BYTES)]
        if len(data):
            self._medium.write(self._rotten(data), offset)
        self._fate.end(cut)

    def _rotten(self, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        if not self._fate.happens(self._fate.troubles.rot):
            return data
        self._fate.log.append(ROT)
        damaged = bytearray(data)
        damaged[self._fate.rng.randrange(len(damaged))] ^= 1
        return damaged

    def sync(self) -> None:
        cut = self._fate.begin("slot.sync")
        if not self._fate.torn(cut):
            self._medium.sync()
        self._fate.end(cut)

    def drop_cache(self) -> None:
        """Nothing is cached that was not flushed before: `sync` comes first."""

    def close(self) -> None:
        """Nothing to give back."""


class SimSlots:
    """Is a `ports.Slots`."""

    def __init__(self, media: Mapping[str, SimMedium], fate: Fate) -> None:
        self._media = media
        self._fate = fate

    def size_bytes(self, slot: str) -> int:
        return len(self._media[slot].now)

    def open(self, slot: str) -> SimDevice:
        return SimDevice(self._media[slot], self._fate)

    def look(self, slot: str) -> SimDevice:
        return self.open(slot)


class SimBootControl(FileBootControl):
    """The real boot control over two simulated sectors; a write is flushed when it returns."""

    def __init__(self, fate: Fate, nowhere: Path, record: BootRecord) -> None:
        super().__init__(nowhere, (0, SECTOR_SIZE_BYTES), nowhere)
        self._fate = fate
        self.sectors = [bootrecord.encode(record)] * bootrecord.COPIES
        self.running = Booted("", "")

    def booted(self) -> Booted:
        return self.running

    def records(self) -> tuple[BootRecord | None, ...]:
        """Both copies, as a loader reads them."""
        return tuple(map(bootrecord.decode, self.sectors))

    def save(self, record: BootRecord) -> None:
        """What a loader writes."""
        number, _ = bootrecord.newest(self.records())
        self.sectors[bootrecord.COPIES - 1 - number] = bootrecord.encode(record)

    def _blocks(self) -> list[bytes]:
        return self.sectors

    def _write(self, copy: int, sector: bytes) -> None:
        cut = self._fate.begin("boot.write")
        if self._fate.torn(cut):
            size = self._fate.part(len(sector))
            sector = sector[:size] + self.sectors[copy][size:]
        self.sectors[copy] = sector
        self._fate.end(cut)
