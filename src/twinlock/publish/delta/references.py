"""Which ranges of the base a stretch of an image is matched against: older files, else the same place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from twinlock.core import limits
from twinlock.publish.delta.files.model import ImageMap, Piece
from twinlock.publish.delta.model import Ref
from twinlock.publish.delta.pairing import Pairing

# A file no larger than this is offered whole; of a larger one the same stretch and this much around it.
AROUND_BYTES: Final = 256 * limits.KIB
WINDOW_SIZE_BYTES_MAX: Final = 5 * limits.MIB

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Reference:
    """The two images' maps and the pairs between their files."""

    old: ImageMap
    new: ImageMap
    pairing: Pairing
    base_size_bytes: int

    def refs(self, start: int, end: int) -> list[Ref]:
        """Ranges of the base for the image's bytes `start` to `end`, sorted, at most the window's size."""
        wanted: list[Range] = []
        for piece in self.new.pieces(start, end):
            wanted.extend(self._of_piece(piece))
        return [Ref(None, *found) for found in merged(fitting(wanted, WINDOW_SIZE_BYTES_MAX))]

    def _of_piece(self, piece: Piece) -> list[Range]:
        found: list[Range] = []
        if piece.file is not None:
            for old in self.pairing.older(piece.file):
                around = AROUND_BYTES + abs(old.size_bytes - piece.file.size_bytes)
                low = max(0, piece.file_offset - around)
                high = piece.file_offset + piece.length + around
                found.extend(old.ranges(low, high))
        if not found:
            length = min(piece.length, self.base_size_bytes - piece.image_offset)
            if length > 0:
                found.append((piece.image_offset, length))
        return found


def fitting(ranges: Iterable[Range], size_bytes_max: int) -> list[Range]:
    """The first ranges that together are no larger than allowed; what overlaps counts once."""
    candidates = list(dict.fromkeys(ranges))
    if sum(length for _, length in candidates) <= size_bytes_max:
        return candidates
    taken: list[Range] = []
    for candidate in candidates:
        trial = merged([*taken, candidate])
        if sum(length for _, length in trial) > size_bytes_max:
            break
        taken = trial
    return taken


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The union of the ranges, sorted, without overlaps or touching neighbours."""
    union: list[Range] = []
    for offset, length in sorted(ranges):
        if union and offset <= union[-1][0] + union[-1][1]:
            last_offset, last_length = union[-1]
            union[-1] = (last_offset, max(last_length, offset + length - last_offset))
        else:
            union.append((offset, length))
    return union
