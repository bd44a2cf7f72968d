"""Parts: how one segment travels, and how it is decoded in bounded memory.

A payload holds one part per segment of the image. A part is a small record in the index; most point at a run
of bytes (`length` long, with SHA-256 `sha256`) in the payload file. Decoding a part needs these bytes, the
segment's length from the signed manifest and, for parts of a delta, the base image. Nothing is trusted until
the result has the segment's signed hash; the part's own hash only tells early whose fault it is.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

ZERO_BLOCK: Final = bytes(64 * limits.KIB)


class Zero(msgspec.Struct, frozen=True, array_like=True, tag=0, forbid_unknown_fields=True):
    """A segment of zero bytes: nothing travels."""

    @property
    def length(self) -> int:
        return 0


class Zstd(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """A segment as one zstd frame (RFC 8878) of `length` bytes, window at most `WINDOW_LOG_MAX`."""

    length: int
    sha256: bytes


Part = Zero | Zstd


def is_zero(data: bytes | memoryview) -> bool:
    """Whether every byte is zero, compared block by block without a copy of the whole."""
    view = memoryview(data)
    return all(
        view[start : start + len(ZERO_BLOCK)] == ZERO_BLOCK[: min(len(ZERO_BLOCK), len(view) - start)]
        for start in range(0, len(view), len(ZERO_BLOCK))
    )


def check_part(part: Part) -> None:
    """Raises TrustError `payload-malformed` when a part's own fields are out of bounds."""
    if isinstance(part, Zero):
        return
    if not 0 < part.length <= limits.PART_SIZE_BYTES_MAX:
        raise error("payload-malformed", f"a part claims {part.length} bytes")
    if len(part.sha256) != hashlib.sha256().digest_size:
        raise error("payload-malformed", "a part's hash is not 32 bytes")


def check_encoded(part: Part, encoded: bytes | memoryview, number: int) -> None:
    """Raises TrustError `payload-part-hash` unless `encoded` is exactly the bytes that the index names."""
    if isinstance(part, Zero):
        expected = b""
        if encoded:
            raise error("payload-part-hash", f"part {number} is a zero segment but came with bytes")
        return
    expected = part.sha256
    if len(encoded) != part.length or hashlib.sha256(encoded).digest() != expected:
        raise error("payload-part-hash", f"part {number} is not the bytes that the payload's index names")


def decode_part(part: Part, encoded: bytes | memoryview, length_bytes: int, number: int) -> bytes:
    """The segment's `length_bytes` bytes. Check `encoded` with `check_encoded` first.

    Memory: one segment and zstd's window of at most 8 MiB; a frame that asks for more is refused before it
    is allocated, output past `length_bytes` is never produced. Raises TrustError `payload-malformed`.
    """
    if isinstance(part, Zero):
        return bytes(length_bytes)
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
