"""Prefix parts: one zstd frame (RFC 8878) that may refer to ranges of the base as if they stood before it.

    range count, offsets relative to the end of the range before (signed), lengths (varints), then the frame

The ranges are zstd's "prefix": raw content, used once, nothing of a dictionary's tables.
"""

from __future__ import annotations

from typing import Final

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload.base import Base, decode_ranges, read_ranges
from twinlock.core.payload.varints import Reader
from twinlock.core.zstd import DecompressionParameter, ZstdDecompressor, ZstdDict, ZstdError

PREFIX_SIZE_BYTES_MIN: Final = 8  # zstd ignores shorter ones


def decode(encoded: bytes | memoryview, length_bytes: int, number: int, base: Base) -> bytes:
    """The segment's `length_bytes` bytes. Raises TrustError `payload-malformed`, or what `base` raises."""
    reader = Reader(encoded, number)
    ranges = decode_ranges(reader, number)
    size_bytes = sum(length for _, length in ranges)
    if not PREFIX_SIZE_BYTES_MIN <= size_bytes <= limits.PREFIX_SIZE_BYTES_MAX:
        raise error("payload-malformed", f"part {number} wants a prefix of {size_bytes} bytes")
    window = read_ranges(base, ranges, size_bytes, number)
    try:
        decompressor = ZstdDecompressor(
            zstd_dict=ZstdDict(bytes(window), is_raw=True).as_prefix,
            options={DecompressionParameter.window_log_max: limits.PREFIX_WINDOW_LOG_MAX},
        )
        data = decompressor.decompress(reader.rest(), max_length=length_bytes)
        extra = b"" if decompressor.eof else decompressor.decompress(b"", max_length=1)
    except ZstdError as problem:
        # the bytes were right, so the base may be the one that is wrong: the full payload has the segment
        raise error(
            "delta-base", f"part {number} does not decompress against the base: {problem}"
        ) from problem
    if extra or len(data) != length_bytes or not decompressor.eof or decompressor.unused_data:
        raise error("delta-base", f"part {number} does not decode to {length_bytes} bytes")
    return data
