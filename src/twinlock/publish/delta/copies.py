"""Which segments of an image need no encoding: zeros, and those whose blocks the base has.

Looked at before anything is encoded: how many are left says what a device's time is worth (see `price`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload.parts import Copy, Part, Zero, decode_part, is_zero
from twinlock.publish.delta.blocks import BlockIndex
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.price import Price


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """A part and its bytes in the payload (none for zero and copy)."""

    part: Part
    data: bytes


def find_copies(base: Image, image: Image) -> list[EncodedSegment | None]:
    """For each segment of the image: how it travels without bytes of its own, or None when it cannot.

    Raises InternalError when a copy does not decode to its segment.
    """
    index = BlockIndex.build(base)
    starts = range(0, len(image), limits.SEGMENT_SIZE_BYTES)
    return [
        _copy(image[start : start + limits.SEGMENT_SIZE_BYTES], number, base, index)
        for number, start in enumerate(starts)
    ]


def price_of(copies: Sequence[EncodedSegment | None]) -> Price:
    """The price for what is left to be made."""
    zeros = sum(found is not None and isinstance(found.part, Zero) for found in copies)
    return Price.of(sum(found is None for found in copies), len(copies) - zeros)


def _copy(segment: bytes, number: int, base: Image, index: BlockIndex) -> EncodedSegment | None:
    if is_zero(segment):
        return EncodedSegment(Zero(), b"")
    ranges = index.find(segment, base)
    if ranges is None or len(ranges) > limits.COPY_RANGES_MAX:
        return None
    part = Copy(tuple(ranges))
    if decode_part(part, b"", len(segment), number, base) != segment:
        raise error("internal", f"segment {number} is not the copy that was found")
    return EncodedSegment(part, b"")
