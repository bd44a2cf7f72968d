"""What a delta is decoded against: the base image, read in ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from twinlock.core import limits
from twinlock.core.durable import os_errors
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import BufferedReader

    from twinlock.core.payload.varints import Reader


class Base(Protocol):
    """The base image on this machine: a slot, a file, bytes in a test."""

    def read_into(self, into: memoryview, offset: int) -> int:
        """Fills `into` with the bytes at `offset`; says how many: fewer where the medium ends.

        Raises TwinlockError.
        """
        ...


class FileBase:
    """A base that is an open file or block device; nothing else may move its position meanwhile."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def read_into(self, into: memoryview, offset: int) -> int:
        with os_errors("base image"):
            self._file.seek(offset)
            return self._file.readinto(into)


class BytesBase:
    """A base that is in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, into: memoryview, offset: int) -> int:
        data = self._data[offset : offset + len(into)]
        into[: len(data)] = data
        return len(data)


def check_range(offset: int, length: int, what: str) -> None:
    """Raises TrustError `payload-malformed` unless the range lies within what an image may be."""
    if offset < 0 or length <= 0 or offset + length > limits.IMAGE_SIZE_BYTES_MAX:
        raise error("payload-malformed", f"{what} names {length} bytes at {offset} of the base")


def read_range(base: Base, into: memoryview, offset: int, number: int) -> None:
    """Fills `into` with the bytes at `offset`; CompatibilityError `delta-base` where the base ends before."""
    if base.read_into(into, offset) != len(into):
        raise error("delta-base", f"part {number} needs {len(into)} bytes at {offset}; the base is shorter")


def read_ranges(base: Base, ranges: Iterable[tuple[int, int]], size_bytes: int, number: int) -> bytearray:
    """The ranges one behind the other; their lengths must add up to `size_bytes`, which the caller bounds."""
    data = bytearray(size_bytes)
    view = memoryview(data)
    position = 0
    for offset, length in ranges:
        read_range(base, view[position : position + length], offset, number)
        position += length
    return data


def decode_ranges(reader: Reader, number: int) -> list[tuple[int, int]]:
    """(offset, length) of each range: a count, offsets relative to the end of the range before, lengths.

    Raises TrustError `payload-malformed` for more than `REFERENCE_RANGES_MAX` or one outside any image.
    """
    count = reader.value(limits.REFERENCE_RANGES_MAX, "ranges")
    distances, lengths = reader.signed_column(count), reader.column(count)
    ranges = []
    end = 0
    for distance, length in zip(distances, lengths, strict=True):
        check_range(end + distance, length, f"part {number}")
        ranges.append((end + distance, length))
        end += distance + length
    return ranges
