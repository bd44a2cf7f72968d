"""Moving addresses and computing checksums: the arithmetic of the fields that `fields` describes."""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from twinlock.core.payload import sums
from twinlock.core.payload.arm import move_a32, move_a32_literals
from twinlock.core.payload.fields import Field, Fields, Kind, Shifts
from twinlock.core.payload.thumb import move_t32, move_t32_literals
from twinlock.core.payload.x86 import move_x86

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_BIG: Final = sys.byteorder == "big"
_TYPES: Final = {4: "I", 8: "Q"}
_FORMATS: Final = {4: "<I", 8: "<Q"}
_MASK32: Final = 0xFFFFFFFF
_LOWEST: Final = -1  # below and above every address
_HIGHEST: Final = 1 << 64
_ROW_COUNT_MAX: Final = 8192
_ARM64_BRANCH_MASK: Final = 0x7C000000  # B and BL differ in the top bit alone
_ARM64_BRANCH: Final = 0x14000000


def move(window: bytearray, fields: Fields) -> None:
    """Rewrites the addresses of a window in place. Memory: some hundred KiB beside it."""
    for field in fields.window:
        if field.kind is Kind.INODES:
            sums.blank(window, field.place, field.stride, field.count)
            continue
        for piece in _pieces(field):
            _MOVERS[field.kind](window, piece, fields.maps[field.map])


def _pieces(field: Field) -> Iterator[Field]:
    """A row as shorter rows: Python's numbers take ten times the bytes that they stand for."""
    if field.kind not in (Kind.WORDS, Kind.RELATIVE) or field.count <= _ROW_COUNT_MAX:
        yield field
        return
    width = field.width
    for first in range(0, field.count, _ROW_COUNT_MAX):
        count = min(_ROW_COUNT_MAX, field.count - first)
        shift = first * field.stride
        yield replace(
            field,
            place=field.place + shift,
            length=field.stride * (count - 1) + width,
            address=field.address + shift if field.kind is Kind.RELATIVE else field.address,
            count=count,
        )


def finish(text: bytearray, fields: Fields) -> None:
    """Makes the addresses of a text relative to themselves again and computes its checksums, in place."""
    for field in fields.text:
        if field.kind is Kind.INODES:
            sums.seal(text, field.place, field.stride, field.count, field.seed, field.number)
            continue
        for piece in _pieces(field):
            _rebase(text, piece, -1)


def unfinish(text: bytearray, fields: Fields) -> None:
    """Turns `finish` back: the text as the encoder matches it."""
    for field in fields.text:
        if field.kind is Kind.INODES:
            sums.blank(text, field.place + sums.LOW, field.stride, field.count)
            continue
        for piece in _pieces(field):
            _rebase(text, piece, 1)


def _rebase(data: bytearray, field: Field, sign: int) -> None:
    numbers, own = _own_addresses(data, field)
    changed = [value + sign * address & _MASK32 for value, address in zip(numbers, own, strict=True)]
    _put(data, field, changed)


def _own_addresses(data: bytearray, field: Field) -> tuple[Sequence[int], Sequence[int]]:
    """The 4-byte numbers of a field that is relative to itself, and the address that each has."""
    if field.kind is Kind.RELATIVE:
        return _get(data, field), range(
            field.address, field.address + field.stride * field.count, field.stride
        )
    places = _frames(data, field)
    shift = field.address - field.place
    return [struct.unpack_from("<I", data, place)[0] for place in places], [place + shift for place in places]


def _frames(data: bytearray, field: Field) -> list[int]:
    """Where the first addresses of .eh_frame's entries are (System V ABI, DWARF's CIE and FDE)."""
    found = []
    place, end = field.place, field.place + field.length
    while place + 12 <= end:
        length, identity = struct.unpack_from("<II", data, place)
        if identity and length >= 8:
            found.append(place + 8)
        place += 4 + length
    return found


def _words(window: bytearray, field: Field, shifts: Shifts) -> None:
    bias, adjust, mask = field.bias, field.adjust, (1 << 8 * field.width) - 1
    numbers = _get(window, field)
    addresses = [number + bias & mask for number in numbers] if bias else numbers
    changes = _changes(shifts, addresses)
    if adjust:
        changes = [change + adjust for change in changes]
    if any(changes):
        _put(window, field, [number + change & mask for number, change in zip(numbers, changes, strict=True)])


def _relative(window: bytearray, field: Field, shifts: Shifts) -> None:
    numbers, own = _own_addresses(window, field)
    targets = [number + address & _MASK32 for number, address in zip(numbers, own, strict=True)]
    changes = _changes(shifts, targets)
    _put(window, field, [target + change & _MASK32 for target, change in zip(targets, changes, strict=True)])


def _changes(shifts: Shifts, addresses: Iterable[int]) -> list[int]:
    """How far each address moves. Tables often have the order of what they refer to: the last find holds."""
    starts, moves = shifts.starts, shifts.shifts
    bounds = (_LOWEST, *starts, _HIGHEST)
    low = high = change = 0
    found: list[int] = []
    append = found.append
    for address in addresses:
        if not low <= address < high:
            index = bisect_right(starts, address)
            low, high, change = bounds[index], bounds[index + 1], moves[index]
        append(change)
    return found


def _arm64(window: bytearray, field: Field, shifts: Shifts) -> None:
    numbers = _load(window, field.place, field.length // 4 * 4, 4)
    starts, moves, first = shifts.starts, shifts.shifts, field.address
    for index, word in enumerate(numbers):
        if word & _ARM64_BRANCH_MASK != _ARM64_BRANCH:
            continue
        own = first + 4 * index
        offset = (word & 0x3FFFFFF) - ((word & 0x2000000) << 1)
        change = moves[bisect_right(starts, own + 4 * offset)] - moves[bisect_right(starts, own)]
        if change and not change & 3:
            numbers[index] = word & 0xFC000000 | offset + (change >> 2) & 0x3FFFFFF
    _store(window, field.place, numbers)


def _listed(window: bytearray, field: Field, shifts: Shifts) -> None:
    starts, moves, bias = shifts.starts, shifts.shifts, field.bias
    kind, mask = _FORMATS[field.width], (1 << 8 * field.width) - 1
    last = field.length - field.width
    for entry in _load(window, field.table, 4 * field.count, 4):
        at = entry - field.address & _MASK32
        if at <= last:
            (value,) = struct.unpack_from(kind, window, field.place + at)
            change = moves[bisect_right(starts, value + bias & mask)]
            struct.pack_into(kind, window, field.place + at, value + change & mask)


def _get(data: bytearray, field: Field) -> Sequence[int]:
    """The numbers of a row, each `stride` bytes behind the one before."""
    if field.stride % field.width:
        kind, width = _FORMATS[field.width], field.width
        places = range(field.place, field.place + field.length - width + 1, field.stride)
        return [struct.unpack_from(kind, data, place)[0] for place in places]
    return _load(data, field.place, field.length, field.width)[:: field.stride // field.width]


def _put(data: bytearray, field: Field, values: Sequence[int]) -> None:
    """Writes what `_get` or `_own_addresses` has read, changed."""
    if field.kind is Kind.FRAMES:
        for place, value in zip(_frames(data, field), values, strict=True):
            struct.pack_into("<I", data, place, value)
    elif field.stride % field.width:
        for index, value in enumerate(values):
            struct.pack_into(_FORMATS[field.width], data, field.place + index * field.stride, value)
    else:
        numbers = _load(data, field.place, field.length, field.width)
        numbers[:: field.stride // field.width] = array(_TYPES[field.width], values)
        _store(data, field.place, numbers)


def _load(data: bytearray, place: int, length: int, width: int) -> array[int]:
    numbers = array(_TYPES[width], bytes(data[place : place + length]))
    if _BIG:
        numbers.byteswap()
    return numbers


def _store(data: bytearray, place: int, numbers: array[int]) -> None:
    if _BIG:
        numbers.byteswap()
    raw = numbers.tobytes()
    data[place : place + len(raw)] = raw


_MOVERS: Final[dict[Kind, Callable[[bytearray, Field, Shifts], None]]] = {
    Kind.WORDS: _words,
    Kind.RELATIVE: _relative,
    Kind.X86: move_x86,
    Kind.ARM64: _arm64,
    Kind.FRAMES: _relative,
    Kind.LISTED: _listed,
    Kind.A32: move_a32,
    Kind.T32: move_t32,
    Kind.A32_LITERALS: move_a32_literals,
    Kind.T32_LITERALS: move_t32_literals,
}
