"""The FAT file system around GRUB's two environment blocks. Pure.

GRUB saves an environment block only into a file of a file system it knows: a plain block list is refused. Yet
the agent should write the very same bytes straight to the disk, with no file system mounted that a power cut
could hurt. So the record partition holds a FAT that is laid out once and never changed: its tables in the
first erase block, and one file of 1024 bytes in each of the next two, at places known in advance. Loader and
agent change only the content of those files, in place.

Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03; FAT12, since there are never many clusters.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from twinlock.core.bootenv_grub import SIZE_BYTES
from twinlock.provision.sizes import align_up

if TYPE_CHECKING:
    from twinlock.provision.layout import Plan

FILES: Final = ("record0.env", "record1.env")
_CLUSTERS_MAX: Final = 4000  # below the 4085 where readers begin to take it for FAT16
_CLUSTER_SECTORS_MAX: Final = 128
_MEDIA: Final = 0xF8
_END_OF_CHAIN: Final = 0xFFF
_ROOT_ENTRIES_BYTES: Final = 32
_DATE_2000_01_01: Final = 20 << 9 | 1 << 5 | 1
_READ_WRITE_ARCHIVE: Final = 0x20


def metadata(plan: Plan) -> list[tuple[int, bytes]]:
    """The writes, as (offset on the disk, data), that lay out the file system of the record partition.

    The blocks themselves go to `plan.record_offsets`, where this makes the two files lie.
    """
    part = plan.need("record")
    sector = plan.spec.sector_size
    total = part.size_bytes // sector
    cluster = 1
    while total // cluster > _CLUSTERS_MAX and cluster < _CLUSTER_SECTORS_MAX:
        cluster *= 2
    table_sectors = -(-(total // cluster + 2) * 3 // 2 // sector) + 1
    data_start = align_up(1 + table_sectors + 1, cluster)
    reserved = data_start - table_sectors - 1
    assert data_start * sector <= plan.align_bytes, "the tables fit the erase block before the files"
    table: dict[int, int] = {0: 0xF00 | _MEDIA, 1: _END_OF_CHAIN}
    entries = b""
    for name, offset in zip(FILES, plan.record_offsets, strict=True):
        at = (offset - part.start_bytes) // sector - data_start
        assert at % cluster == 0, "erase blocks are whole clusters"
        first = at // cluster + 2
        count = -(-SIZE_BYTES // (cluster * sector))
        for number in range(first, first + count):
            table[number] = number + 1 if number + 1 < first + count else _END_OF_CHAIN
        entries += _directory_entry(name, first)
    boot = _boot_sector(plan, total, cluster, reserved, table_sectors)
    start = part.start_bytes
    return [
        (start, boot),
        (start + reserved * sector, _pack_table(table, table_sectors * sector)),
        (start + (reserved + table_sectors) * sector, entries.ljust(sector, b"\0")),
    ]


def _boot_sector(plan: Plan, total: int, cluster: int, reserved: int, table_sectors: int) -> bytes:
    sector = plan.spec.sector_size
    small = total if total < 1 << 16 else 0
    head = struct.pack(
        "<3s8sHBHBHHBHHHII",
        b"\xeb\x3c\x90",
        b"TWINLOCK",
        sector,
        cluster,
        reserved,
        1,  # one table: it never changes, so a second copy would protect nothing
        sector // _ROOT_ENTRIES_BYTES,
        small,
        _MEDIA,
        table_sectors,
        63,
        255,
        plan.need("record").start_bytes // sector,
        0 if small else total,
    )
    tail = struct.pack("<BBBI11s8s", 0x80, 0, 0x29, plan.mbr_signature, b"NO NAME    ", b"FAT12   ")
    return ((head + tail).ljust(510, b"\0") + b"\x55\xaa").ljust(sector, b"\0")


def _directory_entry(name: str, first_cluster: int) -> bytes:
    stem, _, extension = name.upper().partition(".")
    return struct.pack(
        "<8s3sBBBHHHHHHHI",
        stem.ljust(8).encode("ascii"),
        extension.ljust(3).encode("ascii"),
        _READ_WRITE_ARCHIVE,
        0x18,  # name and extension are shown in lower case
        0,
        0,
        _DATE_2000_01_01,
        _DATE_2000_01_01,
        0,
        0,
        _DATE_2000_01_01,
        first_cluster,
        SIZE_BYTES,
    )


def _pack_table(values: dict[int, int], size_bytes: int) -> bytes:
    """FAT12: three bytes hold two numbers of 12 bits."""
    table = bytearray(size_bytes)
    for number, value in values.items():
        at = number * 3 // 2
        if number % 2:
            table[at] |= (value & 0xF) << 4
            table[at + 1] = value >> 4
        else:
            table[at] = value & 0xFF
            table[at + 1] |= value >> 8
    return bytes(table)
