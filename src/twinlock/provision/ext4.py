"""Reads which inodes of an ext4 image are in use. Pure but for the file object handed in.

Source: Linux kernel documentation, filesystems/ext4/ (super block, group descriptors, inode bitmaps).
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

from twinlock.core.errors import error

_SUPER_OFFSET: Final = 1024
_MAGIC: Final = 0xEF53
_INCOMPAT_64BIT: Final = 0x80
_BG_INODE_UNINIT: Final = 0x1
GROUPS_MAX: Final = 1 << 20
FIRST_ORDINARY_INODE: Final = 11  # those below are the file system's own; 2 is the root folder
ROOT_INODE: Final = 2


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise error("input-invalid", "the ext4 image is shorter than its super block says")
    return data


def used_inodes(file: BinaryIO) -> list[int]:
    """Numbers of the root folder and of all ordinary inodes in use, ascending.

    Raises InputError `input-wrong-type` when it is not ext4, `input-invalid` when its sizes make no sense.
    """
    block = _read(file, _SUPER_OFFSET, 1024)
    if struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        raise error("input-wrong-type", "the image is not ext4")
    inodes, blocks = struct.unpack_from("<II", block, 0)
    (first_data, log_size) = struct.unpack_from("<II", block, 0x14)
    blocks_per_group, _, inodes_per_group = struct.unpack_from("<III", block, 0x20)
    (incompat,) = struct.unpack_from("<I", block, 0x60)
    wide = bool(incompat & _INCOMPAT_64BIT)
    size = struct.unpack_from("<H", block, 0xFE)[0] if wide else 32
    if (
        log_size > 6
        or not 0 < blocks_per_group <= 1 << 19
        or not 0 < inodes_per_group <= 1 << 19
        or size < 32
    ):
        raise error("input-invalid", "the ext4 image's super block has sizes out of range")
    block_size = 1024 << log_size
    groups = -(-(blocks - first_data) // blocks_per_group)
    if groups > GROUPS_MAX:
        raise error("input-invalid", f"the ext4 image has {groups} groups")
    table = _read(file, (first_data + 1) * block_size, groups * size)
    used = [ROOT_INODE]
    for group in range(groups):
        at = group * size
        (low,) = struct.unpack_from("<I", table, at + 4)
        (flags,) = struct.unpack_from("<H", table, at + 0x12)
        high = struct.unpack_from("<I", table, at + 0x24)[0] if wide and size >= 64 else 0
        if flags & _BG_INODE_UNINIT:
            continue
        bitmap = _read(file, (high << 32 | low) * block_size, -(-inodes_per_group // 8))
        start = group * inodes_per_group + 1
        used += [
            start + bit
            for bit in range(inodes_per_group)
            if bitmap[bit // 8] >> bit % 8 & 1 and FIRST_ORDINARY_INODE <= start + bit <= inodes
        ]
    return used
