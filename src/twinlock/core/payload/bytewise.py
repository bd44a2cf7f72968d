"""Adding differences to a text, byte by byte, by bsdiff4's compiled patching.

Its `patch` makes bytes from a control block of triples (add x bytes, insert y, skip z of the source), as
Colin Percival's bsdiff has them; here nothing is inserted. What it makes are the changed stretches alone, one
behind the other. It takes `bytes` only, so a text goes there in pieces of `PIECE_SIZE_BYTES`, not at once.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from itertools import accumulate
from operator import add
from typing import Final

from bsdiff4 import core

PIECE_SIZE_BYTES: Final = 256 * 1024
_BIG: Final = sys.byteorder == "big"


def add_runs(
    text: memoryview, gaps: array[int], lengths: array[int], differences: bytes | memoryview
) -> None:
    """text[i] = (text[i] + difference) % 256 in runs: for each `gap` bytes left as they are, then `length`.

    The runs lie within the text, and `differences` has a byte for each of theirs: whoever calls has checked.
    """
    gaps, lengths = _cut(gaps, lengths)
    ends = list(accumulate(map(add, gaps, lengths)))
    first = read = 0
    while first < len(ends):
        begin = ends[first] - lengths[first]
        last = bisect_right(ends, begin + PIECE_SIZE_BYTES, first + 1)
        size = sum(lengths[first:last])
        source, added = bytes(text[begin : ends[last - 1]]), bytes(differences[read : read + size])
        sums: bytes = core.patch(source, size, _control(gaps, lengths, first, last), added, b"")
        sums_view = memoryview(sums)
        position = 0
        for end, length in zip(ends[first:last], lengths[first:last], strict=True):
            text[end - length : end] = sums_view[position : position + length]
            position += length
        first = last
        read += size


def _cut(gaps: array[int], lengths: array[int]) -> tuple[array[int], array[int]]:
    """The runs, none longer than a piece."""
    if max(lengths, default=0) <= PIECE_SIZE_BYTES:
        return gaps, lengths
    shorter = array("Q"), array("Q")
    for gap, length in zip(gaps, lengths, strict=True):
        for start in range(0, max(length, 1), PIECE_SIZE_BYTES):
            shorter[0].append(0 if start else gap)
            shorter[1].append(min(PIECE_SIZE_BYTES, length - start))
    return shorter


def _control(gaps: array[int], lengths: array[int], first: int, last: int) -> bytes:
    """Triples of a run's length, 0, and the gap behind it, as little-endian numbers of 8 bytes."""
    control = array("Q", bytes(24 * (last - first)))
    control[0::3] = lengths[first:last]
    control[2:-1:3] = gaps[first + 1 : last]
    if _BIG:
        control.byteswap()
    return control.tobytes()
