"""Cutting a stretch of an image into what is matched as it lies there, and what is unpacked first."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from twinlock.core import limits
from twinlock.core.payload.program import Pack
from twinlock.publish.delta.executables import Located
from twinlock.publish.delta.fields.cutting import Stretch
from twinlock.publish.delta.files.model import ImageFile, ImageMap
from twinlock.publish.delta.images import Image
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
KERNEL_SIZE_BYTES_MIN: Final = limits.MIB


@dataclass(frozen=True, slots=True)
class Raw:
    """The image's bytes `start` to `end`, as they are."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes of the image that are `text`, packed; `refs` is what it may resemble, `located` what is in it.

    `blocks` is empty once it is settled which packs there are; before, it has what each pack is to give (see
    `settling`). `start` is where they lie in the image, and `matches` where in an LZ4 block's text its
    sequences begin; none unless they may be mended (see `mending`).
    """

    text: bytes
    packs: tuple[Pack, ...]
    refs: tuple[Ref, ...]
    located: tuple[Located, ...]
    blocks: tuple[bytes, ...] = ()
    start: int = 0
    matches: Sequence[int] = ()

    @property
    def size_bytes(self) -> int:
        """How many bytes of the image it is."""
        return sum(pack.take for pack in self.packs)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A kernel of the base: its name, and the blocks that its unpacked bytes come from."""

    name: str
    blocks: tuple[Block, ...]

    def refs(self, low: int, high: int) -> list[Ref]:
        """Refs to the unpacked bytes `low` to `high`, as far as there are any."""
        found = []
        start = 0
        for block in self.blocks:
            first, last = max(low, start), min(high, start + block.size_bytes)
            if first < last:
                found.append(Ref(block, first - start, last - first))
            start += block.size_bytes
        return found


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of the image, and the older one of the base."""

    name: str
    blocks: tuple[KernelBlock, ...]
    packed: tuple[PackedBlock, ...]
    older: Unpacked

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

    def before(self, index: int) -> int:
        """How many unpacked bytes are before block `index`."""
        return sum(len(block.plain) for block in self.blocks[:index])

    @property
    def plain(self) -> bytes:
        """All unpacked bytes."""
        return b"".join(block.plain for block in self.blocks)


def within_a_part(stretches: list[Raw | Packed], start: int, end: int) -> list[Raw | Packed]:
    """The stretches, or all bytes as they lie where that would take more steps than a part may have."""
    steps = sum(2 if isinstance(stretch, Packed) and stretch.matches else 1 for stretch in stretches)
    return stretches if steps <= limits.STEPS_MAX else [Raw(start, end)]


class Cutter(Protocol):
    """Cuts an image into stretches."""

    def cut(self, start: int, end: int) -> list[Raw | Packed]:
        """The image's bytes `start` to `end` as stretches, in order, without gaps."""
        ...


class KernelCutter:
    """Knows which files of an image are kernels that can be unpacked and packed again."""

    def __init__(
        self, base: Image, image: Image, new: ImageMap, pairing: Pairing, libraries: Sequence[str]
    ) -> None:
        self._libraries = libraries
        self._base = base
        self._image = image
        self._new = new
        self._pairing = pairing
        self._kernels: dict[str, Kernel | None] = {}

    def kernel(self, file: ImageFile) -> Kernel | None:
        """The kernel in a file; None for any other file, or when there is no older one, or no way back."""
        if not KERNEL_SIZE_BYTES_MAX >= file.size_bytes >= KERNEL_SIZE_BYTES_MIN:
            return None
        if file.path not in self._kernels:
            self._kernels[file.path] = self._find(file)
        return self._kernels[file.path]

    def known(self) -> list[Unpacked]:
        """The base's kernels that any file of the image has for an older one."""
        found = (self.kernel(file) for file in self._new.files)
        return [kernel.older for kernel in found if kernel is not None]

    def _find(self, file: ImageFile) -> Kernel | None:
        for old in self._pairing.older(file):
            blocks = _read_blocks(file, self._image)
            if blocks and _bytes(file, self._image) == _bytes(old, self._base):
                return None  # a copy does
            older = _read_blocks(old, self._base) if blocks else []
            packed = reproducible(blocks, self._libraries) if older else []
            if packed:
                unpacked = Unpacked(unpacked_name(old), tuple(kernel_sources(old, older)))
                return Kernel(unpacked_name(file), tuple(blocks), tuple(packed), unpacked)
        return None

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
            kernel = self.kernel(piece.file) if piece.file else None
            if kernel is None:
                yield Raw(piece.image_offset, piece.image_offset + piece.length)
                continue
            shift = piece.image_offset - piece.file_offset
            yield from _of_kernel(kernel, piece.file_offset, piece.file_offset + piece.length, shift)


def unpacked_name(file: ImageFile) -> str:
    """What the unpacked bytes of a file are called; no file's path has this form."""
    return file.path + "\0unpacked"


def _of_kernel(kernel: Kernel, start: int, end: int, shift: int) -> Iterator[Raw | Packed]:
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
                offset = kernel.before(index) + piece.start
                refs = kernel.older.refs(offset - AROUND_BYTES, offset + len(text) + AROUND_BYTES)
                located = Located(kernel.name, Stretch(0, offset, len(text)))
                yield Packed(
                    text,
                    (piece.pack,),
                    tuple(refs),
                    (located,),
                    start=position + shift,
                    matches=piece.matches,
                )
                position += piece.pack.take
            else:
                low, high = piece
                yield Raw(block.start + low + shift, block.start + high + shift)
                position = block.start + high
        start = stop


def _read_blocks(file: ImageFile, image: Image) -> list[KernelBlock]:
    """The LZ4 blocks of a file; none unless all of the file is stored."""
    ranges = list(file.ranges(0, file.size_bytes))
    if sum(length for _, length in ranges) != file.size_bytes:
        return []
    if image[ranges[0][0] + 0x202 : ranges[0][0] + 0x206] != b"HdrS":
        return []
    return lz4_blocks(_bytes(file, image))


def _bytes(file: ImageFile, image: Image) -> bytes:
    """What is stored of a file."""
    return b"".join(image[offset : offset + length] for offset, length in file.ranges(0, file.size_bytes))
