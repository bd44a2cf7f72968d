"""Addresses in data: which columns of a section hold some, found by trying.

A column is worth moving when more of its numbers, evenly picked, are then found in the newer section than
were before. That needs no knowledge of what the section is, and nothing about where entries came in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from twinlock.core.payload.fields import Field, Kind
from twinlock.publish.delta.fields.shiftmap import Integers, ShiftMap

Bytes = NDArray[np.uint8]
GAIN_MIN: Final = 12  # numbers; what a field costs to describe
_STRIDES: Final = {4: (4, 8, 12, 16, 14), 8: (8, 16, 24)}
_RELATIVE_SHARE_MIN: Final = 0.9
_TRIED: Final = 1 << 14  # numbers of a column


@dataclass(frozen=True, slots=True)
class Table:
    """A section before and after, as bytes, with its place in the file and its address."""

    old: bytes
    new: bytes
    old_place: int
    new_place: int
    old_address: int
    new_address: int


@dataclass(frozen=True, slots=True)
class Found:
    """Fields of the older file, and those to finish in the newer; places are in the files."""

    gain: int
    window: tuple[Field, ...]
    text: tuple[Field, ...] = ()


def words(table: Table, shifts: ShiftMap, width: int, bias: int, adjust: int = 0) -> Found:
    """The best stride of numbers that are addresses once `bias` is added; only columns that gain."""
    found = [_columns(table, shifts, width, stride, bias, adjust) for stride in _STRIDES[width]]
    return max(found, key=lambda item: item.gain)


def _columns(table: Table, shifts: ShiftMap, width: int, stride: int, bias: int, adjust: int) -> Found:
    gain = 0
    fields = []
    for start in range(0, stride - width + 1, width):
        count = _count(table.old, start, stride, width)
        every = _every(count)
        old = _column(table.old, start, stride * every, width)
        addresses = old + bias
        if not len(old) or not shifts.holds(addresses).any():
            continue
        new = _column(table.new, start, stride, width)
        column_gain = every * _gain(old, old + shifts.of(addresses) + adjust, new)
        if column_gain >= GAIN_MIN:
            gain += column_gain
            fields.append(
                Field(
                    Kind.WORDS,
                    0,
                    table.old_place + start,
                    stride * (count - 1) + width,
                    0,
                    stride,
                    count,
                    width,
                    bias,
                    adjust,
                )
            )
    return Found(gain, tuple(fields))


def relative(table: Table, shifts: ShiftMap) -> Found:
    """The best stride of 4-byte numbers relative to their own address."""
    found = [_relative(table, shifts, stride) for stride in _STRIDES[4]]
    return max(found, key=lambda item: item.gain)


def _relative(table: Table, shifts: ShiftMap, stride: int) -> Found:
    gain = 0
    window, text = [], []
    for start in range(0, min(stride, len(table.old), len(table.new)) - 3, 2 if stride % 4 else 4):
        count = _count(table.old, start, stride, 4)
        every = _every(count)
        old = _signed(table.old, start, stride * every)
        old_targets = old + table.old_address + start + stride * every * np.arange(len(old))
        if not len(old) or shifts.holds(old_targets).mean() < _RELATIVE_SHARE_MIN:
            continue
        new = _signed(table.new, start, stride)
        new_targets = new + table.new_address + start + stride * np.arange(len(new))
        moved = old_targets + shifts.of(old_targets)
        column_gain = every * (_found(moved, np.sort(new_targets)) - _found(old, np.sort(new)))
        if column_gain >= GAIN_MIN:
            gain += column_gain
            window.append(_row(table.old_place, table.old_address, start, stride, count))
            text.append(_row(table.new_place, table.new_address, start, stride, len(new)))
    return Found(gain, tuple(window), tuple(text))


def _row(place: int, address: int, start: int, stride: int, count: int) -> Field:
    return Field(Kind.RELATIVE, 0, place + start, stride * (count - 1) + 4, address + start, stride, count)


def _every(count: int) -> int:
    """Which share of a column's numbers is tried: one of so many."""
    return max(1, count // _TRIED)


def _gain(raw: Integers, moved: Integers, new: Integers) -> int:
    known = np.sort(new)
    return _found(moved, known) - _found(raw, known)


def _found(wanted: Integers, known: Integers) -> int:
    """How many of the numbers are among the ascending ones; faster than np.isin."""
    if not len(known):
        return 0
    wanted = np.sort(wanted)
    at = np.searchsorted(known, wanted)
    return int(np.count_nonzero(known[np.minimum(at, len(known) - 1)] == wanted))


def _count(data: bytes, start: int, stride: int, width: int) -> int:
    """How many numbers a column has."""
    return max(0, (len(data) - start - width) // stride + 1)


def _column(data: bytes, start: int, stride: int, width: int) -> Integers:
    """Numbers of `width` bytes as signed 64-bit ones (4-byte numbers are taken as unsigned)."""
    count = _count(data, start, stride, width)
    if not count:
        return np.zeros(0, np.int64)
    raw = np.frombuffer(data, np.uint8)
    rows = np.lib.stride_tricks.as_strided(raw[start:], (count, width), (stride, 1))
    numbers = np.ascontiguousarray(rows).view("<u4" if width == 4 else "<i8")
    return numbers.reshape(-1).astype(np.int64)


def _signed(data: bytes, start: int, stride: int) -> Integers:
    return _column(data, start, stride, 4).astype(np.uint32).view(np.int32).astype(np.int64)


def frame_starts(data: bytes) -> Integers:
    """Where the entries of .eh_frame start, and where the last one ends."""
    starts = [0]
    while starts[-1] + 4 <= len(data):
        length = int.from_bytes(data[starts[-1] : starts[-1] + 4], "little")
        if length in (0, 0xFFFFFFFF) or starts[-1] + 4 + length > len(data):
            break
        starts.append(starts[-1] + 4 + length)
    return np.array(starts, np.int64)
