"""Votes: where branches say that their targets went.

A branch at an aligned place has a target in the older file and one in the newer; together they say how far
that target moved. The majority of a target's votes beats what the alignment alone says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from twinlock.core.payload.fields import Kind
from twinlock.publish.delta.fields.alignment import Alignment
from twinlock.publish.delta.fields.elf import MACHINE_ARM, MACHINE_ARM64, MACHINE_X86_64
from twinlock.publish.delta.fields.shiftmap import Integers

Bytes = NDArray[np.uint8]
Pairs = tuple[Integers, Integers]  # old and new targets
# The instruction sets that a machine's code may be of.
MACHINES: Final = {
    MACHINE_X86_64: (Kind.X86,),
    MACHINE_ARM64: (Kind.ARM64,),
    MACHINE_ARM: (Kind.T32, Kind.A32),
}
VOTES_MIN: Final = 2
_FAR: Final = 1 << 26  # further than any target moved
_SHIFT_BITS: Final = 27


@dataclass(frozen=True, slots=True)
class Code:
    """An executable section before and after: bytes and the addresses of their first ones."""

    old: Bytes
    new: Bytes
    old_address: int
    new_address: int
    alignment: Alignment


@dataclass(frozen=True, slots=True)
class Votes:
    """Targets in the older file, and the shift that most of their branches saw."""

    targets: Integers
    shifts: Integers


def instructions(machine: int, code: Code, low: int, high: int) -> Kind | None:
    """The instruction set of a section: the one that has most branches to between `low` and `high`."""
    kinds = MACHINES.get(machine, ())
    if len(kinds) < 2:
        return kinds[0] if kinds else None

    def branches(kind: Kind) -> int:
        return sum(int(((targets >= low) & (targets < high)).sum()) for targets in _PAIRS[kind](code))

    return max(kinds, key=branches)


def votes(codes: Sequence[tuple[Kind, Code]], low: int, high: int) -> Votes:
    """Votes of all branches between `low` and `high`; only targets with `VOTES_MIN` that agree."""
    pairs = [_PAIRS[kind](code) for kind, code in codes]
    if not pairs:
        return Votes(np.zeros(0, np.int64), np.zeros(0, np.int64))
    targets = np.concatenate([old for old, _ in pairs])
    shifts = np.concatenate([new for _, new in pairs]) - targets
    known = (targets >= low) & (targets < high) & (np.abs(shifts) < _FAR)
    # a target and its shift as one number: sorting these is several times as fast as sorting pairs
    ballots, counts = np.unique((targets[known] << _SHIFT_BITS) + shifts[known] + _FAR, return_counts=True)
    targets, shifts = ballots >> _SHIFT_BITS, (ballots & (1 << _SHIFT_BITS) - 1) - _FAR
    order = np.lexsort((-counts, targets))
    targets, shifts, counts = targets[order], shifts[order], counts[order]
    first = np.append(True, targets[1:] != targets[:-1]) if len(targets) else np.zeros(0, np.bool_)
    chosen = first & (counts >= VOTES_MIN)
    return Votes(targets[chosen], shifts[chosen])


def words_at(data: Bytes, places: Integers) -> Integers:
    """The signed little endian 32-bit numbers at the places."""
    found = np.zeros(len(places), np.uint32)
    for index in range(4):
        found |= data[places + index].astype(np.uint32) << np.uint32(8 * index)
    return found.view(np.int32).astype(np.int64)


def _pairs_x86(code: Code) -> Pairs:
    """Old and new targets of the displacements that look alike on both sides."""
    old = code.old
    if len(old) < 8 or len(code.new) < 8:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    call = np.flatnonzero((old[:-5] & 0xFE) == 0xE8) + 1
    jump = np.flatnonzero((old[:-6] == 0x0F) & ((old[1:-5] & 0xF0) == 0x80)) + 2
    relative = np.flatnonzero((old[1:-5] & 0xC7) == 0x05) + 2
    marked = np.zeros(len(old), np.bool_)
    for found in (call, jump, relative):
        marked[found] = True
    places = np.flatnonzero(marked[: len(old) - 3])
    moved = code.alignment.new_places(places)
    good = (moved >= 2) & (moved + 4 <= len(code.new))
    places, moved = places[good], moved[good]
    same = (old[places - 1] == code.new[moved - 1]) & (old[places - 2] == code.new[moved - 2])
    places, moved = places[same], moved[same]
    before = code.old_address + places + 4 + words_at(old, places)
    after = code.new_address + moved + 4 + words_at(code.new, moved)
    return before, after


def _pairs_arm64(code: Code) -> Pairs:
    size = len(code.old) // 4 * 4
    words = code.old[:size].view("<u4")
    places = np.flatnonzero((words & 0x7C000000) == 0x14000000) * 4
    moved = code.alignment.new_places(places)
    good = (moved >= 0) & (moved % 4 == 0) & (moved + 4 <= len(code.new))
    places, moved = places[good], moved[good]
    old, new = words_at(code.old, places), words_at(code.new, moved)
    same = (old ^ new) & 0xFC000000 == 0
    places, moved, old, new = places[same], moved[same], old[same], new[same]
    return code.old_address + places + _offset(old), code.new_address + moved + _offset(new)


def _offset(words: Integers) -> Integers:
    """Signed byte offsets of B and BL."""
    return ((words & 0x3FFFFFF) - ((words & 0x2000000) << 1)) * 4


def _pairs_a32(code: Code) -> Pairs:
    """B, BL and BLX; the bit that a BLX has for a halfword more stays as it is in most of them."""
    size = len(code.old) // 4 * 4
    words = code.old[:size].view("<u4")
    places = np.flatnonzero((words & 0x0E000000) == 0x0A000000) * 4
    moved = code.alignment.new_places(places)
    good = (moved >= 0) & (moved % 4 == 0) & (moved + 4 <= len(code.new))
    places, moved = places[good], moved[good]
    old, new = words_at(code.old, places), words_at(code.new, moved)
    same = (old ^ new) & 0xFF000000 == 0
    places, moved, old, new = places[same], moved[same], old[same], new[same]
    return code.old_address + places + 8 + _near(old), code.new_address + moved + 8 + _near(new)


def _near(words: Integers) -> Integers:
    """Signed byte offsets of A32's branches."""
    return ((words & 0xFFFFFF) - ((words & 0x800000) << 1)) * 4


def _pairs_t32(code: Code) -> Pairs:
    """BL, BLX and B without a condition."""
    size = len(code.old) // 2 * 2
    halves = code.old[:size].view("<u2")
    first, second = halves[:-1], halves[1:]
    places = np.flatnonzero((first >> 11 == 0x1E) & (second & 0x8000 != 0) & (second & 0x5000 != 0)) * 2
    moved = code.alignment.new_places(places)
    good = (moved >= 0) & (moved % 2 == 0) & (moved + 4 <= len(code.new))
    places, moved = places[good], moved[good]
    old, new = words_at(code.old, places), words_at(code.new, moved)
    same = (old ^ new) & 0xD000F800 == 0
    places, moved, old, new = places[same], moved[same], old[same], new[same]
    return _target_t32(code.old_address + places, old), _target_t32(code.new_address + moved, new)


def _target_t32(addresses: Integers, words: Integers) -> Integers:
    """Targets of branches whose second halfword is the high one of a number."""
    sign, j1, j2 = words >> 10 & 1, words >> 29 & 1, words >> 27 & 1
    offset = (j1 ^ sign ^ 1) << 23 | (j2 ^ sign ^ 1) << 22 | (words & 0x3FF) << 12 | words >> 15 & 0xFFE
    base = addresses + 4
    targets: Integers = np.where(words & 0x10000000, base, base & -4) + offset - (sign << 24)
    return targets


_PAIRS: Final[dict[Kind, Callable[[Code], Pairs]]] = {
    Kind.X86: _pairs_x86,
    Kind.ARM64: _pairs_arm64,
    Kind.A32: _pairs_a32,
    Kind.T32: _pairs_t32,
}
