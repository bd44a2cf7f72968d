"""One segment: every way for it to travel, and the smallest of them, proven by decoding it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Final

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload.parts import Copy, Part, Patch, Prefix, Zero, Zstd, decode_part, is_zero
from twinlock.core.payload.prefix import PREFIX_SIZE_BYTES_MIN
from twinlock.core.zstd import CompressionParameter, ZstdCompressor, ZstdDict, compress
from twinlock.publish.delta.blocks import BlockIndex
from twinlock.publish.delta.covers import find_covers
from twinlock.publish.delta.program import build_program, encode_ranges, pack_step
from twinlock.publish.delta.references import Range, Reference
from twinlock.publish.delta.trim import trimmed

ZSTD_LEVEL: Final = 19
POOR_PATCH_BYTES: Final = 256 * limits.KIB  # from here on a patch may be worse than no base at all


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """A part and its bytes in the payload (none for zero and copy)."""

    part: Part
    data: bytes


@dataclass(frozen=True, slots=True)
class Encoder:
    """What every segment is encoded with; the same for all of them."""

    base: mmap
    image: mmap
    index: BlockIndex
    reference: Reference

    def encode(self, number: int) -> EncodedSegment:
        """The smallest form of segment `number`. Raises InternalError when it does not decode to itself."""
        start = number * limits.SEGMENT_SIZE_BYTES
        segment = self.image[start : start + limits.SEGMENT_SIZE_BYTES]
        if is_zero(segment):
            return EncodedSegment(Zero(), b"")
        found = self._copy(segment) or min(self._forms(segment, start), key=lambda form: len(form.data))
        self._prove(found, segment, number)
        return found

    def _copy(self, segment: bytes) -> EncodedSegment | None:
        ranges = self.index.find(segment, self.base)
        if ranges is None or len(ranges) > limits.COPY_RANGES_MAX:
            return None
        return EncodedSegment(Copy(tuple(ranges)), b"")

    def _forms(self, segment: bytes, start: int) -> list[EncodedSegment]:
        ranges = self.reference.ranges(start, start + len(segment))
        forms = [_stored(Patch, self._patch(segment, ranges))] if ranges else []
        if not forms or len(forms[0].data) > POOR_PATCH_BYTES:
            forms.append(_stored(Zstd, compress(segment, ZSTD_LEVEL)))
        return forms

    def _patch(self, segment: bytes, ranges: Sequence[Range]) -> bytes:
        window = self.read(ranges)
        covers = find_covers(window, segment)
        ranges, covers = trimmed(ranges, covers)
        return pack_step(build_program(ranges, self.read(ranges), segment, covers), len(segment))

    def read(self, ranges: Sequence[Range]) -> bytes:
        """The base's bytes of the ranges, one behind the other."""
        return b"".join(self.base[offset : offset + length] for offset, length in ranges)

    def _prove(self, found: EncodedSegment, segment: bytes, number: int) -> None:
        base = _MappedBase(self.base)
        if decode_part(found.part, found.data, len(segment), number, base) != segment:
            raise error("internal", f"segment {number} does not decode to itself")


class _MappedBase:
    def __init__(self, base: mmap) -> None:
        self._base = base

    def read(self, offset: int, length: int) -> bytes:
        return self._base[offset : offset + length]


def _stored(kind: type[Zstd | Patch | Prefix], data: bytes) -> EncodedSegment:
    return EncodedSegment(kind(len(data), hashlib.sha256(data).digest()), data)


def prefix_part(segment: bytes, window: bytes, ranges: Sequence[Range]) -> bytes:
    """A prefix part: the segment as a zstd frame against the window, which has the bytes of `ranges`."""
    if not PREFIX_SIZE_BYTES_MIN <= len(window) <= limits.PREFIX_SIZE_BYTES_MAX:
        raise ValueError(len(window))
    options: dict[int, int] = {
        CompressionParameter.compression_level: ZSTD_LEVEL,
        CompressionParameter.window_log: limits.PREFIX_WINDOW_LOG_MAX,
        CompressionParameter.content_size_flag: 0,
    }
    compressor = ZstdCompressor(options=options, zstd_dict=ZstdDict(window, is_raw=True).as_prefix)
    return encode_ranges(ranges) + compressor.compress(segment, ZstdCompressor.FLUSH_FRAME)
