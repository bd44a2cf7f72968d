"""Operands of x86-64 code that are relative to the instruction behind them, found and moved.

Branches E8, E9 and 0F 8x, and instructions whose displacement is relative to the instruction pointer. There
is no disassembler: an operand is what follows one of these patterns, reaches at most 64 MiB, has its target
within the map, and does not begin inside the operand before it.

A window holds megabytes of code, and regular expressions were half of the time that it takes: the patterns
are found by arithmetic on one long number that holds a class for each byte of a chunk.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import accumulate, chain, count, repeat
from operator import add
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.core.payload.fields import Field, Shifts

_CHUNK_BYTES: Final = 64 * 1024
_BEHIND_BYTES: Final = 6  # what a pattern may need of the next chunk: two bytes and an operand
_OPERAND_BYTES: Final = 4
_MASK32: Final = 0xFFFFFFFF
_KNOWN_MAX: Final = 1 << 14  # a MiB of memory
_LOAD: Final = struct.Struct("<i").unpack_from
_STORE: Final = struct.Struct("<I").pack_into

# The class of a byte, one bit for each role that it may have.
_SINGLE, _SECOND, _FIRST, _HIGH = 1, 2, 4, 8
_SINGLES: Final = b"\xe8\xe9\x05\x0d\x15\x1d\x25\x2d\x35\x3d"  # before an operand, by themselves
_HIGHS: Final = b"\x00\x01\x02\x03\xfc\xfd\xfe\xff"  # an operand's last byte: at most 64 MiB either way
_CLASSES: Final = bytes(
    _SINGLE * (byte in _SINGLES)
    | _SECOND * (0x80 <= byte <= 0x8F)
    | _FIRST * (byte == 0x0F)
    | _HIGH * (byte in _HIGHS)
    for byte in range(256)
)
_ONES: Final = int.from_bytes(b"\1" * (_CHUNK_BYTES + _BEHIND_BYTES), "little")


def operands(code: bytes, size: int) -> list[int]:
    """Where operands may be, ascending: behind patterns that start within the first `size` bytes."""
    known = int.from_bytes(code.translate(_CLASSES), "little")
    # The lowest bit of byte i: a pattern ends with byte i, and byte i + 4 may end an operand.
    found = (known | known >> 1 & known << 6) & known >> 35 & _ONES
    between = found.to_bytes(len(code), "little").split(b"\1")
    ends = list(map(add, accumulate(map(len, between)), count(1)))
    del ends[-1]
    while ends and (ends[-1] > size + 1 or (ends[-1] > size and not 0x80 <= code[size] <= 0x8F)):
        del ends[-1]
    return ends


def move_x86(window: bytearray, field: Field, shifts: Shifts) -> None:
    """Moves the operands of a field of code, in place.

    Places and targets are relative to the chunk as far as they can be: half a million of them go through this
    loop when a kernel is updated.
    """
    starts, moves = shifts.starts, shifts.shifts
    low, high = starts[0], starts[-1]
    known: dict[int, int] = {}  # shifts of targets: most of them are referred to again and again
    bounds = (0, *starts, field.address + field.length + high)
    own = near = near_end = 0  # the shift of the code itself, and which targets have the same
    behind = free = field.address
    for begin, code in _code(window, field):
        first, place = field.address + begin, field.place + begin
        base = first + _OPERAND_BYTES
        free, behind, near, near_end = free - first, behind - first, near - base, near_end - base
        ats = operands(code, _CHUNK_BYTES)
        for at, offset in zip(ats, chain.from_iterable(map(_LOAD, repeat(code), ats)), strict=True):
            if at < free:
                continue
            if at >= behind:
                address = first + at
                index = bisect_right(starts, address)
                own, near, behind = moves[index], bounds[index] - base, bounds[index + 1] - first
                near_end = bounds[index + 1] - base if low <= address < high else near
            target = at + offset
            if near <= target < near_end:
                free = at + _OPERAND_BYTES
                continue
            target += base
            shift = known.get(target)
            if shift is None:
                if not low <= target < high:
                    continue
                if len(known) == _KNOWN_MAX:
                    known.clear()
                shift = known[target] = moves[bisect_right(starts, target)]
            free = at + _OPERAND_BYTES
            if shift != own:
                _STORE(window, at + place, offset + shift - own & _MASK32)
        free, behind, near, near_end = free + first, behind + first, near + base, near_end + base


def operand_count(window: bytes, field: Field) -> int:
    """How many places of a field of code look like operands: what moving it takes."""
    return sum(len(operands(code, _CHUNK_BYTES)) for _, code in _code(window, field))


def _code(window: bytes | bytearray, field: Field) -> Iterator[tuple[int, bytes]]:
    """(start within the field, bytes) of its chunks, each with what a pattern may need of the next.

    A chunk is read before the one before it is changed: operands may reach over.
    """
    end = field.place + field.length

    def read(begin: int) -> bytes:
        start = field.place + begin
        return bytes(memoryview(window)[start : min(start + _CHUNK_BYTES + _BEHIND_BYTES, end)])

    code = read(0)
    for begin in range(0, field.length, _CHUNK_BYTES):
        following = read(begin + _CHUNK_BYTES) if begin + _CHUNK_BYTES < field.length else b""
        yield begin, code
        code = following
