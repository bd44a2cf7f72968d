"""Addresses in code of 32-bit ARM, found and moved: what both instruction sets share, and A32, the older one.

Of A32 (Arm Architecture Reference Manual, ARMv7-A, chapter A8): B, BL and BLX to an address, whatever their
condition; and literals. Code that runs at any address keeps, between its functions, words that are relative
to the instruction that adds the program counter to them (ADD Rd, PC, Rm or LDR Rd, [PC, Rm]); the last load
of that register relative to the program counter (LDR Rm, [PC, #n]) says which word, and serves once.

What is moved has its target within the map. There is no disassembler: what looks like one of these is one.
Code is taken in chunks of `CHUNK_BYTES`, each as it is when its turn comes. Instructions are found as in
`x86`, by arithmetic on one long number with a class for each of them.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import accumulate, count, repeat
from operator import add
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from twinlock.core.payload.fields import Field, Shifts

CHUNK_BYTES: Final = 64 * 1024
LITERAL_BYTES: Final = 4
_KNOWN_MAX: Final = 1 << 14  # a MiB of memory
_MASK32: Final = 0xFFFFFFFF
_NEVER: Final = 1 << 64  # above every address
LOAD: Final = struct.Struct("<I").unpack_from
STORE: Final = struct.Struct("<I").pack_into

# By the highest byte of an instruction: a branch; with the next one: a load of a literal, or an addition.
_BRANCHES: Final = bytes(byte & 0x0E == 0x0A for byte in range(256))
_LITERALS_HIGHEST: Final = bytes(byte in b"\xe0\xe5\xe7" for byte in range(256))
_LITERALS_HIGHER: Final = bytes(byte in b"\x1f\x8f\x9f" for byte in range(256))
_PC_AHEAD_BYTES: Final = 8
_ADDITIONS: Final = (0xE08F0000, 0xE79F0000)  # ADD Rd, PC, Rm; LDR Rd, [PC, Rm]
_WITHOUT_CONDITION: Final = 0xF  # in its place: a BLX, whose bit 24 is a halfword more
_REACH_BYTES: Final = 1 << 25


class KnownShifts(dict[int, int]):
    """Shifts of targets, most of which are referred to again and again; None for those outside the map."""

    def __init__(self, shifts: Shifts) -> None:
        super().__init__()
        self._starts, self._moves = shifts.starts, shifts.shifts
        self._low, self._high = shifts.starts[0], shifts.starts[-1]

    def find(self, target: int) -> int | None:
        """The shift of a target that is not known yet."""
        if not self._low <= target < self._high:
            return None
        if len(self) == _KNOWN_MAX:
            self.clear()
        shift = self[target] = self._moves[bisect_right(self._starts, target)]
        return shift


def stretch(shifts: Shifts, address: int) -> tuple[int, int]:
    """(how far an address moves, the first one behind it that moves otherwise)"""
    index = bisect_right(shifts.starts, address)
    return shifts.shifts[index], shifts.starts[index] if index < len(shifts.starts) else _NEVER


def chunks(window: bytearray, field: Field, width: int, behind_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(address, bytes) of a field's chunks, whole instructions of `width`; `behind_bytes` of the next too."""
    length = field.length // width * width
    for begin in range(0, length, CHUNK_BYTES):
        start = field.place + begin
        end = field.place + min(begin + CHUNK_BYTES + behind_bytes, length)
        yield field.address + begin, bytes(memoryview(window)[start:end])


def marked(number: int, size: int, width: int) -> list[int]:
    """Where bytes of a number are 1 and not 0, ascending, times `width`."""
    between = number.to_bytes(size, "little").split(b"\1")
    ends = list(map(add, accumulate(map(len, between)), count()))
    del ends[-1]
    return [width * end for end in ends]


def move_a32(window: bytearray, field: Field, shifts: Shifts) -> None:
    """Moves the branches of a field of A32 code, in place."""
    targets = KnownShifts(shifts)
    place = field.place - field.address
    shift = behind = 0
    for first, code in chunks(window, field, 4, 0):
        highest = int.from_bytes(code[3::4].translate(_BRANCHES), "little")
        found = marked(highest, len(code) // 4, 4)
        for at, (word,) in zip(found, map(LOAD, repeat(code), found), strict=True):
            own = first + at
            if own >= behind:
                shift, behind = stretch(shifts, own)
            offset = (word & 0xFFFFFF ^ 0x800000) - 0x800000 << 2
            half = word >> 23 & 2 if word >> 28 == _WITHOUT_CONDITION else 0
            target = own + _PC_AHEAD_BYTES + offset + half
            to = targets.get(target)
            if to is None:
                to = targets.find(target)
            if to is None or to == shift:
                continue
            offset += to - shift
            if not offset & 3 and -_REACH_BYTES <= offset < _REACH_BYTES:
                STORE(window, own + place, word & 0xFF000000 | offset >> 2 & 0xFFFFFF)


def move_a32_literals(window: bytearray, field: Field, shifts: Shifts) -> None:
    """Moves the literals of a field of A32 code, in place."""
    move_literals(window, field, shifts, _literals(window, field))


def _literals(window: bytearray, field: Field) -> Iterator[tuple[int, int]]:
    """(address of a literal, program counter that is added to it), in the order of the additions."""
    held = [-1] * 16
    for first, code in chunks(window, field, 4, 0):
        found = int.from_bytes(code[3::4].translate(_LITERALS_HIGHEST), "little")
        found &= int.from_bytes(code[2::4].translate(_LITERALS_HIGHER), "little")
        ats = marked(found, len(code) // 4, 4)
        bases = map((first + _PC_AHEAD_BYTES).__add__, ats)
        for base, (word,) in zip(bases, map(LOAD, repeat(code), ats), strict=True):
            top = word >> 16
            if top == 0xE59F:
                held[word >> 12 & 15] = base + (word & 0xFFF)
            elif top == 0xE51F:
                held[word >> 12 & 15] = base - (word & 0xFFF)
            elif word & 0xFFFF0FF0 in _ADDITIONS:
                register = word & 15
                yield held[register], base
                held[register] = -1


def move_literals(
    window: bytearray, field: Field, shifts: Shifts, literals: Iterable[tuple[int, int]]
) -> None:
    """Moves literals, given as (address, what is added to it); the latter ascends."""
    low, high, starts, moves = shifts.starts[0], shifts.starts[-1], shifts.starts, shifts.shifts
    place = field.place - field.address
    begin, last = field.address, field.address + field.length - LITERAL_BYTES
    shift = behind = 0
    for at, base in literals:
        if not begin <= at <= last:
            continue
        (word,) = LOAD(window, at + place)
        target = word + base & _MASK32
        if not low <= target < high:
            continue
        if base >= behind:
            shift, behind = stretch(shifts, base)
        change = moves[bisect_right(starts, target)] - shift
        if change:
            STORE(window, at + place, word + change & _MASK32)
