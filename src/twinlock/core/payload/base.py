"""What a delta is decoded against: the base image, read in ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Protocol

from twinlock.core import limits
from twinlock.core.durable import os_errors
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twinlock.core.payload.varints import Reader


class Base(Protocol):
    """The base image on this machine: a slot, a file, bytes in a test."""

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`; fewer where the medium ends. Raises TwinlockError."""
        ...


class FileBase:
    """A base that is an open file or block device; nothing else may move its position meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, offset: int, length: int) -> bytes:
        with os_errors("base image"):
            self._file.seek(offset)
            return self._file.read(length)


class BytesBase:
    """A base that is in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def check_range(offset: int, length: int, what: str) -> None:
    """Raises TrustError `payload-malformed` unless the range lies within what an image may be."""
    if offset < 0 or length <= 0 or offset + length > limits.IMAGE_SIZE_BYTES_MAX:
        raise error("payload-malformed", f"{what} names {length} bytes at {offset} of the base")


def read_range(base: Base, offset: int, length: int, number: int) -> bytes:
    """Exactly `length` bytes at `offset`; CompatibilityError `delta-base` where the base ends before."""
    data = base.read(offset, length)
    if len(data) != length:
        raise error("delta-base", f"part {number} needs {length} bytes at {offset}; the base is shorter")
    return data


def read_ranges(base: Base, ranges: Iterable[tuple[int, int]], size_bytes: int, number: int) -> bytearray:
    """The ranges one behind the other; their lengths must add up to `size_bytes`, which the caller bounds."""
    data = bytearray(size_bytes)
    view = memoryview(data)
    position = 0
    for offset, length in ranges:
        view[position : position + length] = read_range(base, offset, length, number)
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
