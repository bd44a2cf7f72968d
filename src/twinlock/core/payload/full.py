"""Zstd parts: a segment as one zstd frame, against nothing."""

from __future__ import annotations

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.zstd import DecompressionParameter, ZstdDecompressor, ZstdError


def decode(encoded: bytes | memoryview, length_bytes: int, number: int) -> bytes:
    """The segment's `length_bytes` bytes.

    Memory: one segment and zstd's window of at most 8 MiB; a frame that asks for more is refused before it
    is allocated, output past `length_bytes` is never produced. Raises TrustError `payload-malformed`.
    """
    try:
        decompressor = ZstdDecompressor(
            options={DecompressionParameter.window_log_max: limits.WINDOW_LOG_MAX}
        )
        data = decompressor.decompress(encoded, max_length=length_bytes)
        # one byte more than announced is an error; asking for it costs nothing
        extra = b"" if decompressor.eof else decompressor.decompress(b"", max_length=1)
    except ZstdError as problem:
        raise error("payload-malformed", f"part {number} does not decompress: {problem}") from problem
    if extra or len(data) != length_bytes or not decompressor.eof or decompressor.unused_data:
        raise error("payload-malformed", f"part {number} does not decode to {length_bytes} bytes")
    return data
