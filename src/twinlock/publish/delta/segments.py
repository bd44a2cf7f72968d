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
from twinlock.core.payload.program import Pack
from twinlock.core.zstd import CompressionParameter, ZstdCompressor, ZstdDict, compress
from twinlock.publish.delta.blocks import BlockIndex
from twinlock.publish.delta.covers import find_covers
from twinlock.publish.delta.model import Ref, Window
from twinlock.publish.delta.program import build_program, encode_ranges, pack_step
from twinlock.publish.delta.references import Reference
from twinlock.publish.delta.stretches import Cutter, Raw
from twinlock.publish.delta.trim import trimmed

ZSTD_LEVEL: Final = 19
POOR_PATCH_BYTES: Final = 256 * limits.KIB  # from here on a patch may be worse than no base at all


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """A part and its bytes in the payload (none for zero and copy)."""

    part: Part
    data: bytes


class MappedBase:
    """The base image, mapped into memory."""

    def __init__(self, base: mmap) -> None:
        self._base = base

    def read(self, offset: int, length: int) -> bytes:
        return self._base[offset : offset + length]


class Encoder:
    """What every segment is encoded with; the same for all of them."""

    def __init__(
        self, base: mmap, image: mmap, index: BlockIndex, reference: Reference, cutter: Cutter
    ) -> None:
        self._base = base
        self._image = image
        self._index = index
        self._reference = reference
        self._cutter = cutter
        self._decoding_base = MappedBase(base)
        self._window = Window(self._decoding_base)

    def encode(self, number: int) -> EncodedSegment:
        """The smallest form of segment `number`. Raises InternalError when it does not decode to itself."""
        start = number * limits.SEGMENT_SIZE_BYTES
        segment = self._image[start : start + limits.SEGMENT_SIZE_BYTES]
        if is_zero(segment):
            return EncodedSegment(Zero(), b"")
        found = self._copy(segment) or min(self._forms(segment, start), key=lambda form: len(form.data))
        if decode_part(found.part, found.data, len(segment), number, self._decoding_base) != segment:
            raise error("internal", f"segment {number} does not decode to itself")
        return found

    def _copy(self, segment: bytes) -> EncodedSegment | None:
        ranges = self._index.find(segment, self._base)
        if ranges is None or len(ranges) > limits.COPY_RANGES_MAX:
            return None
        return EncodedSegment(Copy(tuple(ranges)), b"")

    def _forms(self, segment: bytes, start: int) -> list[EncodedSegment]:
        forms = [_stored(Patch, self._patch(start, start + len(segment)))]
        if len(forms[0].data) > POOR_PATCH_BYTES:
            forms.append(_stored(Zstd, compress(segment, ZSTD_LEVEL)))
        return forms

    def _patch(self, start: int, end: int) -> bytes:
        steps = []
        for stretch in self._cutter.cut(start, end):
            if isinstance(stretch, Raw):
                refs = self._reference.refs(stretch.start, stretch.end)
                steps.append(self._step(self._image[stretch.start : stretch.end], refs))
            else:
                steps.append(self._step(stretch.text, stretch.refs, stretch.packs))
        return b"".join(steps)

    def _step(self, text: bytes, refs: Sequence[Ref], packs: Sequence[Pack] = ()) -> bytes:
        refs, covers = trimmed(refs, find_covers(self._window.read(refs), text))
        program = build_program(refs, self._window.read(refs), text, covers, packs)
        return pack_step(program, sum(pack.take for pack in packs) or len(text))


def _stored(kind: type[Zstd | Patch | Prefix], data: bytes) -> EncodedSegment:
    return EncodedSegment(kind(len(data), hashlib.sha256(data).digest()), data)


def prefix_part(segment: bytes, window: bytes, ranges: Sequence[tuple[int, int]]) -> bytes:
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
