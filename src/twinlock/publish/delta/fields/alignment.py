"""Which bytes of an older section became which of a newer one: the main line of what covers find."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from twinlock.publish.delta.covers import Cover, find_covers

Integers = NDArray[np.int64]
COVER_LENGTH_MIN: Final = 32
MOVED_LENGTH_MIN: Final = 96  # for covers that leave the order: a function that was moved


@dataclass(frozen=True, slots=True)
class Alignment:
    """Stretches in the order of the older section, disjoint there: old starts, new starts, lengths."""

    old: Integers
    new: Integers
    lengths: Integers

    def new_places(self, places: Integers) -> Integers:
        """Where old places are now; -1 for places that no stretch has."""
        if not len(self.old):
            return np.full(len(places), -1, np.int64)
        index = np.searchsorted(self.old, places, side="right") - 1
        safe = np.maximum(index, 0)
        inside = (index >= 0) & (places < self.old[safe] + self.lengths[safe])
        return np.where(inside, places + self.new[safe] - self.old[safe], -1)


def align(old: bytes, new: bytes) -> Alignment:
    """The heaviest chain of covers that ascends in both sections, and between its links what was moved.

    An equal section is one stretch.
    """
    if old == new:
        found = [Cover(0, 0, len(new))] if new else []
    else:
        covers = [cover for cover in find_covers(old, new) if cover.length >= COVER_LENGTH_MIN]
        chain = _chain(covers)
        found = _with_moved(chain, [cover for cover in covers if cover.length >= MOVED_LENGTH_MIN])
    columns = np.array([tuple(cover) for cover in found], np.int64).reshape(-1, 3)
    return Alignment(columns[:, 0], columns[:, 1], columns[:, 2])


def _chain(covers: list[Cover]) -> list[Cover]:
    """A Fenwick tree over new starts holds the heaviest chain that ends at or before each."""
    ordered = sorted(covers)
    ranks = {start: rank for rank, start in enumerate(sorted({cover.start for cover in covers}), 1)}
    tree = [(0, -1)] * (len(ranks) + 1)
    before = [-1] * len(ordered)
    best = (0, -1)
    for index, cover in enumerate(ordered):
        rank = ranks[cover.start] - 1
        weight, before[index] = 0, -1
        while rank > 0:
            if tree[rank] > (weight, before[index]):
                weight, before[index] = tree[rank]
            rank -= rank & -rank
        found = (weight + cover.length, index)
        rank = ranks[cover.start]
        while rank < len(tree):
            tree[rank] = max(tree[rank], found)
            rank += rank & -rank
        best = max(best, found)
    chain = []
    index = best[1]
    while index >= 0:
        chain.append(ordered[index])
        index = before[index]
    chain.reverse()
    return _disjoint(chain)


def _disjoint(chain: list[Cover]) -> list[Cover]:
    """Ascending starts do not keep stretches from overlapping: the later one gives way."""
    kept: list[Cover] = []
    old_end = new_end = 0
    for cover in chain:
        late = max(old_end - cover.place, new_end - cover.start, 0)
        if cover.length > late:
            kept.append(Cover(cover.place + late, cover.start + late, cover.length - late))
            old_end, new_end = cover.place + cover.length, cover.start + cover.length
    return kept


def _with_moved(chain: list[Cover], covers: list[Cover]) -> list[Cover]:
    """The chain, and of the covers, longest first, those that lie between what is taken already."""
    taken = sorted(chain)
    starts = [cover.place for cover in taken]
    for cover in sorted(covers, key=lambda cover: (-cover.length, cover.place)):
        index = bisect.bisect_right(starts, cover.place)
        low = taken[index - 1].place + taken[index - 1].length if index else 0
        high = starts[index] if index < len(starts) else cover.place + cover.length
        if low <= cover.place and cover.place + cover.length <= high:
            taken.insert(index, cover)
            starts.insert(index, cover.place)
    return taken
