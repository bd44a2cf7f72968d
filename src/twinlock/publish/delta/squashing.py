"""Images made of packed blocks: what changed is unpacked, matched and packed again."""

from __future__ import annotations

import bisect
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from twinlock.core import limits
from twinlock.core.payload.libraries import zlib_pack, zstd_pack
from twinlock.core.payload.program import RAW, ZLIB, Pack
from twinlock.publish.delta.executables import Located
from twinlock.publish.delta.fields.cutting import Stretch
from twinlock.publish.delta.files.model import ImageFile, PackedExtent
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.model import Block, Ref, Window, size_of
from twinlock.publish.delta.references import Reference, fitting, merged
from twinlock.publish.delta.stretches import Packed, Raw

TEXT_SIZE_BYTES_MAX: Final = 5 * limits.MIB // 2
WINDOW_SIZE_BYTES_MAX: Final = 5 * limits.MIB
AROUND_BYTES: Final = 32 * limits.KIB
_SAMPLES: Final = 4
_LEVELS: Final = {True: (9, 6, *range(8, 6, -1), *range(5, 0, -1)), False: (15, 19, 22, 3, *range(21, 0, -1))}


@dataclass(frozen=True, slots=True)
class _Library:
    """What packs an image's blocks bit for bit."""

    codec: int
    level: int
    version: str

    def pack(self, plain: bytes) -> bytes | None:
        if self.codec == ZLIB:
            return zlib_pack(memoryview(plain), self.level)
        packed = zstd_pack(memoryview(plain), self.level, self.version)
        return None if packed is None else bytes(packed)


@dataclass(slots=True)
class _Draft:
    """A step that grows block by block."""

    text: bytearray = field(default_factory=bytearray)
    packs: list[Pack] = field(default_factory=list)
    refs: list[Ref] = field(default_factory=list)
    located: list[Located] = field(default_factory=list)
    blocks: list[bytes] = field(default_factory=list)

    def add(self, piece: Packed) -> None:
        """Puts a piece of one pack behind what is there."""
        shift = len(self.text)
        self.text += piece.text
        self.packs += [replace(pack, start=pack.start + shift) for pack in piece.packs]
        self.refs += piece.refs
        self.blocks += piece.blocks
        for item in piece.located:
            moved = replace(item.stretch, place=item.stretch.place + shift)
            self.located.append(replace(item, stretch=moved))

    def done(self) -> Packed:
        refs = fitting(self.refs, WINDOW_SIZE_BYTES_MAX)
        packs, located, blocks = tuple(self.packs), tuple(self.located), tuple(self.blocks)
        return Packed(bytes(self.text), packs, tuple(refs), located, blocks)


class BlockCutter:
    """Cuts an image whose files lie in packed blocks."""

    def __init__(
        self, base: Image, image: Image, reference: Reference, plain: Window, libraries: Sequence[str]
    ) -> None:
        self._libraries = libraries
        self._base = base
        self._image = image
        self._reference = reference
        self._plain = plain  # of the image
        self._contents: dict[Block, list[tuple[ImageFile, PackedExtent]]] = defaultdict(list)
        for file in reference.new.files:
            for extent in file.packed:
                self._contents[extent.block].append((file, extent))
        self._blocks = sorted(self._contents, key=lambda block: block.ranges[0])
        self._starts = [block.ranges[0][0] for block in self._blocks]

    @cached_property
    def _library(self) -> _Library | None:
        """The library, version and level that make some of the blocks; None when none does."""
        samples = self._blocks[:: max(1, len(self._blocks) // _SAMPLES)][:_SAMPLES]
        if not samples:
            return None
        codec = samples[0].codec
        name = "zlib-" if codec == ZLIB else "zstd-"
        for version in (known.removeprefix(name) for known in self._libraries if known.startswith(name)):
            for level in dict.fromkeys(_LEVELS[codec == ZLIB]):
                library = _Library(codec, level, version)
                if all(library.pack(self._plain.unpacked(block)) == self._packed(block) for block in samples):
                    return library
        return None

    @cached_property
    def _older(self) -> dict[bytes, int]:
        """Where the base has packed blocks, by their hash."""
        blocks = {extent.block for file in self._reference.old.files for extent in file.packed}
        ranges = sorted(block.ranges[0] for block in blocks)
        return {_digest(self._base[start : start + length]): start for start, length in ranges}

    def _packed(self, block: Block) -> bytes:
        start, length = block.ranges[0]
        return self._image[start : start + length]

    def cut(self, start: int, end: int) -> list[Raw | Packed]:
        """The image's bytes `start` to `end` as stretches, in order, without gaps."""
        found: list[Raw | Packed] = []
        draft = _Draft()
        for low, high, block in self._spans(start, end):
            piece = self._piece(low, high, block)
            full = len(draft.text) + len(piece.text) > TEXT_SIZE_BYTES_MAX
            if draft.packs and (full or size_of(merged([*draft.refs, *piece.refs])) > WINDOW_SIZE_BYTES_MAX):
                found.append(draft.done())
                draft = _Draft()
            draft.add(piece)
        found.append(draft.done())
        return found

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, int, Block | None]]:
        """(start, end, block) of packed blocks and of what is between them, cut to `start` and `end`."""
        position = start
        for index in range(max(0, bisect.bisect_right(self._starts, start) - 1), len(self._blocks)):
            block = self._blocks[index]
            low, length = block.ranges[0]
            if low >= end:
                break
            if low + length <= position:
                continue
            if low > position:
                yield position, low, None
                position = low
            stop = min(low + length, end)
            yield position, stop, block
            position = stop
        if position < end:
            yield position, end, None

    def _piece(self, start: int, end: int, block: Block | None) -> Packed:
        if block is not None:
            packed = self._packed(block)
            older = self._older.get(_digest(packed))
            skip = start - block.ranges[0][0]
            if older is not None:
                return self._raw(start, end, [Ref(None, older + skip, end - start)])
            library = self._library
            if library is not None:
                plain = self._plain.unpacked(block)
                level, version = library.level, library.version
                pack = Pack(library.codec, level, version, 0, 0, len(plain), skip, end - start)
                refs, located = tuple(self._refs(block)), tuple(self._located(block))
                return Packed(plain, (pack,), refs, located, (packed,))
        return self._raw(start, end, self._reference.refs(start, end))

    def _raw(self, start: int, end: int, refs: list[Ref]) -> Packed:
        pack = Pack(RAW, 0, "", 0, 0, end - start, 0, end - start)
        return Packed(self._image[start:end], (pack,), tuple(refs), (), (b"",))

    def _refs(self, block: Block) -> list[Ref]:
        found: list[Ref] = []
        for file, extent in self._contents[block]:
            found += self._reference.of_file(file, extent.file_offset, extent.length, AROUND_BYTES)
        return found

    def _located(self, block: Block) -> list[Located]:
        return [
            Located(file.path, Stretch(extent.block_offset, extent.file_offset, extent.length))
            for file, extent in self._contents[block]
        ]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
