"""Addresses in data: which columns of a section hold some, found by trying.

A column is worth moving when more of the newer section's numbers are then found among the older one's than
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
        old, new = _column(table.old, start, stride, width), _column(table.new, start, stride, width)
        if not len(old):
            continue
        addresses = old + bias
        if not shifts.holds(addresses).any():
            continue
        column_gain = _gain(old, old + shifts.of(addresses) + adjust, new)
        if column_gain >= GAIN_MIN:
            gain += column_gain
            count = len(old)
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
        old, new = _signed(table.old, start, stride), _signed(table.new, start, stride)
        old_targets = old + table.old_address + start + stride * np.arange(len(old))
        new_targets = new + table.new_address + start + stride * np.arange(len(new))
        if not len(old) or shifts.holds(old_targets).mean() < _RELATIVE_SHARE_MIN:
            continue
        moved = old_targets + shifts.of(old_targets)
        column_gain = _found(np.sort(new_targets), moved) - _found(np.sort(new), old)
        if column_gain >= GAIN_MIN:
            gain += column_gain
            window.append(_row(table.old_place, table.old_address, start, stride, len(old)))
            text.append(_row(table.new_place, table.new_address, start, stride, len(new)))
    return Found(gain, tuple(window), tuple(text))


def _row(place: int, address: int, start: int, stride: int, count: int) -> Field:
    return Field(Kind.RELATIVE, 0, place + start, stride * (count - 1) + 4, address + start, stride, count)


def _gain(raw: Integers, moved: Integers, new: Integers) -> int:
    wanted = np.sort(new)
    return _found(wanted, moved) - _found(wanted, raw)


def _found(wanted: Integers, among: Integers) -> int:
    """How many of the ascending numbers are among the others; sorting takes a third of what np.isin does."""
    known = np.sort(among)
    at = np.searchsorted(known, wanted)
    return int(np.count_nonzero(known[np.minimum(at, len(known) - 1)] == wanted))


def _column(data: bytes, start: int, stride: int, width: int) -> Integers:
    """Numbers of `width` bytes as signed 64-bit ones (4-byte numbers are taken as unsigned)."""
    count = max(0, (len(data) - start - width) // stride + 1)
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
