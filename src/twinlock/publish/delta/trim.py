"""Leaving out of a window what no cover uses: a device reads no more of its base than it needs."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Final

from twinlock.publish.delta.covers import Cover
from twinlock.publish.delta.references import Range

# Unused stretches below this stay: a range costs bytes, and media are read in pages anyway.
GAP_BYTES_MIN: Final = 4096


def trimmed(ranges: Sequence[Range], covers: list[Cover]) -> tuple[list[Range], list[Cover]]:
    """The ranges that the covers use, and the covers with their places in the smaller window."""
    kept = _used(covers)
    smaller: list[Range] = []
    starts: list[int] = []  # of kept stretches, in the old window
    shifts: list[int] = []  # what to take from a place in them
    taken = 0
    for place, length in kept:
        starts.append(place)
        shifts.append(place - taken)
        taken += length
        for offset, part in _intersection(ranges, place, length):
            if smaller and sum(smaller[-1]) == offset:
                smaller[-1] = (smaller[-1][0], smaller[-1][1] + part)
            else:
                smaller.append((offset, part))
    moved = [
        cover._replace(place=cover.place - shifts[bisect.bisect_right(starts, cover.place) - 1])
        for cover in covers
    ]
    return smaller, moved


def _used(covers: list[Cover]) -> list[Range]:
    """Stretches of the window that covers lie in, small gaps filled."""
    used: list[Range] = []
    for cover in sorted(covers):
        if used and cover.place < sum(used[-1]) + GAP_BYTES_MIN:
            place, length = used[-1]
            used[-1] = (place, max(length, cover.place + cover.length - place))
        else:
            used.append((cover.place, cover.length))
    return used


def _intersection(ranges: Sequence[Range], place: int, length: int) -> list[Range]:
    """The base's ranges that the window's `length` bytes at `place` come from."""
    found = []
    position = 0
    for offset, part in ranges:
        low, high = max(place, position), min(place + length, position + part)
        if low < high:
            found.append((offset + low - position, high - low))
        position += part
        if position >= place + length:
            break
    return found
