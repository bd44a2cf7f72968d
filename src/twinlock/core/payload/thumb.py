"""Addresses in T32 code ("Thumb-2"), as most 32-bit ARM programs have it, found and moved.

Branches of two halfwords (Arm Architecture Reference Manual, ARMv7-A, chapter A8): BL (encoding T1), BLX
(T2), B (T4), and B with a condition (T3) unless its target is within 4 KiB or so: that one moves along.
Literals as `arm` has them: LDR Rt, [PC, #n] (T1; T2 forwards) loads one, ADD Rd, PC (T2) makes it an address.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Final

from twinlock.core.payload.arm import (
    CHUNK_BYTES,
    LOAD,
    STORE,
    KnownShifts,
    chunks,
    marked,
    move_literals,
    stretch,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.core.payload.fields import Field, Shifts

_PC_AHEAD_BYTES: Final = 4
_BEHIND_BYTES: Final = 2

# Classes by a halfword's high byte: the first half of a branch, the second of a long or a conditional one.
_FIRST, _LONG, _CONDITIONAL = 1, 2, 4
_BRANCHES: Final = bytes(
    _FIRST * (byte & 0xF8 == 0xF0)
    | _LONG * (byte & 0x80 != 0 and byte & 0x50 != 0)
    | _CONDITIONAL * (byte & 0xD0 == 0x80)
    for byte in range(256)
)
# By its low byte: a condition's branch that goes far.
_FAR: Final = bytes(byte & 0x3F not in (0, 0x3F) for byte in range(256))
# Both bytes: loads of literals, short and wide, and additions.
_LOAD, _WIDE, _ADD = 1, 2, 4
_LITERALS_HIGH: Final = bytes(
    _LOAD * (byte & 0xF8 == 0x48) | _WIDE * (byte == 0xF8) | _ADD * (byte == 0x44) for byte in range(256)
)
_LITERALS_LOW: Final = bytes(
    _LOAD | _WIDE * (byte == 0xDF) | _ADD * (byte & 0x78 == 0x78) for byte in range(256)
)
_ONES: Final = int.from_bytes(b"\1" * (CHUNK_BYTES // 2), "little")

# A branch as one number, its second half the high one.
_NEAR: Final = 0x28000000  # J1 and J2, both 1 when the target is within 4 MiB
_NEAR_BYTES: Final = 1 << 22
# The upper part of a near branch's offset by its lower halfword.
_HIGH: Final = [(bits ^ 0x400) - 0x400 << 12 for bits in range(0x800)]
_FORM: Final = 0x50000000  # 0 with a condition
_EXCHANGE: Final = 0x40000000  # a BLX, which counts from a multiple of four
_LONG_BYTES: Final = 1 << 24
_CONDITIONAL_BYTES: Final = 1 << 20
_NO_CONDITION: Final = 0x380  # in a condition's place: other instructions


def move_t32(window: bytearray, field: Field, shifts: Shifts) -> None:
    """Moves the branches of a field of T32 code, in place."""
    targets = KnownShifts(shifts)
    known = targets.get
    place = field.place - field.address
    shift = behind = 0
    for first, code in chunks(window, field, 2, _BEHIND_BYTES):
        found = _branches(code)
        for at, (word,) in zip(found, map(LOAD, repeat(code), found), strict=True):
            own = first + at
            if own >= behind:
                shift, behind = stretch(shifts, own)
            form, near = word & _FORM, word & _NEAR == _NEAR
            if form == _EXCHANGE:
                base, after, odd = own + _PC_AHEAD_BYTES & -4, own + _PC_AHEAD_BYTES + shift & -4, 3
            elif form or word & _NO_CONDITION != _NO_CONDITION:
                base, after, odd = own + _PC_AHEAD_BYTES, own + _PC_AHEAD_BYTES + shift, 1
            else:
                continue
            offset = _HIGH[word & 0x7FF] + (word >> 15 & 0xFFE) if form and near else _offset(word)
            to = known(base + offset)
            if to is None:
                to = targets.find(base + offset)
                if to is None:
                    continue
            moved = base + offset + to - after
            if moved == offset or moved & odd:
                continue
            if form and near and -_NEAR_BYTES <= moved < _NEAR_BYTES:
                bits = moved >> 12 & 0x7FF | (moved & 0xFFE) << 15
                STORE(window, own + place, word & 0xF800F800 | bits)
            else:
                _store_far(window, own + place, word, moved)


def _branches(code: bytes) -> list[int]:
    """Where branches start, ascending."""
    high = code[1::2]
    known = int.from_bytes(high.translate(_BRANCHES), "little")
    far = int.from_bytes(code[0::2].translate(_FAR), "little")
    return marked(known & (known >> 9 | known >> 10 & far) & _ONES, len(high), 2)


def _offset(word: int) -> int:
    """How far behind its base a branch with any J bits goes, in bytes."""
    sign, j1, j2 = word >> 10 & 1, word >> 29 & 1, word >> 27 & 1
    if word & _FORM:
        high = (1 ^ j1 ^ sign) << 23 | (1 ^ j2 ^ sign) << 22 | (word & 0x3FF) << 12
        return (high | word >> 15 & 0xFFE) - (sign << 24)
    return (j2 << 19 | j1 << 18 | (word & 0x3F) << 12 | word >> 15 & 0xFFE) - (sign << 20)


def _store_far(window: bytearray, place: int, word: int, offset: int) -> None:
    """Gives a branch another offset, unless that is beyond its reach."""
    sign, low = offset >> 24 & 1, (offset & 0xFFE) << 15
    if word & _FORM:
        if -_LONG_BYTES <= offset < _LONG_BYTES:
            j1, j2 = 1 ^ offset >> 23 & 1 ^ sign, 1 ^ offset >> 22 & 1 ^ sign
            high = j1 << 29 | j2 << 27 | sign << 10 | offset >> 12 & 0x3FF
            STORE(window, place, word & 0xD000F800 | high | low)
    elif -_CONDITIONAL_BYTES <= offset < _CONDITIONAL_BYTES:
        high = (offset >> 18 & 1) << 29 | (offset >> 19 & 1) << 27 | sign << 10 | offset >> 12 & 0x3F
        STORE(window, place, word & 0xD000FBC0 | high | low)


def move_t32_literals(window: bytearray, field: Field, shifts: Shifts) -> None:
    """Moves the literals of a field of T32 code, in place."""
    move_literals(window, field, shifts, _literals(window, field))


def _literals(window: bytearray, field: Field) -> Iterator[tuple[int, int]]:
    """(address of a literal, program counter that is added to it), in the order of the additions."""
    held = [-1] * 16
    for first, code in chunks(window, field, 2, _BEHIND_BYTES):
        high = code[1::2]
        both = int.from_bytes(high.translate(_LITERALS_HIGH), "little")
        both &= int.from_bytes(code[0::2].translate(_LITERALS_LOW), "little")
        found = marked((both | both >> 1 | both >> 2) & _ONES, len(high), 2)
        while found and found[-1] > len(code) - 4:
            del found[-1]
        bases = map((first + _PC_AHEAD_BYTES).__add__, found)
        for base, (word,) in zip(bases, map(LOAD, repeat(code), found), strict=True):
            if word & 0x8000:
                held[word >> 28] = (base & -4) + (word >> 16 & 0xFFF)
            elif word & 0x800:
                held[word >> 8 & 7] = (base & -4) + ((word & 0xFF) << 2)
            else:
                register = word & 7 | word >> 4 & 8
                yield held[register], base
                held[register] = -1
