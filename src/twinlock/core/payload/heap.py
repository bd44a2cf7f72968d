"""Keeping memory that is free again, while one segment after the other is decoded.

A segment takes some MiB for a moment: a program, a window, a text. glibc gives blocks of that size back to
the system when they are free and asks for them again with the next segment, and the system clears every page
of them. That was a tenth of what decoding takes. The peak stays what it was.
"""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
# More than any block that a decoder asks for, and than all of one segment.
_BLOCK_SIZE_BYTES: Final = 16 << 20
_KEPT_SIZE_BYTES: Final = 32 << 20


def keep_free_memory() -> bool:
    """Makes this process keep what it frees; False where the C library has no such setting (musl)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    set_blocks = mallopt(ctypes.c_int(_MMAP_THRESHOLD), ctypes.c_int(_BLOCK_SIZE_BYTES))
    set_kept = mallopt(ctypes.c_int(_TRIM_THRESHOLD), ctypes.c_int(_KEPT_SIZE_BYTES))
    return bool(set_blocks and set_kept)
