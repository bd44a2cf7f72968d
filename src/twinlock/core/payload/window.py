"""The window of a step: ranges of the base, and of what packed blocks of the base unpack to."""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import TYPE_CHECKING

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload.base import Base, read_range, read_ranges
from twinlock.core.payload.libraries import lz4_unpack
from twinlock.core.payload.program import LZ4, ZLIB
from twinlock.core.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

if TYPE_CHECKING:
    from twinlock.core.payload.program import Program, Source


def read_window(base: Base, program: Program, number: int, kept: bytearray) -> bytearray:
    """The window of a checked program, `kept` first; one source is unpacked at a time.

    Raises CompatibilityError `delta-base` where the base is too short or a source does not unpack, and what
    `base` raises.
    """
    window = bytearray(program.window_size_bytes)
    view = memoryview(window)
    position = len(kept)
    view[:position] = kept
    of_source = defaultdict(list)
    for part in program.window:
        if part.source:
            of_source[part.source].append((position, part))
        else:
            read_range(base, view[position : position + part.length], part.offset, number)
        position += part.length
    for index, parts in sorted(of_source.items()):
        end = max(part.offset + part.length for _, part in parts)
        plain = memoryview(unpack_source(base, program.sources[index - 1], end, number))
        for place, part in parts:
            view[place : place + part.length] = plain[part.offset : part.offset + part.length]
        del plain
    return window


def unpack_source(base: Base, source: Source, size_bytes: int, number: int) -> bytes | bytearray:
    """The first `size_bytes` bytes, within the source's size, of what it unpacks to."""
    packed = read_ranges(base, source.ranges, sum(length for _, length in source.ranges), number)
    plain: bytes | bytearray | None
    if source.codec == LZ4:
        plain = lz4_unpack(packed, size_bytes)
    elif source.codec == ZLIB:
        plain = _zlib(packed, size_bytes)
    else:
        plain = _zstd(packed, size_bytes)
    if plain is None or len(plain) != size_bytes:
        raise error("delta-base", f"part {number} needs a packed block of the base that does not unpack")
    return plain


def _zlib(packed: bytearray, size_bytes: int) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(packed, size_bytes)
    except zlib.error:
        return None


def _zstd(packed: bytearray, size_bytes: int) -> bytes | None:
    try:
        decompressor = ZstdDecompressor(
            options={DecompressionParameter.window_log_max: limits.WINDOW_LOG_MAX}
        )
        return decompressor.decompress(packed, max_length=size_bytes)
    except ZstdError:
        return None
