"""erofs: inodes, folders and flat data, as the kernel's fs/erofs/erofs_fs.h describes them.

Compressed and chunk-based files are left out: their bytes are then found by similarity.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from twinlock.publish.delta.files.model import Extent, ImageFile, UnreadableError
from twinlock.publish.delta.files.walk import walk
from twinlock.publish.delta.images import Image

_SUPER_OFFSET: Final = 1024
_MAGIC: Final = 0xE0F5E1E2
_SLOT_BYTES: Final = 32
_PLAIN: Final = 0
_INLINE: Final = 2
_FOLDER_SIZE_BYTES_MAX: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class _Inode:
    mode: int
    size_bytes: int
    extents: tuple[Extent, ...]


class _Erofs:
    def __init__(self, image: Image) -> None:
        self._image = image
        head = image[_SUPER_OFFSET : _SUPER_OFFSET + 128]
        if len(head) < 128 or struct.unpack_from("<I", head, 0)[0] != _MAGIC:
            raise UnreadableError("no erofs superblock")
        bits = head[12]
        if not 9 <= bits <= 16:
            raise UnreadableError(f"block size 2^{bits}")
        self._block_size = 1 << bits
        (self.root,) = struct.unpack_from("<H", head, 14)
        (meta,) = struct.unpack_from("<I", head, 40)
        self._meta = meta * self._block_size

    def inode(self, number: int) -> _Inode:
        at = self._meta + number * _SLOT_BYTES
        data = self._image[at : at + 64]
        if len(data) < 32:
            raise UnreadableError(f"inode {number} is outside the image")
        form, xattrs, mode = struct.unpack_from("<HHH", data, 0)
        if form & 1:
            size_bytes, start = struct.unpack_from("<QI", data, 8)
            head = 64
        else:
            (size_bytes,) = struct.unpack_from("<I", data, 8)
            (start,) = struct.unpack_from("<I", data, 16)
            head = 32
        inline = at + head + (12 + 4 * (xattrs - 1) if xattrs else 0)
        return _Inode(mode, size_bytes, self._extents(form >> 1 & 7, size_bytes, start, inline))

    def _extents(self, layout: int, size_bytes: int, start: int, inline: int) -> tuple[Extent, ...]:
        if layout not in (_PLAIN, _INLINE) or not size_bytes:
            return ()
        tail = size_bytes % self._block_size if layout == _INLINE else 0
        whole = size_bytes - tail
        found = []
        if whole:
            found.append(Extent(0, start * self._block_size, whole))
        if tail:
            found.append(Extent(whole, inline, tail))
        if any(extent.image_offset + extent.length > len(self._image) for extent in found):
            raise UnreadableError("a file's data is outside the image")
        return tuple(found)

    @staticmethod
    def extents(inode: _Inode) -> tuple[Extent, ...]:
        return inode.extents

    def entries(self, inode: _Inode) -> Iterator[tuple[int, bytes]]:
        """(inode number, name) of a folder's entries."""
        if inode.size_bytes > _FOLDER_SIZE_BYTES_MAX:
            raise UnreadableError("a folder of absurd size")
        data = b"".join(
            self._image[extent.image_offset : extent.image_offset + extent.length] for extent in inode.extents
        )
        for start in range(0, len(data), self._block_size):
            yield from _entries(data[start : start + self._block_size])


def _entries(block: bytes) -> Iterator[tuple[int, bytes]]:
    if len(block) < 12:
        return
    count = struct.unpack_from("<H", block, 8)[0] // 12
    rows = [struct.unpack_from("<QH", block, 12 * index) for index in range(count)]
    ends = [offset for _, offset in rows[1:]] + [len(block)]
    for (number, offset), end in zip(rows, ends, strict=True):
        name = block[offset:end].rstrip(b"\0")
        if name not in (b".", b".."):
            yield number, name


def files(image: Image) -> list[ImageFile]:
    """The regular files of an erofs image. Raises UnreadableError when it is none, or is damaged."""
    try:
        volume = _Erofs(image)
        return walk(volume, volume.root)
    except struct.error as problem:
        raise UnreadableError(f"a structure is cut short: {problem}") from problem
