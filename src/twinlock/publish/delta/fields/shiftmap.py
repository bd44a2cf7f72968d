"""Maps from old addresses to shifts, with arithmetic over whole columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinlock.core.payload.fields import Shifts

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShiftMap:
    """From `starts[i]` on addresses move by `shifts[i]`; nothing moves before the first and from `end` on."""

    starts: Integers
    shifts: Integers
    end: int

    def of(self, addresses: Integers) -> Integers:
        """The shift of each address."""
        if not len(self.starts):
            return np.zeros(len(addresses), np.int64)
        index = np.searchsorted(self.starts, addresses, side="right") - 1
        known = (index >= 0) & (addresses < self.end)
        return np.where(known, self.shifts[np.maximum(index, 0)], 0)

    def holds(self, addresses: Integers) -> NDArray[np.bool_]:
        """Which addresses lie within the map."""
        if not len(self.starts):
            return np.zeros(len(addresses), np.bool_)
        inside: NDArray[np.bool_] = (addresses >= self.starts[0]) & (addresses < self.end)
        return inside

    def core(self) -> Shifts:
        """The map as the decoder has it."""
        return Shifts([*self.starts.tolist(), self.end], [0, *self.shifts.tolist(), 0])


def from_events(starts: Integers, shifts: Integers, end: int) -> ShiftMap:
    """A map from (address, shift) events in any order; of several at one address the last given counts."""
    order = np.argsort(starts, kind="stable")
    starts, shifts = starts[order], shifts[order]
    last = np.append(starts[1:] != starts[:-1], True)
    starts, shifts = starts[last], shifts[last]
    changes = np.append(True, shifts[1:] != shifts[:-1]) if len(starts) else np.zeros(0, np.bool_)
    return ShiftMap(starts[changes], shifts[changes], end)
