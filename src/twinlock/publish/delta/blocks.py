"""An index of the base's 4 KiB blocks, to find those of an image that it has, wherever they lie."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from twinlock.publish.delta.images import Image

BLOCK_SIZE_BYTES: Final = 4096
_HASH_SIZE_BYTES: Final = 8
NOWHERE: Final = -1


def _hashes(data: memoryview) -> NDArray[np.uint64]:
    whole = len(data) // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES
    digests = b"".join(
        hashlib.blake2b(data[at : at + BLOCK_SIZE_BYTES], digest_size=_HASH_SIZE_BYTES).digest()
        for at in range(0, whole, BLOCK_SIZE_BYTES)
    )
    return np.frombuffer(digests, np.uint64)


class BlockIndex:
    """Sorted hashes of the base's blocks and their numbers: 16 bytes for each 4 KiB."""

    def __init__(self, hashes: NDArray[np.uint64], numbers: NDArray[np.int64]) -> None:
        self.hashes = hashes
        self.numbers = numbers

    @classmethod
    def build(cls, base: Image) -> BlockIndex:
        hashes = np.concatenate([_hashes(memoryview(chunk)) for chunk in base.chunks()])
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order)

    def find(self, data: bytes, base: Image) -> list[tuple[int, int]] | None:
        """(offset, length) ranges of the base that hold exactly `data`; None when a block is nowhere in it.

        Prefers to go on where the block before came from, so that ranges are long. Blocks are compared, since
        hashes of 8 bytes may collide.
        """
        if len(data) % BLOCK_SIZE_BYTES:
            return None
        ranges: list[tuple[int, int]] = []
        end = NOWHERE
        for at in range(0, len(data), BLOCK_SIZE_BYTES):
            block = data[at : at + BLOCK_SIZE_BYTES]
            if end == NOWHERE or base[end : end + BLOCK_SIZE_BYTES] != block:
                end = self._place(block, base)
                if end == NOWHERE:
                    return None
                ranges.append((end, 0))
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + BLOCK_SIZE_BYTES)
            end += BLOCK_SIZE_BYTES
        return ranges

    def _place(self, block: bytes, base: Image) -> int:
        wanted = _hashes(memoryview(block))[0]
        index = int(np.searchsorted(self.hashes, wanted))
        if index == len(self.hashes) or self.hashes[index] != wanted:
            return NOWHERE
        place = int(self.numbers[index]) * BLOCK_SIZE_BYTES
        return place if base[place : place + BLOCK_SIZE_BYTES] == block else NOWHERE
