"""squashfs 4.0: files made of blocks that are each compressed (Documentation/filesystems/squashfs.rst).

gzip and zstd images are understood; those of another compressor are found by similarity, which finds little.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from twinlock.core import limits
from twinlock.core.payload.program import ZLIB, ZSTD
from twinlock.core.zstd import ZstdDecompressor, ZstdError
from twinlock.publish.delta.files.model import (
    DEPTH_MAX,
    FILES_MAX,
    Extent,
    ImageFile,
    PackedExtent,
    UnreadableError,
)
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.model import Block

_MAGIC: Final = b"hsqs"
_CODECS: Final = {1: ZLIB, 6: ZSTD}
_META_SIZE_BYTES: Final = 8192
_STORED: Final = 1 << 24
_NO_FRAGMENT: Final = 0xFFFFFFFF
_FOLDER: Final = (1, 8)
_FILE: Final = (2, 9)
_TABLE_SIZE_BYTES_MAX: Final = 512 << 20
_ENTRIES_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class _Folder:
    block: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _File:
    """A file's inode: the size words of its blocks from `start` on, and its tail's fragment."""

    size_bytes: int
    start: int
    sizes: tuple[int, ...]
    fragment: int
    fragment_offset: int


class _Squashfs:
    def __init__(self, image: Image) -> None:
        self._image = image
        head = image[:96]
        if len(head) < 96 or head[:4] != _MAGIC:
            raise UnreadableError("no squashfs superblock")
        self.block_size, fragments, compressor = struct.unpack_from("<IIH", head, 12)
        if compressor not in _CODECS or struct.unpack_from("<H", head, 28)[0] != 4:
            raise UnreadableError(f"squashfs with compressor {compressor}")
        if not 4096 <= self.block_size <= limits.MIB:
            raise UnreadableError(f"block size {self.block_size}")
        self._codec = _CODECS[compressor]
        (self.root,) = struct.unpack_from("<Q", head, 32)
        inodes, folders, fragment_table = struct.unpack_from("<QQQ", head, 64)
        self._inodes = self._table(inodes, folders)
        self._folders = self._table(folders, fragment_table)
        self._fragments = list(self._read_fragments(fragment_table, fragments))
        self._ends: dict[int, int] = {}  # of the tails in a fragment

    def _unpack(self, data: bytes, size_bytes: int) -> bytes:
        try:
            if self._codec == ZLIB:
                return zlib.decompressobj().decompress(data, size_bytes)
            return ZstdDecompressor().decompress(data, max_length=size_bytes)
        except (zlib.error, ZstdError) as problem:
            raise UnreadableError(f"a block does not unpack: {problem}") from problem

    def _meta(self, at: int) -> tuple[bytes, int]:
        """(contents, place of the next) of the metadata block at an offset of the image."""
        (head,) = struct.unpack("<H", self._image[at : at + 2])
        size = head & 0x7FFF
        data = self._image[at + 2 : at + 2 + size]
        if not size or len(data) != size:
            raise UnreadableError("a metadata block is outside the image")
        return data if head & 0x8000 else self._unpack(data, _META_SIZE_BYTES), at + 2 + size

    def _table(self, start: int, end: int) -> dict[int, bytes]:
        """Metadata blocks from `start` to `end`, by place relative to `start`, each with all that follow."""
        if not start < end <= len(self._image):
            raise UnreadableError("a table is outside the image")
        blocks = []
        at = start
        total = 0
        while at < end and total < _TABLE_SIZE_BYTES_MAX:
            place = at
            try:
                data, at = self._meta(at)
            except UnreadableError:
                break  # the lookup lists behind a table belong to the next one
            blocks.append((place - start, data))
            total += len(data)
        return dict(blocks)

    def _bytes(self, table: dict[int, bytes], block: int, offset: int, size_bytes: int) -> bytes:
        """`size_bytes` from a place in a table, over as many blocks as it takes."""
        places = self._order(table)
        if block not in table:
            raise UnreadableError("a reference into a table leads nowhere")
        data = b""
        for place in places[places.index(block) :]:
            data += table[place]
            if len(data) >= offset + size_bytes:
                break
        return data[offset : offset + size_bytes]

    def _order(self, table: dict[int, bytes]) -> list[int]:
        return list(table)

    def _read_fragments(self, table: int, count: int) -> Iterator[tuple[int, int]]:
        """Where each fragment block starts, and its size word."""
        for index in range(0, count, 512):
            (at,) = struct.unpack("<Q", self._image[table + index // 512 * 8 : table + index // 512 * 8 + 8])
            data, _ = self._meta(at)
            for row in range(min(512, count - index)):
                start, size = struct.unpack_from("<QI", data, 16 * row)
                yield start, size

    def _piece(self, start: int, size: int, size_bytes: int) -> Block | Extent:
        """A data block as an extent when it is stored as it is, else as a packed block."""
        length = size & (_STORED - 1)
        if start + length > len(self._image):
            raise UnreadableError("a data block is outside the image")
        if size & _STORED:
            return Extent(0, start, length)
        return Block(self._codec, size_bytes, ((start, length),))

    def read_inode(self, reference: int) -> _Folder | _File | None:
        """A folder, a file, or None for what is neither."""
        block, offset = reference >> 16, reference & 0xFFFF
        data = self._bytes(self._inodes, block, offset, 64)
        (kind,) = struct.unpack_from("<H", data, 0)
        if kind == 1:
            start, _, size, place = struct.unpack_from("<IIHH", data, 16)
            return _Folder(start, place, size - 3)
        if kind == 8:
            _, size, start, _, _, place = struct.unpack_from("<IIIIHH", data, 16)
            return _Folder(start, place, size - 3)
        if kind not in _FILE:
            return None
        if kind == 2:
            first, fragment, fragment_offset, size = struct.unpack_from("<IIII", data, 16)
            head = 32
        else:
            first, size, _, _, fragment, fragment_offset = struct.unpack_from("<QQQIII", data, 16)
            head = 56
        blocks = size // self.block_size if fragment != _NO_FRAGMENT else -(-size // self.block_size)
        if blocks > limits.IMAGE_SIZE_BYTES_MAX // 4096:
            raise UnreadableError("a file of absurd size")
        raw = self._bytes(self._inodes, block, offset + head, 4 * blocks)
        sizes = struct.unpack(f"<{blocks}I", raw)
        if fragment != _NO_FRAGMENT:
            end = fragment_offset + size - blocks * self.block_size
            if fragment >= len(self._fragments) or end > self.block_size:
                raise UnreadableError("a file's tail is in no fragment")
            self._ends[fragment] = max(self._ends.get(fragment, 0), end)
        return _File(size, first, sizes, fragment, fragment_offset)

    def file(self, path: str, inode: _File) -> ImageFile:
        """Where a file lies. All inodes must be read before: a fragment is as large as its tails."""
        extents, packed = [], []
        start = inode.start
        for index, word in enumerate(inode.sizes):
            at = index * self.block_size
            length = min(self.block_size, inode.size_bytes - at)
            if word:
                piece = self._piece(start, word, length)
                if isinstance(piece, Extent):
                    extents.append(Extent(at, piece.image_offset, min(piece.length, length)))
                else:
                    packed.append(PackedExtent(at, piece, 0, length))
                start += word & (_STORED - 1)
        at, offset = len(inode.sizes) * self.block_size, inode.fragment_offset
        if inode.fragment != _NO_FRAGMENT and at < inode.size_bytes:
            piece = self._piece(*self._fragments[inode.fragment], self._ends[inode.fragment])
            if isinstance(piece, Extent):
                extents.append(Extent(at, piece.image_offset + offset, inode.size_bytes - at))
            else:
                packed.append(PackedExtent(at, piece, offset, inode.size_bytes - at))
        return ImageFile(path, inode.size_bytes, tuple(extents), tuple(packed))

    def entries(self, folder: _Folder) -> Iterator[tuple[int, bytes]]:
        """(inode reference, name) of a folder's entries."""
        data = self._bytes(self._folders, folder.block, folder.offset, max(folder.size_bytes, 0))
        at = 0
        while at + 12 <= len(data):
            count, start, _ = struct.unpack_from("<III", data, at)
            at += 12
            if count >= _ENTRIES_MAX:
                raise UnreadableError("a folder's header has too many entries")
            for _ in range(count + 1):
                offset, _, _, name_size = struct.unpack_from("<HhHH", data, at)
                yield start << 16 | offset, data[at + 8 : at + 9 + name_size]
                at += 9 + name_size


def files(image: Image) -> list[ImageFile]:
    """The regular files of a squashfs image. Raises UnreadableError when it is none, or is damaged."""
    try:
        return _walk(_Squashfs(image))
    except struct.error as problem:
        raise UnreadableError(f"a structure is cut short: {problem}") from problem


def _walk(volume: _Squashfs) -> list[ImageFile]:
    found: list[tuple[str, _File]] = []
    seen = {volume.root}
    root = volume.read_inode(volume.root)
    pending = [("", root, 0)] if isinstance(root, _Folder) else []
    while pending:
        folder, inode, depth = pending.pop()
        for reference, name in volume.entries(inode):
            if reference in seen or depth > DEPTH_MAX:
                continue
            seen.add(reference)
            if len(seen) > FILES_MAX:
                raise UnreadableError("too many files")
            path = folder + name.decode("utf-8", "surrogateescape")
            child = volume.read_inode(reference)
            if isinstance(child, _Folder):
                pending.append((path + "/", child, depth + 1))
            elif child is not None:
                found.append((path, child))
    return [volume.file(path, inode) for path, inode in found]
