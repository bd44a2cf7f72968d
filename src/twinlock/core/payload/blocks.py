"""Block hashes: how a device without a delta finds what of a segment its current slot already holds.

A full payload may carry, behind its parts, the first 8 bytes of the SHA-256 of each 4 KiB block of every
segment that is not all zeros, in order; the last block of an image may be shorter. They only say where to
look: what is put together by them counts when the whole segment has its signed hash. So they are not signed,
and a forged one costs a fetch.
"""

from __future__ import annotations

import hashlib
from typing import Final

BLOCK_SIZE_BYTES: Final = 4096
HASH_SIZE_BYTES: Final = 8


def block_count(size_bytes: int) -> int:
    """How many blocks a segment of that size has."""
    return -(-size_bytes // BLOCK_SIZE_BYTES)


def block_hashes(data: bytes | bytearray | memoryview) -> bytes:
    """The hashes of all blocks of a segment, one behind the other."""
    view = memoryview(data)
    return b"".join(
        block_hash(view[start : start + BLOCK_SIZE_BYTES]) for start in range(0, len(view), BLOCK_SIZE_BYTES)
    )


def block_hash(block: bytes | memoryview) -> bytes:
    """The hash of one block."""
    return hashlib.sha256(block).digest()[:HASH_SIZE_BYTES]
