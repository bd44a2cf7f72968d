"""MBR partition tables with logical partitions, encoded and grown. Pure.

For SoCs whose ROM or first loader reads no GPT. Boot, slot a and slot b are primary; the boot record,
recovery and data are logical, each described by a sector (EBR) at the start of the erase block before it.

Growing data (`grown`) rewrites two sectors, each whole or not at all: the extended partition in the MBR, then
data's own EBR. Between the two the extended partition is larger than it needs to be, which harms nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error

if TYPE_CHECKING:
    from twinlock.provision.layout import Partition, Plan

SECTOR_SIZE_BYTES: Final = 512
MBR_SECTORS_MAX: Final = (1 << 32) - 1
TYPE_FAT_LBA: Final = 0x0C
TYPE_ESP: Final = 0xEF
TYPE_LINUX: Final = 0x83
TYPE_RECORD: Final = 0xDA  # "non-file-system data"
TYPE_EXTENDED: Final = 0x0F
_ENTRY: Final = struct.Struct("<B3sB3sII")
_TABLE_OFFSET: Final = 446
_LOGICAL_MAX: Final = 16
# Places beyond what cylinder, head and sector numbers can say: everything here is addressed by sector.
_CHS: Final = b"\xfe\xff\xff"


def _entry(kind: int, first: int, count: int, *, active: bool = False) -> bytes:
    return _ENTRY.pack(0x80 if active else 0, _CHS, kind, _CHS, first, count)


def _sector(entries: list[bytes], signature: int = 0) -> bytes:
    head = bytes(440) + struct.pack("<IH", signature, 0)
    return head + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def _kind(plan: Plan, part: Partition) -> int:
    if part.role == "boot":
        return TYPE_FAT_LBA if plan.spec.loader.kind in ("uboot", "tryboot") else TYPE_ESP
    return TYPE_RECORD if part.role == "record" else TYPE_LINUX


def encode(plan: Plan) -> list[tuple[int, bytes]]:
    """The writes that make the table of a plan, as (offset in bytes, sector).

    Raises InputError `input-invalid` for a disk of 4096-byte sectors, where few readers of MBRs agree.
    """
    if plan.spec.sector_size != SECTOR_SIZE_BYTES:
        raise error("input-invalid", "an MBR needs 512-byte sectors", hint='write table = "gpt"')
    sectors = [(part, part.start_bytes // 512, part.size_bytes // 512) for part in plan.partitions]
    primary = [
        _entry(_kind(plan, part), first, count, active=part.role == "boot")
        for part, first, count in sectors
        if part.number <= 4
    ]
    logical = [(part, first, count) for part, first, count in sectors if part.number > 4]
    extended = plan.extended_start_bytes // 512
    end = plan.partitions[-1].end_bytes // 512
    writes = [(0, _sector([*primary, _entry(TYPE_EXTENDED, extended, end - extended)], plan.mbr_signature))]
    gap = plan.align_bytes // 512
    for index, (part, first, count) in enumerate(logical):
        entries = [_entry(_kind(plan, part), gap, count)]
        if index + 1 < len(logical):
            _, next_first, next_count = logical[index + 1]
            # An EBR points to the next one relative to the start of the extended partition.
            entries.append(_entry(TYPE_EXTENDED, next_first - gap - extended, gap + next_count))
        writes.append(((first - gap) * 512, _sector(entries)))
    return writes


def _entries(sector: bytes) -> list[tuple[int, int, int]]:
    """(type, first, count) of the four entries. Raises DeviceError `slot-unusable` without the 55 AA mark."""
    if len(sector) != 512 or sector[510:] != b"\x55\xaa":
        raise error("slot-unusable", "the partition table is not an MBR")
    unpacked = [_ENTRY.unpack_from(sector, _TABLE_OFFSET + 16 * number) for number in range(4)]
    return [(kind, first, count) for _, _, kind, _, first, count in unpacked]


def last_logical(read: dict[int, bytes], mbr: bytes) -> tuple[int, bytes] | int:
    """Walks the chain of EBRs: the next sector number to read, or (sector number, EBR) of the last one.

    `read` holds the EBRs read so far by sector number: call again with one more until a tuple comes back.
    Raises DeviceError `slot-unusable` for a chain that is broken, circular or longer than 16.
    """
    extended = next((first for kind, first, _ in _entries(mbr) if kind == TYPE_EXTENDED), None)
    if extended is None:
        raise error("slot-unusable", "the partition table has no extended partition")
    at = extended
    for _ in range(_LOGICAL_MAX):
        if at not in read:
            return at
        following = [first for kind, first, _ in _entries(read[at]) if kind in (TYPE_EXTENDED, 0x05)]
        if not following:
            return at, read[at]
        at = extended + following[0]
    raise error("slot-unusable", f"the partition table has more than {_LOGICAL_MAX} logical partitions")


def grown(mbr: bytes, ebr_lba: int, ebr: bytes, sectors: int, align_bytes: int) -> list[tuple[int, bytes]]:
    """The two writes, in order, that make the last logical partition reach to the end of a disk of `sectors`.

    An empty list when nothing is gained. Raises DeviceError `slot-unusable` when the disk is smaller than its
    table says.
    """
    step = max(1, align_bytes // 512)
    end = min(sectors, MBR_SECTORS_MAX) // step * step
    number, (_, extended, extended_count) = next(
        (number, entry) for number, entry in enumerate(_entries(mbr)) if entry[0] == TYPE_EXTENDED
    )
    _, first, count = _entries(ebr)[0]
    if ebr_lba + first + count > sectors:
        raise error("slot-unusable", f"the disk has {sectors} sectors, its last partition ends beyond them")
    if end <= ebr_lba + first + count:
        return []
    writes = []
    if extended + extended_count < end:
        writes.append((0, _with_count(mbr, number, end - extended)))
    writes.append((ebr_lba * 512, _with_count(ebr, 0, end - ebr_lba - first)))
    return writes


def _with_count(sector: bytes, number: int, count: int) -> bytes:
    at = _TABLE_OFFSET + 16 * number + 12
    return sector[:at] + struct.pack("<I", count) + sector[at + 4 :]
