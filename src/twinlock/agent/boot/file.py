"""Boot control by a record in two sectors of a file or block device, as `core.bootrecord` lays them out.

A change is one write of 512 bytes to the older copy, flushed by the kernel before it returns (O_DSYNC), then
read again. A power cut during it leaves the newer copy untouched: the loader sees the old record or the new.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from twinlock.agent.boot.base import Booted, Capabilities
from twinlock.core import bootrecord
from twinlock.core.bootrecord import COPIES, SECTOR_SIZE_BYTES, BootRecord
from twinlock.core.durable import read_bounded
from twinlock.core.errors import TwinlockError, error
from twinlock.core.limits import TRIES_MAX
from twinlock.core.names import RECOVERY, SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOOTED_SIZE_BYTES_MAX: Final = 4096
BOOT_ID_LENGTH_MAX: Final = 64


class _BootedFile(msgspec.Struct, frozen=True):
    slot: str
    boot_id: str


class FileBootControl:
    """The record at two offsets of `path`; `booted` is a JSON file `{"slot": ..., "boot_id": ...}`.

    Loaders that keep the record in a form of their own differ only in the four names below.
    """

    name: ClassVar[str] = "file"
    block_size_bytes: ClassVar[int] = SECTOR_SIZE_BYTES

    def _encode(self, record: BootRecord) -> bytes:
        return bootrecord.encode(record)

    def _decode(self, block: bytes) -> BootRecord | None:
        return bootrecord.decode(block)

    def __init__(self, path: Path, offsets_bytes: tuple[int, int], booted: Path) -> None:
        self._path = path
        self._offsets = offsets_bytes
        self._booted = booted

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(name=self.name, tries_max=TRIES_MAX, keeps_reason=True)

    def booted(self) -> Booted:
        """What the loader started, as it (or the first unit) noted it. Raises DeviceError `boot-control`."""
        try:
            data = read_bounded(self._booted, BOOTED_SIZE_BYTES_MAX, "note of the booted slot")
            note = msgspec.json.decode(data, type=_BootedFile)
        except (TwinlockError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise error("boot-control", f"which slot booted is not known: {problem}") from problem
        if note.slot not in (*SLOTS, RECOVERY) or not 0 < len(note.boot_id) <= BOOT_ID_LENGTH_MAX:
            raise error("boot-control", f"{self._booted} names slot {note.slot[:40]!r}")
        return Booted(note.slot, note.boot_id)

    def read(self) -> BootRecord:
        """The record that counts. Raises DeviceError `boot-record`, `boot-control`."""
        return bootrecord.newest(self._copies())[1]

    def mend(self) -> list[str]:
        """Writes a copy again that a cut has torn: a loader may be able to write only over a whole one."""
        mended: list[str] = []
        for _ in range(COPIES):
            if all(map(self._is_whole, self._blocks())):
                break
            self._change(lambda record: replace(record, seq=record.seq + 1))
            mended.append("a copy of the boot record")
        return mended

    def astray(self) -> list[str]:
        """What the loader reads that does not follow the record; reads only."""
        return []

    def valid_copies(self) -> tuple[bool, ...]:
        """Which copies of the record are whole. Raises DeviceError `boot-control`."""
        return tuple(record is not None for record in self._copies())

    def before_reboot(self) -> bool:
        """Nothing: the loader takes the try off itself."""
        return False

    def invalidate(self, slot: str) -> BootRecord:
        return self._change(lambda record: bootrecord.invalidate(record, slot))

    def arm(self, slot: str, tries: int, trial_id: str) -> BootRecord:
        return self._change(lambda record: bootrecord.arm(record, slot, tries, trial_id))

    def commit(self, trial_id: str) -> BootRecord:
        return self._change(lambda record: bootrecord.commit(record, trial_id))

    def roll_back(self, trial_id: str, reason: str) -> BootRecord:
        return self._change(lambda record: bootrecord.roll_back(record, trial_id, reason))

    def abandon(self, slot: str) -> BootRecord:
        return self._change(lambda record: bootrecord.abandon(record, slot))

    def restore(self, default: str, failed: frozenset[str]) -> BootRecord:
        """A cut between the two writes leaves one valid copy, which counts."""
        if any(record is not None for record in self._copies()):
            return self.read()
        sector = self._encode(bootrecord.restored(default, failed))
        for copy in range(COPIES):
            self._write(copy, sector)
        return self.read()

    def self_test(self) -> None:
        """Writes the same record again under the next number, and finds both copies valid afterwards."""
        self._change(lambda record: replace(record, seq=record.seq + 1))
        if None in self._copies():
            raise error("boot-control", f"a copy of the boot record in {self._path} cannot be read back")

    def _change(self, make: Callable[[BootRecord], BootRecord]) -> BootRecord:
        number, record = bootrecord.newest(self._copies())
        new = make(record)
        if new == record:
            return record
        self._write(COPIES - 1 - number, self._encode(new))
        stored = self.read()
        if stored != new:
            raise error("boot-control", f"the boot record in {self._path} is not what was written")
        return stored

    def _copies(self) -> tuple[BootRecord | None, ...]:
        return tuple(map(self._decode, self._blocks()))

    def _is_whole(self, block: bytes) -> bool:
        """Whether the loader can read this copy, and write over it."""
        return self._decode(block) is not None

    def _blocks(self) -> list[bytes]:
        fd = self._open(os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what counts is on the medium
            return [os.pread(fd, self.block_size_bytes, offset) for offset in self._offsets]
        except OSError as problem:
            raise error("boot-control", f"boot record {self._path}: {problem.strerror}") from problem
        finally:
            os.close(fd)

    def _write(self, copy: int, sector: bytes) -> None:
        fd = self._open(os.O_RDWR | os.O_DSYNC)
        try:
            os.fdatasync(fd)  # the newer copy may be a loader's, which flushes nothing: this one may be torn
            if os.pwrite(fd, sector, self._offsets[copy]) != len(sector):
                raise error("boot-control", f"boot record {self._path}: a sector was written in part")
        except OSError as problem:
            raise error("boot-control", f"boot record {self._path}: {problem.strerror}") from problem
        finally:
            os.close(fd)

    def _open(self, flags: int) -> int:
        try:
            return os.open(self._path, flags | os.O_CLOEXEC)
        except OSError as problem:
            raise error("boot-control", f"boot record {self._path}: {problem.strerror}") from problem
