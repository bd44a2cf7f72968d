"""The inside of LZ4 blocks: where each sequence begins, packed and unpacked.

LZ4's block format: a token, literals, an offset, a match (`doc/lz4_Block_format.md` of the LZ4 project).
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Final

from twinlock.core import limits
from twinlock.core.payload.libraries import LZ4_HISTORY_BYTES_MAX, lz4_pack
from twinlock.core.payload.program import LZ4, Pack

# Where a piece ends the compressor must not see an end: it looks ahead, rarely far.
_AHEAD_BYTES: Final = (4096, 65536)
# A sequence begins with a clean state most of the time; how many to go back for one that does.
_BACK_MAX: Final = 48
_TRIAL_SEQUENCES: Final = 64
# Bytes that shrink to a sixth take longest to pack, and few bytes to send packed; so many of them or more.
_DENSE_FACTOR: Final = 6
_DENSE_BYTES_MIN: Final = 128 * limits.KIB
_STRETCH_BYTES: Final = 64 * limits.KIB


@dataclass(frozen=True, slots=True)
class Sequences:
    """Starts of a block's sequences in its packed and its unpacked bytes; the ends come last."""

    packed: array[int]
    plain: array[int]


def sequences(packed: bytes) -> Sequences | None:
    """None when the bytes are no LZ4 block."""
    packed_starts, plain_starts = array("I"), array("I")
    position = plain = 0
    size = len(packed)
    try:
        while position < size:
            packed_starts.append(position)
            plain_starts.append(plain)
            token = packed[position]
            position += 1
            literals = token >> 4
            if literals == 15:
                while (byte := packed[position]) == 255:
                    literals += 255
                    position += 1
                literals += byte
                position += 1
            position += literals
            plain += literals
            if position >= size:
                break
            position += 2
            match = (token & 15) + 4
            if match == 19:
                while (byte := packed[position]) == 255:
                    match += 255
                    position += 1
                match += byte
                position += 1
            plain += match
    except IndexError:
        return None
    if position != size:
        return None
    packed_starts.append(size)
    plain_starts.append(plain)
    return Sequences(packed_starts, plain_starts)


@dataclass(frozen=True, slots=True)
class Piece:
    """`take` packed bytes come from the block's unpacked bytes `start` to `end`, packed as `pack` says.

    `matches` is where in these the packed bytes' sequences begin.
    """

    start: int
    end: int
    pack: Pack
    matches: array[int]


class PackedBlock:
    """A block of an image, its unpacked bytes, and the library that reproduces it."""

    def __init__(self, packed: bytes, plain: bytes, level: int, version: str) -> None:
        self.packed = packed
        self.plain = plain
        self._level = level
        self._version = version

    @cached_property
    def _sequences(self) -> Sequences:
        """Found when first needed: it takes seconds for each block."""
        return sequences(self.packed) or Sequences(array("I", [0]), array("I", [0]))

    def pieces(self, start: int, end: int) -> Iterator[Piece | tuple[int, int]]:
        """The packed bytes `start` to `end` as pieces in order; (start, end) where none reproduces them."""
        if start >= end:
            return
        if self._sequences.plain[-1] != len(self.plain):  # not the block that unpacks to these bytes
            yield start, end
            return
        for low, high, dense in self._by_density(start, end):
            if dense:
                yield low, high
            else:
                yield from self._packed_again(low, high)

    def _by_density(self, start: int, end: int) -> list[tuple[int, int, bool]]:
        """(start, end, whether they unpack to many times their size) of longer stretches of packed bytes."""
        stretches = [
            (size >= _DENSE_FACTOR * (high - low), low, high, size)
            for low, high, size in self._stretches(start, end)
        ]
        found: list[tuple[int, int, bool]] = []
        for is_dense, group in groupby(stretches, key=lambda stretch: stretch[0]):
            members = list(group)
            dense = is_dense and sum(size for _, _, _, size in members) >= _DENSE_BYTES_MIN
            low, high = members[0][1], members[-1][2]
            if found and found[-1][2] == dense:
                low = found.pop()[0]
            found.append((low, high, dense))
        return found

    def _stretches(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(start, end, about what they unpack to) of stretches that unpack to about `_STRETCH_BYTES`."""
        packed, plain = self._sequences.packed, self._sequences.plain
        index, last = bisect.bisect_left(packed, start), bisect.bisect_left(packed, end)
        while start < end:
            following = min(bisect.bisect_left(plain, plain[index] + _STRETCH_BYTES, index + 1), last)
            stop = end if following == last else packed[following]
            yield start, stop, plain[following] - plain[index]
            start, index = stop, following

    def _packed_again(self, start: int, end: int) -> Iterator[Piece | tuple[int, int]]:
        piece = self._piece(start, end)
        if piece is not None:
            yield piece
            return
        middle = self._middle(start, end)
        if middle is None:
            yield start, end
            return
        yield from self._packed_again(start, middle)
        yield from self._packed_again(middle, end)

    def _middle(self, start: int, end: int) -> int | None:
        """A place between sequences, about halfway by unpacked size; None when the stretch is too small."""
        packed, plain = self._sequences.packed, self._sequences.plain
        low, high = bisect.bisect_right(packed, start), bisect.bisect_left(packed, end)
        if high - low < 64:
            return None
        target = (plain[low] + plain[high]) // 2
        index = min(max(bisect.bisect_left(plain, target), low + 1), high - 1)
        return packed[index]

    def _piece(self, start: int, end: int) -> Piece | None:
        packed, plain = self._sequences.packed, self._sequences.plain
        last = bisect.bisect_left(packed, end)
        first = bisect.bisect_right(packed, start) - 1
        for index in range(first, max(first - _BACK_MAX, -1), -1):
            begin = plain[index]
            history = min(begin, LZ4_HISTORY_BYTES_MAX)
            if plain[last] - begin + history + _AHEAD_BYTES[0] > limits.PLAIN_SIZE_BYTES_MAX:
                return None
            if not self._agrees(index, begin, history):
                continue
            for ahead in _AHEAD_BYTES:
                finish = min(plain[last] + ahead, len(self.plain))
                skip = start - packed[index]
                if self._packs(begin, history, finish, skip, self.packed[start:end]):
                    pack = Pack(
                        LZ4, self._level, self._version, history, history, finish - begin, skip, end - start
                    )
                    low = begin - history
                    matches = array("I", [place - low for place in plain[index:last]])
                    return Piece(low, finish, pack, matches)
        return None

    def _agrees(self, index: int, begin: int, history: int) -> bool:
        """Whether packing from this sequence on begins as the block goes on; a short trial."""
        packed, plain = self._sequences.packed, self._sequences.plain
        last = min(index + _TRIAL_SEQUENCES, len(packed) - 1)
        finish = min(plain[last] + _AHEAD_BYTES[0], len(self.plain))
        return self._packs(begin, history, finish, 0, self.packed[packed[index] : packed[last]])

    def _packs(self, begin: int, history: int, finish: int, skip: int, wanted: bytes) -> bool:
        text = bytearray(self.plain[begin - history : finish])
        packed = lz4_pack(text, history, history, finish - begin, self._level)
        return packed is not None and packed[skip : skip + len(wanted)] == wanted
