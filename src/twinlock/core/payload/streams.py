"""How a step's program is compressed: stored, zstd, or LZMA2 with one of a few sets of properties.

LZMA2's own header names no sizes, so its dictionary is exactly as large as the output that the caller has
bounded. LZMA beats zstd by about a tenth on programs, zstd decodes five times as fast; the encoder chooses.
"""

from __future__ import annotations

import lzma
from typing import Any, Final

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

STORED: Final = 0
ZSTD: Final = 1
# codec number -> (literal context, literal position, position) bits
LZMA_PROPERTIES: Final = {2: (3, 0, 2), 3: (0, 2, 2), 4: (3, 0, 0), 5: (0, 0, 0)}
_DICTIONARY_SIZE_BYTES_MIN: Final = 4096


def lzma_filters(codec: int, size_bytes: int) -> list[dict[str, Any]]:
    """The raw LZMA2 filter chain of a codec for a program of `size_bytes`."""
    literal_context, literal_position, position = LZMA_PROPERTIES[codec]
    dictionary = max(size_bytes, _DICTIONARY_SIZE_BYTES_MIN)
    return [
        {
            "id": lzma.FILTER_LZMA2,
            "dict_size": dictionary,
            "lc": literal_context,
            "lp": literal_position,
            "pb": position,
        }
    ]


def unpack(codec: int, packed: memoryview, size_bytes: int, number: int) -> bytes:
    """Exactly `size_bytes` bytes, which the caller has bounded. Raises TrustError `payload-malformed`."""
    if codec == STORED:
        data = bytes(packed[:size_bytes])
        left = len(packed) > size_bytes
    elif codec == ZSTD:
        data, left = _zstd(packed, size_bytes, number)
    elif codec in LZMA_PROPERTIES:
        data, left = _lzma(codec, packed, size_bytes, number)
    else:
        raise error("format-unknown", f"part {number} is compressed by method {codec}")
    if left or len(data) != size_bytes:
        raise error("payload-malformed", f"part {number} has a program that is not {size_bytes} bytes")
    return data


def _zstd(packed: memoryview, size_bytes: int, number: int) -> tuple[bytes, bool]:
    try:
        decompressor = ZstdDecompressor(
            options={DecompressionParameter.window_log_max: limits.WINDOW_LOG_MAX}
        )
        data = decompressor.decompress(packed, max_length=size_bytes)
        extra = b"" if decompressor.eof else decompressor.decompress(b"", max_length=1)
    except ZstdError as problem:
        raise error("payload-malformed", f"part {number} does not decompress: {problem}") from problem
    return data, bool(extra) or not decompressor.eof or bool(decompressor.unused_data)


def _lzma(codec: int, packed: memoryview, size_bytes: int, number: int) -> tuple[bytes, bool]:
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=lzma_filters(codec, size_bytes))
    try:
        data = decompressor.decompress(packed, max_length=size_bytes)
        extra = b"" if decompressor.eof else decompressor.decompress(b"", max_length=1)
    except (lzma.LZMAError, EOFError) as problem:
        raise error("payload-malformed", f"part {number} does not decompress: {problem}") from problem
    return data, bool(extra) or not decompressor.eof or bool(decompressor.unused_data)
