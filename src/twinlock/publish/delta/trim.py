"""Leaving out of a window what no cover uses: a device reads no more of its base than it needs."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Final

from twinlock.publish.delta.covers import Cover
from twinlock.publish.delta.model import Ref

# Unused stretches below this stay: a range costs bytes, and media are read in pages anyway.
GAP_BYTES_MIN: Final = 4096


def trimmed(refs: Sequence[Ref], covers: list[Cover]) -> tuple[list[Ref], list[Cover]]:
    """The refs that the covers use, and the covers with their places in the smaller window."""
    smaller: list[Ref] = []
    starts: list[int] = []  # of kept stretches, in the old window
    shifts: list[int] = []  # what to take from a place in them
    taken = 0
    for place, length in _used(covers):
        starts.append(place)
        shifts.append(place - taken)
        taken += length
        for ref in _intersection(refs, place, length):
            if smaller and smaller[-1].block == ref.block and smaller[-1].end == ref.offset:
                smaller[-1] = Ref(ref.block, smaller[-1].offset, smaller[-1].length + ref.length)
            else:
                smaller.append(ref)
    moved = [
        cover._replace(place=cover.place - shifts[bisect.bisect_right(starts, cover.place) - 1])
        for cover in covers
    ]
    return smaller, moved


def _used(covers: list[Cover]) -> list[tuple[int, int]]:
    """(place, length) of the window's stretches that covers lie in, small gaps filled."""
    used: list[tuple[int, int]] = []
    for cover in sorted(covers):
        if used and cover.place < sum(used[-1]) + GAP_BYTES_MIN:
            place, length = used[-1]
            used[-1] = (place, max(length, cover.place + cover.length - place))
        else:
            used.append((cover.place, cover.length))
    return used


def _intersection(refs: Sequence[Ref], place: int, length: int) -> list[Ref]:
    """What the window's `length` bytes at `place` come from."""
    found = []
    position = 0
    for ref in refs:
        low, high = max(place, position), min(place + length, position + ref.length)
        if low < high:
            found.append(ref.cut(low - position, high - low))
        position += ref.length
        if position >= place + length:
            break
    return found
