"""Files of an image and the extents that hold them."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from twinlock.publish.delta.model import Block, Ref

FILES_MAX: Final = 4_000_000
DEPTH_MAX: Final = 256


class UnreadableError(Exception):
    """The bytes are not a file system of this kind, or use something of it that is not understood.

    Not an error of the user's: the image is then encoded by similarity alone.
    """


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes of a file, from `file_offset`, stored plainly at `image_offset` of the image."""

    file_offset: int
    image_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class PackedExtent:
    """`length` bytes of a file, from `file_offset`: what `block` unpacks to, from `block_offset`."""

    file_offset: int
    block: Block
    block_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A regular file: its path from the root (no leading slash), size in bytes, extents in file order."""

    path: str
    size_bytes: int
    extents: tuple[Extent, ...]
    packed: tuple[PackedExtent, ...] = ()

    def refs(self, start: int, end: int) -> Iterator[Ref]:
        """What is stored of the file's bytes `start` to `end`: plain extents, then packed ones."""
        for offset, length in self.ranges(start, end):
            yield Ref(None, offset, length)
        for extent in self.packed:
            low = max(start, extent.file_offset)
            high = min(end, extent.file_offset + extent.length)
            if low < high:
                yield Ref(extent.block, extent.block_offset + low - extent.file_offset, high - low)

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(image offset, length) of what is stored of the file's bytes `start` to `end`, in file order."""
        for extent in self.extents:
            low = max(start, extent.file_offset)
            high = min(end, extent.file_offset + extent.length)
            if low < high:
                yield extent.image_offset + low - extent.file_offset, high - low


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an image: of a file, from `file_offset`, or of no file (tables, folders, free space)."""

    image_offset: int
    length: int
    file: ImageFile | None
    file_offset: int


@dataclass(slots=True)
class ImageMap:
    """All files of an image, and for each place of the image what lies there."""

    files: tuple[ImageFile, ...] = ()
    _starts: list[int] = field(default_factory=list)
    _extents: list[tuple[Extent, ImageFile]] = field(default_factory=list)
    _packed: list[tuple[int, int, ImageFile]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._extents = sorted(
            ((extent, file) for file in self.files for extent in file.extents),
            key=lambda item: (item[0].image_offset, item[1].path),
        )
        self._packed = sorted(
            (
                (start, start + length, file)
                for file in self.files
                for packed in file.packed
                for start, length in packed.block.ranges
            ),
            key=lambda item: (item[0], item[2].path),
        )
        self._starts = [extent.image_offset for extent, _ in self._extents]

    def packed_files(self, start: int, end: int) -> Iterator[ImageFile]:
        """Files that packed blocks which reach into the image's bytes `start` to `end` hold something of."""
        index = max(0, bisect.bisect_right(self._packed, start, key=lambda item: item[0]) - 1)
        while index and self._packed[index - 1][1] > start:
            index -= 1
        for low, high, file in self._packed[index:]:
            if low >= end:
                break
            if high > start:
                yield file

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The image's bytes `start` to `end` as pieces, in order, without gaps."""
        position = start
        index = max(0, bisect.bisect_right(self._starts, start) - 1)
        while position < end and index < len(self._extents):
            extent, file = self._extents[index]
            index += 1
            low = max(position, extent.image_offset)
            high = min(end, extent.image_offset + extent.length)
            if high <= low:
                if extent.image_offset >= end:
                    break
                continue
            if low > position:
                yield Piece(position, low - position, None, 0)
            yield Piece(low, high - low, file, extent.file_offset + low - extent.image_offset)
            position = high
        if position < end:
            yield Piece(position, end - position, None, 0)
