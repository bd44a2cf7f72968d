"""ext4: folders and extent trees of an image, as the kernel's Documentation/filesystems/ext4 describes them.

What ext2 and ext3 images have (block maps instead of extents), inline data and encrypted folders are left
out: their bytes are then found by similarity.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from twinlock.core.payload.sums import INODE_SIZE_BYTES_MIN, crc32c
from twinlock.publish.delta.files.model import Extent, ImageFile, UnreadableError
from twinlock.publish.delta.files.walk import walk
from twinlock.publish.delta.images import Image

_SUPER_OFFSET: Final = 1024
_MAGIC: Final = 0xEF53
_INCOMPAT_META_BG: Final = 0x10
_INCOMPAT_64BIT: Final = 0x80
_INCOMPAT_CSUM_SEED: Final = 0x2000
_RO_COMPAT_METADATA_CSUM: Final = 0x400
_ROOT_INODE: Final = 2
_EXTENT_MAGIC: Final = 0xF30A
_EXTENT_DEPTH_MAX: Final = 5
_UNWRITTEN: Final = 32768
_FLAG_EXTENTS: Final = 0x80000
_FLAG_ENCRYPTED: Final = 0x800
_FLAG_INLINE: Final = 0x10000000
_FOLDER_SIZE_BYTES_MAX: Final = 256 << 20
_GROUPS_MAX: Final = 1 << 20  # of 128 MiB with blocks of 4 KiB


@dataclass(frozen=True, slots=True)
class InodeTables:
    """Where an image's inodes lie, if they have checksums: (offset, number of the first) of each table."""

    inode_size: int
    count: int  # in each table
    seed: int  # of all checksums
    tables: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Inode:
    mode: int
    size_bytes: int
    flags: int
    block: bytes


class _Ext4:
    def __init__(self, image: Image) -> None:
        self._image = image
        head = image[_SUPER_OFFSET : _SUPER_OFFSET + 1024]
        if len(head) < 1024 or struct.unpack_from("<H", head, 0x38)[0] != _MAGIC:
            raise UnreadableError("no ext4 superblock")
        (log_block_size,) = struct.unpack_from("<I", head, 0x18)
        if log_block_size > 6:
            raise UnreadableError(f"block size 2^{10 + log_block_size}")
        self.block_size: Final = 1024 << log_block_size
        self._inodes, blocks = struct.unpack_from("<II", head, 0)
        first_block, self._inodes_per_group = (struct.unpack_from("<I", head, at)[0] for at in (0x14, 0x28))
        (blocks_per_group,) = struct.unpack_from("<I", head, 0x20)
        (self._inode_size,) = struct.unpack_from("<H", head, 0x58)
        (incompat,) = struct.unpack_from("<I", head, 0x60)
        (descriptor_size,) = struct.unpack_from("<H", head, 0xFE)
        if not (blocks and blocks_per_group and self._inodes_per_group and self._inode_size >= 128):
            raise UnreadableError("an ext4 superblock with zeros where sizes belong")
        if incompat & _INCOMPAT_META_BG:
            raise UnreadableError("meta block groups")
        wide = bool(incompat & _INCOMPAT_64BIT) and descriptor_size >= 64
        self._descriptor_size = descriptor_size if wide else 32
        self._wide = wide
        self._descriptors = (first_block + 1) * self.block_size

    def block(self, number: int) -> bytes:
        start = number * self.block_size
        data = self._image[start : start + self.block_size]
        if len(data) != self.block_size:
            raise UnreadableError(f"block {number} is outside the image")
        return data

    def inode_tables(self) -> InodeTables | None:
        """None for a file system without checksums."""
        head = self._image[_SUPER_OFFSET : _SUPER_OFFSET + 1024]
        incompat, ro_compat = struct.unpack_from("<II", head, 0x60)
        if not ro_compat & _RO_COMPAT_METADATA_CSUM or self._inode_size < INODE_SIZE_BYTES_MIN:
            return None
        (seed,) = struct.unpack_from("<I", head, 0x270)
        if not incompat & _INCOMPAT_CSUM_SEED:
            seed = crc32c(head[0x68:0x78])
        per_group = self._inodes_per_group
        groups = range(min(-(-self._inodes // per_group), _GROUPS_MAX))
        tables = tuple((self._table(group), 1 + group * per_group) for group in groups)
        return InodeTables(self._inode_size, per_group, seed, tables)

    def _table(self, group: int) -> int:
        """Where a group's inodes lie in the image, in bytes."""
        at = self._descriptors + group * self._descriptor_size
        descriptor = self._image[at : at + self._descriptor_size]
        if len(descriptor) != self._descriptor_size:
            raise UnreadableError("a group descriptor is outside the image")
        (table,) = struct.unpack_from("<I", descriptor, 0x08)
        if self._wide:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        start: int = table * self.block_size
        return start

    def inode(self, number: int) -> _Inode:
        if not 1 <= number <= self._inodes:
            raise UnreadableError(f"inode {number}")
        group, index = divmod(number - 1, self._inodes_per_group)
        at = self._table(group) + index * self._inode_size
        data = self._image[at : at + 128]
        if len(data) != 128:
            raise UnreadableError(f"inode {number} is outside the image")
        (mode,) = struct.unpack_from("<H", data, 0)
        (low,) = struct.unpack_from("<I", data, 4)
        (flags,) = struct.unpack_from("<I", data, 0x20)
        (high,) = struct.unpack_from("<I", data, 0x6C)
        return _Inode(mode, high << 32 | low, flags, data[0x28 : 0x28 + 60])

    def extents(self, inode: _Inode) -> tuple[Extent, ...]:
        """What is stored of the inode's bytes; nothing for kinds of storage that are not understood."""
        if not inode.flags & _FLAG_EXTENTS or inode.flags & (_FLAG_INLINE | _FLAG_ENCRYPTED):
            return ()
        found = []
        for first, start, count in self._leaves(inode.block, _EXTENT_DEPTH_MAX):
            at = first * self.block_size
            length = min(count * self.block_size, inode.size_bytes - at)
            if length > 0 and start * self.block_size + length <= len(self._image):
                found.append(Extent(at, start * self.block_size, length))
        return tuple(found)

    def _leaves(self, node: bytes, depth_max: int) -> Iterator[tuple[int, int, int]]:
        magic, entries, _, depth = struct.unpack_from("<HHHH", node, 0)
        if magic != _EXTENT_MAGIC or depth > depth_max or 12 * (entries + 1) > len(node):
            raise UnreadableError("an extent tree that is none")
        for at in range(12, 12 * (entries + 1), 12):
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, at)
                yield from self._leaves(self.block(high << 32 | low), depth - 1)
                continue
            first, count, high, low = struct.unpack_from("<IHHI", node, at)
            if count <= _UNWRITTEN:
                yield first, high << 32 | low, count

    def entries(self, inode: _Inode) -> Iterator[tuple[int, bytes]]:
        """(inode number, name) of a folder's entries; index blocks look like empty entries."""
        if inode.size_bytes > _FOLDER_SIZE_BYTES_MAX:
            raise UnreadableError("a folder of absurd size")
        for extent in self.extents(inode):
            start = extent.image_offset
            for at in range(start, start + extent.length, self.block_size):
                yield from _entries(self._image[at : at + self.block_size])


def _entries(block: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(block):
        number, size, name_size = struct.unpack_from("<IHB", block, at)
        if size < 8 or 8 + name_size > size:
            return
        name = block[at + 8 : at + 8 + name_size]
        if number and name not in (b".", b".."):
            yield number, name
        at += size


def files(image: Image) -> list[ImageFile]:
    """The regular files of an ext4 image; of several links to one file the first in order of the walk.

    Raises UnreadableError when the image is not ext4 or is damaged.
    """
    try:
        return walk(_Ext4(image), _ROOT_INODE)
    except struct.error as problem:
        raise UnreadableError(f"a structure is cut short: {problem}") from problem


def inode_tables(image: Image) -> InodeTables | None:
    """Where the inodes of an ext4 image lie; None when it is not one, or they have no checksums."""
    try:
        return _Ext4(image).inode_tables()
    except (UnreadableError, struct.error):
        return None
