"""Reads which inodes of an ext4 image are in use. Pure but for the file object handed in.

Source: Linux kernel documentation, filesystems/ext4/ (super block, group descriptors, inode bitmaps).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from twinlock.core.errors import error

_SUPER_OFFSET: Final = 1024
_MAGIC: Final = 0xEF53
_INCOMPAT_64BIT: Final = 0x80
_BG_INODE_UNINIT: Final = 0x1
GROUPS_MAX: Final = 1 << 20
FIRST_ORDINARY_INODE: Final = 11  # those below are the file system's own; 2 is the root folder
ROOT_INODE: Final = 2
_TYPE_MASK: Final = 0xF000
_TYPE_FOLDER: Final = 0x4000


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode in use."""

    number: int
    is_folder: bool


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise error("input-invalid", "the ext4 image is shorter than its super block says")
    return data


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the super block says of sizes."""

    inodes: int
    groups: int
    inodes_per_group: int
    block_size: int
    inode_size: int
    descriptor_size: int
    descriptors_offset: int


def _shape(file: BinaryIO) -> _Shape:
    block = _read(file, _SUPER_OFFSET, 1024)
    if struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        raise error("input-wrong-type", "the image is not ext4")
    inodes, blocks = struct.unpack_from("<II", block, 0)
    first_data, log_size = struct.unpack_from("<II", block, 0x14)
    blocks_per_group, _, inodes_per_group = struct.unpack_from("<III", block, 0x20)
    (inode_size,) = struct.unpack_from("<H", block, 0x58)
    (incompat,) = struct.unpack_from("<I", block, 0x60)
    size = struct.unpack_from("<H", block, 0xFE)[0] if incompat & _INCOMPAT_64BIT else 32
    known = 0 < blocks_per_group <= 1 << 19 and 0 < inodes_per_group <= 1 << 19
    if log_size > 6 or not known or not 32 <= size <= 1024 or not 128 <= inode_size <= 4096:
        raise error("input-invalid", "the ext4 image's super block has sizes out of range")
    groups = -(-(blocks - first_data) // blocks_per_group)
    if groups > GROUPS_MAX:
        raise error("input-invalid", f"the ext4 image has {groups} groups")
    block_size = 1024 << log_size
    start = (first_data + 1) * block_size
    return _Shape(inodes, groups, inodes_per_group, block_size, inode_size, size, start)


def inodes_in_use(file: BinaryIO) -> list[Inode]:
    """The root folder and all ordinary inodes in use, ascending.

    Raises InputError `input-wrong-type` when it is not ext4, `input-invalid` when its sizes make no sense.
    """
    shape = _shape(file)
    table = _read(file, shape.descriptors_offset, shape.groups * shape.descriptor_size)
    found = []
    for group in range(shape.groups):
        at = group * shape.descriptor_size
        if struct.unpack_from("<H", table, at + 0x12)[0] & _BG_INODE_UNINIT:
            continue
        bitmap_at, inodes_at = (_block_number(shape, table, at, field) * shape.block_size for field in (4, 8))
        bitmap = _read(file, bitmap_at, -(-shape.inodes_per_group // 8))
        for bit in range(shape.inodes_per_group):
            number = group * shape.inodes_per_group + 1 + bit
            ordinary = number == ROOT_INODE or FIRST_ORDINARY_INODE <= number <= shape.inodes
            if ordinary and bitmap[bit // 8] >> bit % 8 & 1:
                (mode,) = struct.unpack("<H", _read(file, inodes_at + bit * shape.inode_size, 2))
                found.append(Inode(number, mode & _TYPE_MASK == _TYPE_FOLDER))
    return found


def _block_number(shape: _Shape, table: bytes, at: int, field: int) -> int:
    """A block number of a group descriptor: its low half, and with large descriptors its high half."""
    (low,) = struct.unpack_from("<I", table, at + field)
    high = struct.unpack_from("<I", table, at + field + 0x20)[0] if shape.descriptor_size >= 64 else 0
    return int(high << 32 | low)
