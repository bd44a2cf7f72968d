"""Adaptive mode: what of an image the current slot already holds, wherever it lies there.

The slot is read once. Each of its 1 MiB segments that has a signed hash is delivered as it is read, so that
it is neither read nor hashed again. Of the 4 KiB blocks short hashes are kept, 8 bytes each, in which the
block hashes of a full payload (see `core.payload.blocks`) are looked up. A segment all of whose blocks are
there is put together from them, and counts when it has its signed hash. Memory: 8 bytes for each block of the
slot that is not zeros, at most `BLOCKS_MAX`.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.payload.blocks import BLOCK_SIZE_BYTES, HASH_SIZE_BYTES, block_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from twinlock.agent.ports import BlockDevice
    from twinlock.core.manifest import Manifest

BLOCKS_MAX: Final = 1 << 20  # the blocks of 4 GiB, 8 MiB of memory; what lies behind is not looked at
_NUMBER_BITS: Final = 24  # of a block's number; the rest of 64 bits is of its hash
_BUCKETS: Final = 256
_ZEROS: Final = bytes(BLOCK_SIZE_BYTES)
_ZEROS_HASH: Final = block_hash(_ZEROS)


class Held:
    """The blocks of a slot."""

    def __init__(self, device: BlockDevice, manifest: Manifest) -> None:
        self._device = device
        self._manifest = manifest
        self._buckets = [array("Q") for _ in range(_BUCKETS)]

    def look(
        self,
        numbers: Iterable[int],
        deliver: Callable[[int, memoryview], None],
        show: Callable[[int, int], None],
    ) -> None:
        """Reads the slot, and delivers those of the segments `numbers` that lie in it in one piece, at a
        multiple of 1 MiB. What is delivered is valid during the call. `show` is told the bytes done and in
        all.
        """
        wanted: dict[bytes, list[int]] = {}
        for number in numbers:
            wanted.setdefault(self._manifest.segment_sha256(number), []).append(number)
        buffer = bytearray(limits.SEGMENT_SIZE_BYTES)
        zeros = bytes(limits.SEGMENT_SIZE_BYTES)
        size_bytes = min(self._device.size_bytes, BLOCKS_MAX * BLOCK_SIZE_BYTES)
        for start in range(0, size_bytes, limits.SEGMENT_SIZE_BYTES):
            with memoryview(buffer)[: min(limits.SEGMENT_SIZE_BYTES, size_bytes - start)] as view:
                show(start, size_bytes)
                try:
                    self._device.read_into(view, start)
                except TwinlockError as problem:
                    if problem.code != "io-error":
                        raise
                    continue  # what cannot be read is not held
                if buffer == zeros:
                    continue  # zeros are written, not looked for
                for number in wanted.pop(hashlib.sha256(view).digest(), ()):
                    deliver(number, view)
                self._add(view, start // BLOCK_SIZE_BYTES)
        show(size_bytes, size_bytes)
        for number, bucket in enumerate(self._buckets):
            self._buckets[number] = array("Q", sorted(bucket))

    def _add(self, view: memoryview, number: int) -> None:
        for start in range(0, len(view) - BLOCK_SIZE_BYTES + 1, BLOCK_SIZE_BYTES):
            block = view[start : start + BLOCK_SIZE_BYTES]
            if block != _ZEROS:
                bucket, key = _key(block_hash(block))
                self._buckets[bucket].append(key | number + start // BLOCK_SIZE_BYTES)

    def of_blocks(self, number: int, hashes: bytes) -> bytes | None:
        """Segment `number`, if the slot holds all blocks of these hashes and they make it up."""
        length = self._manifest.segment_length_bytes(number)
        if length % BLOCK_SIZE_BYTES or len(hashes) != length // BLOCK_SIZE_BYTES * HASH_SIZE_BYTES:
            return None
        ranges: list[tuple[int, int]] = []
        for start in range(0, len(hashes), HASH_SIZE_BYTES):
            place = self._place(hashes[start : start + HASH_SIZE_BYTES])
            if place is None:
                return None
            if ranges and sum(ranges[-1]) == place and ranges[-1][0] >= 0:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + BLOCK_SIZE_BYTES)
            else:
                ranges.append((place, BLOCK_SIZE_BYTES))
        return self._signed(number, ranges)

    def _place(self, digest: bytes) -> int | None:
        """Where a block of this hash is; -BLOCK_SIZE_BYTES for zeros, None when it is nowhere."""
        if digest == _ZEROS_HASH:
            return -BLOCK_SIZE_BYTES
        number, key = _key(digest)
        bucket = self._buckets[number]
        index = bisect_left(bucket, key)
        if index == len(bucket) or bucket[index] >> _NUMBER_BITS != key >> _NUMBER_BITS:
            return None
        return (bucket[index] & ((1 << _NUMBER_BITS) - 1)) * BLOCK_SIZE_BYTES

    def _signed(self, number: int, ranges: list[tuple[int, int]]) -> bytes | None:
        """The bytes of the ranges, if they are the signed segment."""
        try:
            data = b"".join(self._read(ranges))
        except TwinlockError as problem:
            if problem.code != "io-error":
                raise
            return None
        return data if hashlib.sha256(data).digest() == self._manifest.segment_sha256(number) else None

    def _read(self, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
        for offset, length in ranges:
            if offset < 0:
                yield _ZEROS
                continue
            data = bytearray(length)
            self._device.read_into(memoryview(data), offset)
            yield bytes(data)


def _key(digest: bytes) -> tuple[int, int]:
    """(bucket, hash with room for a block's number)"""
    value = int.from_bytes(digest, "little")
    return value & (_BUCKETS - 1), value >> _NUMBER_BITS << _NUMBER_BITS
