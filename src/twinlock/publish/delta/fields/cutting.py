"""Cutting the fields of files to what a window or a text holds of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from twinlock.core.payload.fields import Field, Kind
from twinlock.publish.delta.fields.analysis import Place

_CODE_LENGTH_MIN: Final = 8
# Instructions start at multiples of these.
_STEPS: Final = {Kind.ARM64: 4, Kind.A32: 4, Kind.A32_LITERALS: 4, Kind.T32: 2, Kind.T32_LITERALS: 2}


@dataclass(frozen=True, slots=True)
class Stretch:
    """`length` bytes of a file from `offset`, which lie at `place` of a window or text."""

    place: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A listed field whose table is not in the window yet: where the table is in the file."""

    field: Field
    table_offset: int


def cut(places: tuple[Place, ...], stretch: Stretch) -> list[Field | Listed]:
    """What the stretch holds of a file's fields, with places in the window or text."""
    found: list[Field | Listed] = []
    low, high = stretch.offset, stretch.offset + stretch.length
    for item in places:
        field = item.field
        if field.place >= high or field.place + field.length <= low:
            continue
        shift = stretch.place - stretch.offset
        if field.kind in (Kind.WORDS, Kind.RELATIVE):
            part: Field | Listed | None = _row(field, low, high, shift)
        elif field.kind is Kind.FRAMES:
            part = _frames(item, low, high, shift)
        elif field.kind is Kind.LISTED:
            part = _listed(item, low, high, shift)
        else:
            part = _code(field, low, high, shift)
        if part is not None:
            found.append(part)
    return found


def _row(field: Field, low: int, high: int, shift: int) -> Field | None:
    first = max(0, -(-(low - field.place) // field.stride))
    last = min(field.count - 1, (high - field.width - field.place) // field.stride)
    if first > last:
        return None
    count = last - first + 1
    return replace(
        field,
        place=field.place + first * field.stride + shift,
        length=field.stride * (count - 1) + field.width,
        address=field.address + first * field.stride if field.kind is Kind.RELATIVE else 0,
        count=count,
    )


def _code(field: Field, low: int, high: int, shift: int) -> Field | None:
    start, end = max(low, field.place), min(high, field.place + field.length)
    start += -(start - field.place) % _STEPS.get(field.kind, 1)
    if end - start < _CODE_LENGTH_MIN:
        return None
    return replace(
        field, place=start + shift, length=end - start, address=field.address + start - field.place
    )


def _frames(item: Place, low: int, high: int, shift: int) -> Field | None:
    """Whole entries only."""
    assert item.records is not None
    field, starts = item.field, item.records + item.field.place
    first = int(np.searchsorted(starts, low))
    last = int(np.searchsorted(starts, high, side="right")) - 1
    if first >= last:
        return None
    start, end = int(starts[first]), int(starts[last])
    return replace(
        field, place=start + shift, length=end - start, address=field.address + start - field.place
    )


def _listed(item: Place, low: int, high: int, shift: int) -> Listed | None:
    assert item.records is not None
    field = item.field
    code = _code(field, low, high, shift)
    if code is None:
        return None
    first, last = np.searchsorted(item.records, (code.address, code.address + code.length - field.width + 1))
    if first >= last:
        return None
    return Listed(replace(code, count=int(last - first), table=0), field.table + 4 * int(first))
