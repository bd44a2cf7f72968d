"""The log of what a virtual device did to its disk: every write and every flush, in order.

    magic "TWLDLOG1", then entries:
      kind      1 byte    1 write, 2 write through (FUA), 3 flush, 4 mark, 5 cut
      zero      3 bytes
      length    4 bytes   of the data that follows; a mark's is its UTF-8 text
      offset    8 bytes   in bytes on the disk; writes only
      crc       4 bytes   CRC-32 of the data
      data

Numbers are little-endian. A log that was cut short (its writer was killed) reads up to the last whole entry.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, BinaryIO, Final

from twinlock.core.errors import error
from twinlock.core.limits import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAGIC: Final = b"TWLDLOG1"
SECTOR_SIZE_BYTES: Final = 512
ENTRY_DATA_BYTES_MAX: Final = 32 * MIB
LOG_SIZE_BYTES_MAX: Final = 8 * GIB
ENTRIES_MAX: Final = 4_000_000
MARK_BYTES_MAX: Final = 256
_HEAD: Final = struct.Struct("<BxxxIQI")


class Kind(IntEnum):
    """What an entry is."""

    WRITE = 1
    WRITE_THROUGH = 2
    FLUSH = 3
    MARK = 4
    CUT = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `offset` is in bytes; flushes and cuts have neither offset nor data."""

    kind: Kind
    offset: int = 0
    data: bytes = b""

    @property
    def is_write(self) -> bool:
        """Whether it changes the disk."""
        return self.kind in (Kind.WRITE, Kind.WRITE_THROUGH)


def encode(entry: Entry) -> bytes:
    """The bytes of an entry. Raises InputError `input-too-large` beyond 32 MiB of data."""
    if len(entry.data) > ENTRY_DATA_BYTES_MAX:
        raise error("input-too-large", f"a write of {len(entry.data)} bytes is too large for the log")
    return _HEAD.pack(entry.kind, len(entry.data), entry.offset, zlib.crc32(entry.data)) + entry.data


def parse(file: BinaryIO) -> Iterator[Entry]:
    """The entries of a log.

    Raises InputError `input-wrong-type` when it is not such a log, `input-invalid` for an entry that no
    writer makes, `input-too-large` beyond the bounds above.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise error("input-wrong-type", "not a log of disk writes")
    total = 0
    for _ in range(ENTRIES_MAX):
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        kind, length, offset, crc = _HEAD.unpack(head)
        if kind not in Kind.__members__.values() or length > ENTRY_DATA_BYTES_MAX or offset >= 1 << 62:
            raise error("input-invalid", f"entry of kind {kind}, {length} bytes, in the log of disk writes")
        total += _HEAD.size + length
        if total > LOG_SIZE_BYTES_MAX:
            raise error("input-too-large", "the log of disk writes is larger than 8 GiB")
        data = file.read(length)
        if len(data) < length:
            return
        if zlib.crc32(data) != crc:
            raise error("input-invalid", "an entry in the log of disk writes does not have its checksum")
        yield Entry(Kind(kind), offset, data)
    raise error("input-too-large", f"the log of disk writes has more than {ENTRIES_MAX} entries")


class LogWriter:
    """Appends entries to a file object, within the bounds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.write(MAGIC)
        self._entries = 0

    def add(self, entry: Entry) -> None:
        """Raises InputError `input-too-large` when the log is full; the entry is then not in it."""
        data = encode(entry)
        if self._size + len(data) > LOG_SIZE_BYTES_MAX or self._entries >= ENTRIES_MAX:
            raise error("input-too-large", "the log of disk writes is full")
        self._file.write(data)
        self._size += len(data)
        self._entries += 1

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._file.flush()


def replay(entries: Iterable[Entry], disk: BinaryIO) -> None:
    """Applies every write, as a disk without a cut would have it in the end."""
    for entry in entries:
        if entry.is_write:
            disk.seek(entry.offset)
            disk.write(entry.data)
