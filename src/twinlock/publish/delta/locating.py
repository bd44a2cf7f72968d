"""Which files the bytes of a window or a text belong to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from twinlock.publish.delta.executables import Located
from twinlock.publish.delta.fields.cutting import Stretch
from twinlock.publish.delta.files.model import ImageFile, ImageMap
from twinlock.publish.delta.model import Block, Ref
from twinlock.publish.delta.stretches import Packed, Raw, Unpacked


@dataclass(slots=True)
class Locator:
    """The files of both images; unpacked kernels of the base are made known to it with `add`."""

    old: ImageMap
    new: ImageMap
    _unpacked: dict[str, Unpacked] = field(default_factory=dict)
    _blocks: dict[Block, list[Located]] = field(default_factory=lambda: defaultdict(list))
    _files: dict[str, ImageFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in self.old.files:
            self._files[file.path] = file
            for extent in file.packed:
                stretch = Stretch(extent.block_offset, extent.file_offset, extent.length)
                self._blocks[extent.block].append(Located(file.path, stretch))

    def add(self, kernel: Unpacked) -> None:
        """Makes a kernel of the base known."""
        if kernel.name not in self._unpacked:
            self._unpacked[kernel.name] = kernel
            start = 0
            for block in kernel.blocks:
                self._blocks[block].append(Located(kernel.name, Stretch(0, start, block.size_bytes)))
                start += block.size_bytes

    def window(self, refs: Sequence[Ref]) -> list[Located]:
        """What of which files lies where in a window of these refs."""
        found: list[Located] = []
        place = 0
        for ref in refs:
            if ref.block is None:
                found += self._plain(self.old, ref.offset, ref.end, place)
            else:
                found += self._packed(ref, place)
            place += ref.length
        return found

    def text(self, stretch: Raw | Packed) -> Sequence[Located]:
        """What of which files lies where in the text of a stretch."""
        if isinstance(stretch, Packed):
            return stretch.located
        return self._plain(self.new, stretch.start, stretch.end, 0)

    def refs(self, name: str, offset: int, length: int) -> list[Ref]:
        """Refs to the bytes of a file of the base, by its name."""
        if name in self._unpacked:
            return self._unpacked[name].refs(offset, offset + length)
        return list(self._files[name].refs(offset, offset + length))

    @staticmethod
    def _plain(images: ImageMap, start: int, end: int, place: int) -> list[Located]:
        return [
            Located(
                piece.file.path,
                Stretch(place + piece.image_offset - start, piece.file_offset, piece.length),
            )
            for piece in images.pieces(start, end)
            if piece.file
        ]

    def _packed(self, ref: Ref, place: int) -> list[Located]:
        assert ref.block is not None
        found = []
        for item in self._blocks.get(ref.block, ()):
            stretch = item.stretch
            low = max(ref.offset, stretch.place)
            high = min(ref.end, stretch.place + stretch.length)
            if low < high:
                moved = Stretch(place + low - ref.offset, stretch.offset + low - stretch.place, high - low)
                found.append(replace(item, stretch=moved))
        return found
