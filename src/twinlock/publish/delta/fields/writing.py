"""Writing maps and fields as `twinlock.core.payload.fields` reads them."""

from __future__ import annotations

from itertools import pairwise

from twinlock.core.payload.fields import Field, Fields, Kind, Shifts
from twinlock.core.payload.varints import column, encode, fold


def encode_fields(fields: Fields) -> bytes:
    """The control's part about fields: maps, fields of the window, fields of the text."""
    out = [encode(len(fields.maps))]
    out += [_map(shifts) for shifts in fields.maps]
    for row, in_text in ((fields.window, False), (fields.text, True)):
        out.append(encode(len(row)))
        end = 0
        for field in row:
            out.append(_field(field, end, in_text=in_text))
            end = field.place + field.length
    return b"".join(out)


def _map(shifts: Shifts) -> bytes:
    starts, moves = shifts.starts, shifts.shifts[1:-1]
    gaps = [after - before for before, after in pairwise(starts)]
    changes = [after - before for before, after in pairwise([0, *moves])]
    return column([len(moves), starts[0], *gaps[:-1], *map(fold, changes), gaps[-1]])


def _field(field: Field, end: int, *, in_text: bool) -> bytes:
    where = encode(fold(field.place - end))
    if field.kind is Kind.INODES:
        row = bytes([field.kind]) + where + column([field.stride, field.count])
        return row + field.seed.to_bytes(4, "little") + encode(field.number) if in_text else row
    head = bytes([field.kind]) + (b"" if in_text else encode(field.map)) + where
    if field.kind is Kind.WORDS:
        numbers = [field.stride, field.count, fold(field.bias), fold(field.adjust)]
        return head + bytes([field.width]) + column(numbers)
    if field.kind is Kind.RELATIVE:
        return head + column([field.stride, field.count, field.address])
    if field.kind is Kind.LISTED:
        numbers = [field.length, field.address, field.table, field.count, fold(field.bias)]
        return head + bytes([field.width]) + column(numbers)
    return head + column([field.length, field.address])
