"""GUID partition tables (UEFI specification 2.10, section 5.3), encoded, decoded and grown. Pure.

Written here rather than by sfdisk: the bytes are the same on every build machine and for every run, a device
needs no extra program to grow its last partition, and the order of the writes that grow it is ours to choose.

Growing on a live disk (`grown`) is a list of writes to do in order, each flushed before the next:
  1. backup entries and header at the new end of the disk: the table in force is the old one, its backup too;
  2. primary entries and header: torn, the primary's CRC fails and the backup at the *end of the disk*, which
     is where readers look, is the new one; complete, the new table is in force.
The old backup becomes ordinary space of the data partition; nothing needs to erase it.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error

if TYPE_CHECKING:
    from twinlock.provision.layout import Plan

GPT_ENTRIES: Final = 128
GPT_ENTRY_SIZE_BYTES: Final = 128
SIGNATURE: Final = b"EFI PART"
REVISION: Final = 0x0001_0000
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_TABLE_BYTES: Final = GPT_ENTRIES * GPT_ENTRY_SIZE_BYTES

TYPE_ESP: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
TYPE_LINUX: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
TYPE_RECORD: Final = uuid.UUID("9a1c0f3e-7a52-4f4e-9d0b-5f3f6d2a8c41")  # ours: two copies of the boot record
_TYPES: Final = {"boot": TYPE_ESP, "record": TYPE_RECORD}
# Bit 2: U-Boot's boot scan looks at partitions with it. Bit 63: systemd must not mount this one by itself.
ATTRIBUTE_BOOTABLE: Final = 1 << 2
ATTRIBUTE_NO_AUTO: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Entry:
    """One partition; `first` and `last` are sectors, both inside it."""

    type: uuid.UUID
    id: uuid.UUID
    first: int
    last: int
    attributes: int
    name: str


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table; `sectors` is the size of the disk that it describes."""

    disk_id: uuid.UUID
    sector_size: int
    sectors: int
    entries_lba: int
    entries: tuple[Entry, ...]


def of_plan(plan: Plan) -> Table:
    """The table that a plan asks for."""
    sector = plan.spec.sector_size
    entries = tuple(
        Entry(
            type=_TYPES.get(part.role, TYPE_LINUX),
            id=uuid.UUID(part.partuuid),
            first=part.start_bytes // sector,
            last=part.end_bytes // sector - 1,
            attributes=ATTRIBUTE_BOOTABLE if part.role == "boot" else ATTRIBUTE_NO_AUTO,
            name=part.label,
        )
        for part in plan.partitions
    )
    return Table(
        uuid.UUID(plan.disk_uuid), sector, plan.disk_size_bytes // sector, plan.gpt_entries_lba, entries
    )


def _entry_bytes(entry: Entry) -> bytes:
    name = entry.name.encode("utf-16-le")
    return _ENTRY.pack(
        entry.type.bytes_le,
        entry.id.bytes_le,
        entry.first,
        entry.last,
        entry.attributes,
        name.ljust(72, b"\0"),
    )


def _header(table: Table, entries: bytes, *, primary: bool) -> bytes:
    backup_lba = table.sectors - 1
    span = -(-_TABLE_BYTES // table.sector_size)
    first_usable = max(table.entries_lba, 2) + span
    last_usable = backup_lba - span - 1
    my_lba, other_lba, entries_lba = (
        (1, backup_lba, table.entries_lba) if primary else (backup_lba, 1, backup_lba - span)
    )
    fields = (my_lba, other_lba, first_usable, last_usable, table.disk_id.bytes_le, entries_lba)
    tail = (GPT_ENTRIES, GPT_ENTRY_SIZE_BYTES, zlib.crc32(entries))
    crc = zlib.crc32(_HEADER.pack(SIGNATURE, REVISION, _HEADER.size, 0, 0, *fields, *tail))
    return _HEADER.pack(SIGNATURE, REVISION, _HEADER.size, crc, 0, *fields, *tail).ljust(
        table.sector_size, b"\0"
    )


def _protective_mbr(table: Table) -> bytes:
    count = min(table.sectors - 1, 0xFFFF_FFFF)
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, count)
    return (bytes(446) + entry + bytes(48) + b"\x55\xaa").ljust(table.sector_size, b"\0")


def encode(table: Table) -> list[tuple[int, bytes]]:
    """The writes that make the table, as (offset in bytes, data), in the order of `grown`."""
    entries = b"".join(map(_entry_bytes, table.entries)).ljust(_TABLE_BYTES, b"\0")
    span = -(-_TABLE_BYTES // table.sector_size)
    sector = table.sector_size
    end = (table.sectors - 1) * sector
    return [
        (end - span * sector, entries),
        (end, _header(table, entries, primary=False)),
        (0, _protective_mbr(table)),
        (table.entries_lba * sector, entries),
        (sector, _header(table, entries, primary=True)),
    ]


def decode(header: bytes, entries: bytes, sector_size: int) -> Table:
    """The table in a header sector and the 16 KiB of entries that it points to.

    Raises DeviceError `slot-unusable` when a checksum, a bound or the size of the table is not as it must be.
    """
    fields = _checked_header(header)
    if fields is None or len(entries) < _TABLE_BYTES:
        raise error("slot-unusable", "the partition table is not a GPT with a valid checksum")
    my_lba, other_lba, first_usable, last_usable, disk_id, entries_lba, count, size, entries_crc = fields
    if (count, size) != (GPT_ENTRIES, GPT_ENTRY_SIZE_BYTES) or zlib.crc32(
        entries[:_TABLE_BYTES]
    ) != entries_crc:
        raise error("slot-unusable", "the partition table's entries do not have their checksum")
    found = []
    for number in range(GPT_ENTRIES):
        kind, unique, first, last, attributes, name = _ENTRY.unpack_from(
            entries, number * GPT_ENTRY_SIZE_BYTES
        )
        if kind == bytes(16):
            continue
        if not first_usable <= first <= last <= last_usable:
            raise error("slot-unusable", f"partition {number + 1} lies outside the disk")
        text = name.decode("utf-16-le", "replace").rstrip("\0")
        found.append(
            Entry(uuid.UUID(bytes_le=kind), uuid.UUID(bytes_le=unique), first, last, attributes, text)
        )
    sectors = max(my_lba, other_lba) + 1
    primary_entries = entries_lba if my_lba == 1 else 2
    return Table(uuid.UUID(bytes_le=disk_id), sector_size, sectors, primary_entries, tuple(found))


def number_of(entries: bytes, unique: uuid.UUID) -> int:
    """The partition number, from 1, of the entry with this id. Raises DeviceError `slot-unusable`."""
    for number in range(GPT_ENTRIES):
        at = number * GPT_ENTRY_SIZE_BYTES + 16
        if entries[at : at + 16] == unique.bytes_le:
            return number + 1
    raise error("slot-unusable", f"the partition table has no partition {unique}")


def entries_lba_of(header: bytes) -> int:
    """Where the entries of this header are, as a sector number; raises like `decode`."""
    fields = _checked_header(header)
    if fields is None:
        raise error("slot-unusable", "the partition table is not a GPT with a valid checksum")
    return fields[5]


def _checked_header(
    header: bytes,
) -> tuple[int, int, int, int, bytes, int, int, int, int] | None:
    if len(header) < _HEADER.size:
        return None
    signature, revision, size, crc, _, *rest = _HEADER.unpack_from(header)
    blank = header[:16] + bytes(4) + header[20 : _HEADER.size]
    if signature != SIGNATURE or revision != REVISION or size != _HEADER.size or zlib.crc32(blank) != crc:
        return None
    my_lba, other_lba, first, last, disk_id, entries_lba, count, entry_size, entries_crc = rest
    return my_lba, other_lba, first, last, disk_id, entries_lba, count, entry_size, entries_crc


def grown(table: Table, sectors: int, align_bytes: int) -> Table | None:
    """The table with its last partition reaching to the end of a disk of `sectors`; None if it does already.

    Raises DeviceError `slot-unusable` when the disk is smaller than its table says.
    """
    if sectors < table.sectors:
        raise error("slot-unusable", f"the disk has {sectors} sectors, its partition table {table.sectors}")
    span = -(-_TABLE_BYTES // table.sector_size)
    step = max(1, align_bytes // table.sector_size)
    last = (sectors - 1 - span) // step * step - 1
    final = max(table.entries, key=lambda entry: entry.last)
    if last <= final.last:
        return None
    entries = tuple(replace(entry, last=last) if entry is final else entry for entry in table.entries)
    return replace(table, sectors=sectors, entries=entries)
