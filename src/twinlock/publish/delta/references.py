"""Which ranges of the base a stretch of an image is matched against: older files, else the same place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from twinlock.core import limits
from twinlock.publish.delta.files.model import ImageFile, ImageMap
from twinlock.publish.delta.model import Ref, size_of
from twinlock.publish.delta.pairing import Pairing

# A file no larger than this is offered whole; of a larger one the same stretch and this much around it.
AROUND_BYTES: Final = 256 * limits.KIB
WINDOW_SIZE_BYTES_MAX: Final = 5 * limits.MIB


@dataclass(frozen=True, slots=True)
class Reference:
    """The two images' maps and the pairs between their files."""

    old: ImageMap
    new: ImageMap
    pairing: Pairing
    base_size_bytes: int

    def refs(self, start: int, end: int) -> list[Ref]:
        """Ranges of the base for the image's bytes `start` to `end`, sorted, at most the window's size."""
        wanted: list[Ref] = []
        for piece in self.new.pieces(start, end):
            found = self.of_file(piece.file, piece.file_offset, piece.length) if piece.file else []
            wanted += found or self._same_place(piece.image_offset, piece.length)
        return fitting(wanted, WINDOW_SIZE_BYTES_MAX)

    def of_file(self, file: ImageFile, offset: int, length: int, around: int = AROUND_BYTES) -> list[Ref]:
        """What the base has of older files around the same place."""
        found: list[Ref] = []
        for old in self.pairing.older(file):
            spread = around + abs(old.size_bytes - file.size_bytes)
            found += old.refs(max(0, offset - spread), offset + length + spread)
        return found

    def _same_place(self, offset: int, length: int) -> list[Ref]:
        length = min(length, self.base_size_bytes - offset)
        return [Ref(None, offset, length)] if length > 0 else []


def fitting(refs: Iterable[Ref], size_bytes_max: int) -> list[Ref]:
    """The union of the first refs, as many as are together no larger than allowed."""
    candidates = list(dict.fromkeys(refs))
    union = merged(candidates)
    if size_of(union) <= size_bytes_max:
        return union
    low, high = 0, len(candidates)
    while high - low > 1:
        middle = (low + high) // 2
        if size_of(merged(candidates[:middle])) <= size_bytes_max:
            low = middle
        else:
            high = middle
    return merged(candidates[:low])


def merged(refs: Iterable[Ref]) -> list[Ref]:
    """The union of the refs, without overlaps or touching neighbours: the base's own first, then blocks."""
    union: list[Ref] = []
    for ref in sorted(refs, key=_order):
        last = union[-1] if union else None
        if last is not None and last.block == ref.block and ref.offset <= last.end:
            union[-1] = Ref(ref.block, last.offset, max(last.end, ref.end) - last.offset)
        else:
            union.append(ref)
    return union


def _order(ref: Ref) -> tuple[tuple[tuple[int, int], ...], int]:
    return (ref.block.ranges if ref.block else ()), ref.offset
