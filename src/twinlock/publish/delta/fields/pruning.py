"""Leaving out of maps and fields what moves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import SupportsIndex, cast, overload

from twinlock.core.payload.fields import Field, Fields, Kind, Shifts
from twinlock.core.payload.moving import move


class _Recorder(list[int]):
    """A list that knows which of its items were read."""

    def __init__(self, values: list[int]) -> None:
        super().__init__(values)
        self.used: set[int] = set()

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | list[int]:
        self.used.add(cast("int", index))
        return super().__getitem__(index)


def pruned(window: bytearray, fields: Fields) -> Fields:
    """Moves the window's addresses; returns the fields that changed it, with the shifts that they needed."""
    kept: list[Field] = []
    recorders = [_Recorder(shifts.shifts) for shifts in fields.maps]
    for field in fields.window:
        if field.kind is Kind.INODES:
            move(window, Fields([], [field], []))
            kept.append(field)
            continue
        recorder = _Recorder(fields.maps[field.map].shifts)
        recorded = Shifts(fields.maps[field.map].starts, recorder)
        before = bytes(window[field.place : field.place + field.length])
        move(window, Fields([recorded], [replace(field, map=0)], []))
        if field.kind is Kind.RELATIVE or window[field.place : field.place + field.length] != before:
            kept.append(field)
            recorders[field.map].used |= recorder.used
    numbers: dict[int, int] = {}
    maps: list[Shifts] = []
    for field in kept:
        if field.kind is not Kind.INODES and field.map not in numbers:
            numbers[field.map] = len(maps)
            maps.append(_needed(fields.maps[field.map], recorders[field.map].used))
    return Fields(maps, [_numbered(field, numbers) for field in kept], fields.text)


def _numbered(field: Field, numbers: dict[int, int]) -> Field:
    return field if field.kind is Kind.INODES else replace(field, map=numbers[field.map])


def _needed(shifts: Shifts, used: set[int]) -> Shifts:
    """The map without the points that nothing looked up; its first and last items stand for no shift."""
    last = len(shifts.shifts) - 1
    points = sorted(index for index in used if 0 < index < last) or [1]
    starts: list[int] = []
    moves: list[int] = []
    for index in points:
        if not moves or moves[-1] != shifts.shifts[index]:
            starts.append(shifts.starts[index - 1])
            moves.append(shifts.shifts[index])
    return Shifts([*starts, shifts.starts[points[-1]]], [0, *moves, 0])
