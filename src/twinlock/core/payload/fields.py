"""Address fields: rewriting the addresses in a window to where the newer file has their targets.

When code grows, everything behind it moves, and every branch, pointer and table entry that refers to it
changes. A patch names the shifts (from this address on, so far) and where addresses are; the decoder moves
them before it copies, so that what is copied already fits.

    maps      count; for each: points; starts (the first, then distances); shifts (signed, each relative to
              the one before); size behind the last start. An address outside stays as it is.
    fields    count; for each: kind u8; map; place in the window, relative to the end of the field before
              (signed); then by kind
              words      width u8, stride, count, bias, adjust (both signed): numbers of 4 or 8 bytes;
                         number + bias is an address; its shift and `adjust` are added
              relative   stride, count, address: 4 bytes relative to their own address, which is `address` for
                         the first; they become moved addresses, to be finished in the text
              x86        length, address: code from `address` on; operands of E8, E9 and 0F 8x, and of
                         instructions with a displacement relative to the instruction pointer
              arm64      length, address: code; B and BL
              a32, t32   length, address: code of 32-bit ARM in one of its two instruction sets; branches
              literals   of a32, of t32: length, address: code as before; the addresses that it keeps between
                         its functions, relative to the program counter: see `arm` and `thumb`
              frames     length, address: .eh_frame; the first addresses of its entries, like `relative`
              listed     width u8, length, origin, table's place, table's count, bias (signed): words at
                         places listed in the window as 4-byte addresses, `origin` being the first place
              inodes     (without a map) stride, count: the checksums of ext4 inodes, the first one at the
                         field's place, become zeros: see `sums`
    finish    count; for each: kind u8 (relative, frames or inodes); place in the text, relative to the end of
              the field before (signed); as above without the map: addresses become relative to themselves
              again. Of inodes: stride, count, seed u32, number of the first; the place is that of the first
              inode, whose checksum is computed, and that of all behind it

All numbers are little endian, as in the files themselves.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload import sums

if TYPE_CHECKING:
    from twinlock.core.payload.varints import Reader

WIDTHS: Final = (4, 8)
_STRIDE_MAX: Final = 256
_WORK_FACTOR_MAX: Final = 16
_INODES_MAX: Final = 1 << 32


class Kind(IntEnum):
    """What a field's bytes are."""

    WORDS = 0
    RELATIVE = 1
    X86 = 2
    ARM64 = 3
    FRAMES = 4
    LISTED = 5
    INODES = 6
    A32 = 7
    T32 = 8
    A32_LITERALS = 9
    T32_LITERALS = 10


@dataclass(frozen=True, slots=True)
class Shifts:
    """From `starts[i]` on addresses move by `shifts[i + 1]`; before the first, and from the last on, not."""

    starts: list[int]
    shifts: list[int]

    def of(self, address: int) -> int:
        """How far an address moves."""
        return self.shifts[bisect_right(self.starts, address)]


@dataclass(frozen=True, slots=True)
class Field:
    """One field or row of fields; what does not belong to its kind is zero."""

    kind: Kind
    map: int
    place: int
    length: int
    address: int = 0
    stride: int = 0
    count: int = 0
    width: int = 4
    bias: int = 0
    adjust: int = 0
    table: int = 0
    seed: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Fields:
    """All fields of a step: those of the window with their maps, and those of the text."""

    maps: list[Shifts]
    window: list[Field]
    text: list[Field]


NONE: Final = Fields([], [], [])


def decode_fields(control: Reader, window_size_bytes: int, text_size_bytes: int, number: int) -> Fields:
    """Maps, fields and finishing, every bound checked. Raises TrustError `payload-malformed`."""
    count = control.value(limits.FIELD_MAPS_MAX, "maps")
    points = 0
    maps = []
    for _ in range(count):
        shifts = _decode_map(control, limits.FIELD_POINTS_MAX - points)
        points += len(shifts.starts)
        maps.append(shifts)
    window = _decode_row(control, count, window_size_bytes, number, in_text=False)
    text = _decode_row(control, count, text_size_bytes, number, in_text=True)
    return Fields(maps, window, text)


def _decode_row(control: Reader, maps: int, size_bytes: int, number: int, *, in_text: bool) -> list[Field]:
    found: list[Field] = []
    end = 0
    for _ in range(control.value(limits.FIELDS_MAX, "fields")):
        field = _decode_field(control, end, maps, number, in_text=in_text)
        end = _checked(field, size_bytes, number)
        found.append(field)
    # Fields may overlap, as the columns of a table do; without a bound that would be work without end.
    if sum(field.length + 4 * field.count for field in found) > _WORK_FACTOR_MAX * size_bytes:
        raise error("payload-malformed", f"part {number} moves the same addresses again and again")
    return found


def _decode_map(control: Reader, points_max: int) -> Shifts:
    count = control.value(points_max, "points", 1)
    starts = list(accumulate(control.column(count)))
    shifts = list(accumulate(control.signed_column(count)))
    starts.append(starts[-1] + control.column(1)[0])
    return Shifts(starts, [0, *shifts, 0])


def _decode_field(control: Reader, end: int, maps: int, number: int, *, in_text: bool) -> Field:
    code = control.take(1)[0]
    allowed = (Kind.RELATIVE, Kind.FRAMES, Kind.INODES) if in_text else tuple(Kind)
    if code not in allowed:
        raise error("format-unknown", f"part {number} has fields of kind {code}")
    kind = Kind(code)
    if kind is Kind.INODES:
        return _decode_inodes(control, end, number, in_text=in_text)
    if not in_text and not maps:
        raise error("payload-malformed", f"part {number} has fields and no map")
    which = 0 if in_text else control.value(maps - 1, "map")
    place = end + control.signed_column(1)[0]
    if kind is Kind.WORDS:
        width = control.take(1)[0]
        stride, count = control.value(_STRIDE_MAX, "stride", 1), control.column(1)[0]
        bias, adjust = control.signed_column(2)
        length = stride * (count - 1) + width
        return Field(kind, which, place, length, 0, stride, count, width, bias, adjust)
    if kind is Kind.RELATIVE:
        stride, count = control.value(_STRIDE_MAX, "stride", 4), control.column(1)[0]
        return Field(kind, which, place, stride * (count - 1) + 4, control.column(1)[0], stride, count)
    if kind is Kind.LISTED:
        width = control.take(1)[0]
        length, origin, table, count = control.column(4)
        bias = control.signed_column(1)[0]
        return Field(kind, which, place, length, origin, 4, count, width, bias, 0, table)
    length, address = control.column(2)
    return Field(kind, which, place, length, address)


def _decode_inodes(control: Reader, end: int, number: int, *, in_text: bool) -> Field:
    place = end + control.signed_column(1)[0]
    stride = control.value(sums.INODE_SIZE_BYTES_MAX, "inode's size", sums.INODE_SIZE_BYTES_MIN)
    count = control.column(1)[0]
    if not in_text:
        length = stride * (count - 1) + sums.SPAN_BYTES
        return Field(Kind.INODES, 0, place, length, stride=stride, count=count)
    seed = int.from_bytes(control.take(4), "little")
    first = control.column(1)[0]
    if first + count > _INODES_MAX:
        raise error("payload-malformed", f"part {number} has inodes without numbers")
    return Field(Kind.INODES, 0, place, stride * count, stride=stride, count=count, seed=seed, number=first)


def _checked(field: Field, size_bytes: int, number: int) -> int:
    """The end of the field; raises unless it lies within `size_bytes`."""
    end = field.place + field.length
    good = field.place >= 0 and field.length > 0 and end <= size_bytes and field.width in WIDTHS
    if field.kind is Kind.LISTED:
        good = good and field.count > 0 and field.table + 4 * field.count <= size_bytes
    if field.kind is Kind.WORDS:
        good = good and field.stride >= field.width
    if not good:
        raise error("payload-malformed", f"part {number} has fields outside its window")
    return end
