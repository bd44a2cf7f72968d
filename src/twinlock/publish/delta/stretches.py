"""Cutting a stretch of an image into what is matched as it lies there, and what is unpacked first."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from mmap import mmap
from typing import Final

from twinlock.core import limits
from twinlock.core.payload.program import Pack
from twinlock.publish.delta.files.model import ImageFile, ImageMap
from twinlock.publish.delta.kernels import (
    KERNEL_SIZE_BYTES_MAX,
    KernelBlock,
    kernel_sources,
    lz4_blocks,
    reproducible,
)
from twinlock.publish.delta.lz4_blocks import PackedBlock, Piece
from twinlock.publish.delta.model import Block, Ref
from twinlock.publish.delta.pairing import Pairing

AROUND_BYTES: Final = 512 * limits.KIB


@dataclass(frozen=True, slots=True)
class Raw:
    """The image's bytes `start` to `end`, as they are."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes of the image that are `text`, packed; `refs` is what it may resemble."""

    text: bytes
    packs: tuple[Pack, ...]
    refs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A kernel of the image, and the older one of the base."""

    blocks: tuple[KernelBlock, ...]
    packed: tuple[PackedBlock, ...]
    older: tuple[Block, ...]

    def at(self, offset: int) -> int | None:
        """The number of the block that the file's byte at `offset` is in."""
        index = bisect.bisect_right(self.blocks, offset, key=lambda block: block.start) - 1
        if index < 0 or offset >= self.blocks[index].start + len(self.blocks[index].packed):
            return None
        return index

    def next(self, offset: int) -> int | None:
        """Where the first block after `offset` starts."""
        index = bisect.bisect_right(self.blocks, offset, key=lambda block: block.start)
        return self.blocks[index].start if index < len(self.blocks) else None

    def refs(self, index: int, start: int, end: int) -> tuple[Ref, ...]:
        """The older kernel's unpacked bytes around the same place as block `index`'s `start` to `end`."""
        before = sum(len(block.plain) for block in self.blocks[:index])
        low, high = before + start - AROUND_BYTES, before + end + AROUND_BYTES
        found = []
        ends = accumulate(block.size_bytes for block in self.older)
        for block, block_end in zip(self.older, ends, strict=True):
            block_start = block_end - block.size_bytes
            first, last = max(low, block_start), min(high, block_end)
            if first < last:
                found.append(Ref(block, first - block_start, last - first))
        return tuple(found)


class Cutter:
    """Knows which files of an image are kernels that can be unpacked and packed again."""

    def __init__(self, base: mmap, image: mmap, new: ImageMap, pairing: Pairing) -> None:
        self._new = new
        self._kernels: dict[str, _Kernel] = {}
        for file in new.files:
            kernel = _kernel(file, base, image, pairing)
            if kernel is not None:
                self._kernels[file.path] = kernel

    def cut(self, start: int, end: int) -> list[Raw | Packed]:
        """The image's bytes `start` to `end` as stretches, in order, without gaps."""
        found: list[Raw | Packed] = []
        for stretch in self._stretches(start, end):
            last = found[-1] if found else None
            if isinstance(stretch, Raw) and isinstance(last, Raw):
                found[-1] = Raw(last.start, stretch.end)
            else:
                found.append(stretch)
        return found

    def _stretches(self, start: int, end: int) -> Iterator[Raw | Packed]:
        for piece in self._new.pieces(start, end):
            kernel = self._kernels.get(piece.file.path) if piece.file else None
            if kernel is None:
                yield Raw(piece.image_offset, piece.image_offset + piece.length)
                continue
            shift = piece.image_offset - piece.file_offset
            yield from _of_kernel(kernel, piece.file_offset, piece.file_offset + piece.length, shift)


def _of_kernel(kernel: _Kernel, start: int, end: int, shift: int) -> Iterator[Raw | Packed]:
    """The kernel file's bytes `start` to `end`, which lie `shift` later in the image."""
    while start < end:
        index = kernel.at(start)
        if index is None:
            stop = min(kernel.next(start) or end, end)
            yield Raw(start + shift, stop + shift)
            start = stop
            continue
        block = kernel.blocks[index]
        stop = min(block.start + len(block.packed), end)
        position = start
        for piece in kernel.packed[index].pieces(start - block.start, stop - block.start):
            if isinstance(piece, Piece):
                text = block.plain[piece.start : piece.end]
                yield Packed(text, (piece.pack,), kernel.refs(index, piece.start, piece.end))
                position += piece.pack.take
            else:
                low, high = piece
                yield Raw(block.start + low + shift, block.start + high + shift)
                position = block.start + high
        start = stop


def _kernel(file: ImageFile, base: mmap, image: mmap, pairing: Pairing) -> _Kernel | None:
    if not KERNEL_SIZE_BYTES_MAX >= file.size_bytes >= limits.MIB:
        return None
    for old in pairing.older(file):
        blocks = _read_blocks(file, image)
        older = _read_blocks(old, base) if blocks else []
        packed = reproducible(blocks) if older else []
        if packed:
            return _Kernel(tuple(blocks), tuple(packed), tuple(kernel_sources(old, older)))
    return None


def _read_blocks(file: ImageFile, image: mmap) -> list[KernelBlock]:
    """The LZ4 blocks of a file; none unless all of the file is stored."""
    ranges = list(file.ranges(0, file.size_bytes))
    if sum(length for _, length in ranges) != file.size_bytes:
        return []
    if image[ranges[0][0] + 0x202 : ranges[0][0] + 0x206] != b"HdrS":
        return []
    return lz4_blocks(b"".join(image[offset : offset + length] for offset, length in ranges))
