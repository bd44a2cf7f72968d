"""Which inodes lie in a window and in a text, so that their checksums are computed and need not travel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from twinlock.core.payload import sums
from twinlock.core.payload.fields import Field, Kind
from twinlock.publish.delta.files.ext4 import InodeTables, inode_tables
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.model import Ref

_RUNS_MAX: Final = 64  # of inodes whose checksums are as they should be; a damaged table may have many


class Inodes:
    """The inodes of both images."""

    def __init__(self, base: Image, image: Image) -> None:
        self._old = inode_tables(base)
        self._new = inode_tables(image)

    def text(self, start: int, text: bytes) -> list[Field]:
        """The fields of `text`, which lies at `start` of the image; none when the base has no inodes."""
        if self._new is None or self._old is None:
            return []
        found: list[Field] = []
        for offset, count, number in _whole(self._new, start, start + len(text)):
            found += _right(text, offset - start, count, number, self._new)
        return found if len(found) <= _RUNS_MAX else []

    def window(self, refs: Sequence[Ref]) -> list[Field]:
        """The fields of a window of these refs."""
        found: list[Field] = []
        place = 0
        for ref in refs:
            if ref.block is None and self._old is not None:
                found += _checksums(self._old, ref, place)
            place += ref.length
        return found


def _whole(known: InodeTables, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(offset, count, number of the first) of the inodes that lie in an image's bytes `start` to `end`."""
    size = known.inode_size
    for table, number in known.tables:
        first = max(0, -(-(start - table) // size))
        last = min(known.count, (end - table) // size)
        if first < last:
            yield table + first * size, last - first, number + first


def _checksums(known: InodeTables, ref: Ref, place: int) -> Iterator[Field]:
    """All checksums that lie in a ref, which the window has at `place`."""
    size = known.inode_size
    shift = size - sums.LOW - sums.SPAN_BYTES  # a ref may begin and end within an inode
    for offset, count, _ in _whole(known, ref.offset - sums.LOW, ref.end + shift):
        length = size * (count - 1) + sums.SPAN_BYTES
        where = place + offset + sums.LOW - ref.offset
        yield Field(Kind.INODES, 0, where, length, stride=size, count=count)


def _right(text: bytes, place: int, count: int, number: int, known: InodeTables) -> Iterator[Field]:
    """Runs of inodes at `place` of the text whose checksums are right, from and to one that is used."""
    size = known.inode_size
    table = text[place : place + size * count]
    sealed = bytearray(table)
    sums.seal(sealed, 0, size, count, known.seed, number)
    runs: list[tuple[int, int]] = []  # first and last
    broken = True
    for index in range(count):
        inode = slice(index * size, (index + 1) * size)
        if table[inode] != sealed[inode]:
            broken = True
        elif any(table[inode]):
            first = index if broken else runs.pop()[0]
            runs.append((first, index))
            broken = False
    for first, last in runs:
        yield _field(place, first, last, number, known)


def _field(place: int, first: int, last: int, number: int, known: InodeTables) -> Field:
    count, size = last - first + 1, known.inode_size
    return Field(
        Kind.INODES,
        0,
        place + first * size,
        count * size,
        stride=size,
        count=count,
        seed=known.seed,
        number=number + first,
    )
