"""Encoding one segment as one part, and proving it: every part is decoded again before anyone sees it."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

from twinlock.core.errors import error
from twinlock.core.payload.blocks import block_hashes
from twinlock.core.payload.parts import Part, Zero, Zstd, check_encoded, check_part, decode_part, is_zero
from twinlock.core.zstd import CompressionParameter, ZstdCompressor

LEVEL_MIN: Final = 1
LEVEL_MAX: Final = 22
# A 512 MiB ext4 root of Debian programs, libraries and Python (300 segments that are not zero), one core:
#   level       3      9     12     15     17     19     22
#   MB      101.9   95.2   94.8   94.5   89.5   86.0   86.0
#   CPU s     1.4    5.4    7.9   22.1   53.7   89.2  129.4
# Packing is paid once, bytes by every device: 19. Unpacking costs 0.4 to 0.6 s at every level.
LEVEL_DEFAULT: Final = 19


@dataclass(frozen=True, slots=True)
class Encoded:
    """One segment ready to be written: its hash, its record in the index, its bytes in the payload, and
    the hashes of its blocks (none for zeros)."""

    sha256: bytes
    part: Part
    data: bytes
    blocks: bytes = b""


@lru_cache(maxsize=8)
def encoded_zero(length_bytes: int) -> Encoded:
    """A segment of `length_bytes` zero bytes."""
    return Encoded(hashlib.sha256(bytes(length_bytes)).digest(), Zero(), b"")


_own = threading.local()


def _compressor(level: int) -> ZstdCompressor:
    """This thread's compressor for a level. A frame does not depend on the one before it.

    Kept, since its tables are tens of MiB: made anew for each segment they break up the heap, and the peak
    grew by 15% from a 64 MiB image to a 256 MiB one.
    """
    if getattr(_own, "level", None) != level:
        _own.compressor = ZstdCompressor(options={CompressionParameter.compression_level: level})
        _own.level = level
    return cast("ZstdCompressor", _own.compressor)


def encode_segment(data: bytes, number: int, level: int) -> Encoded:
    """The smallest part for a segment, decoded again and compared.

    The same bytes and level give the same part with the same zstd library, whatever thread asks. Raises
    InternalError `internal` when the part does not give the segment back: nothing unproven is written.
    """
    if is_zero(data):
        return encoded_zero(len(data))
    encoded = _compressor(level).compress(data, mode=ZstdCompressor.FLUSH_FRAME)
    part = Zstd(len(encoded), hashlib.sha256(encoded).digest())
    check_part(part)
    check_encoded(part, encoded, number)
    if decode_part(part, encoded, len(data), number) != data:
        raise error("internal", f"segment {number} does not come back from its own part; nothing is written")
    return Encoded(hashlib.sha256(data).digest(), part, encoded, block_hashes(data))
