"""What the encoder refers to: ranges of the base, and ranges of what the base's packed blocks unpack to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from twinlock.core import limits
from twinlock.core.payload.program import Source
from twinlock.core.payload.window import unpack_source
from twinlock.publish.delta.images import Image

_CACHED_BYTES_MAX: Final = 48 * limits.MIB


@dataclass(frozen=True, slots=True)
class Block:
    """A packed block of the base: its codec, the size that it unpacks to, where its bytes lie."""

    codec: int
    size_bytes: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Ref:
    """`length` bytes at `offset` of what `block` unpacks to, or of the base itself."""

    block: Block | None
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def cut(self, start: int, length: int) -> Ref:
        """`length` bytes of it, from `start` within it."""
        return Ref(self.block, self.offset + start, length)


def size_of(refs: Sequence[Ref]) -> int:
    """How many bytes the refs are together."""
    return sum(ref.length for ref in refs)


def sources_of(refs: Sequence[Ref]) -> list[Block]:
    """The blocks that the refs need, in order of first use."""
    return list(dict.fromkeys(ref.block for ref in refs if ref.block is not None))


class Window:
    """Reads refs out of a base; keeps the blocks unpacked last."""

    def __init__(self, base: Image) -> None:
        self._base = base
        self._unpacked: dict[Block, bytes] = {}

    def read(self, refs: Sequence[Ref]) -> bytes:
        """The bytes of the refs, one behind the other. Raises TwinlockError when a block does not unpack."""
        return b"".join(self._bytes(ref) for ref in refs)

    def _bytes(self, ref: Ref) -> bytes:
        if ref.block is None:
            return self._base[ref.offset : ref.end]
        return self.unpacked(ref.block)[ref.offset : ref.end]

    def unpacked(self, block: Block) -> bytes:
        """All of what the block unpacks to."""
        known = self._unpacked.pop(block, None)
        if known is None:
            source = Source(block.codec, block.size_bytes, list(block.ranges))
            known = bytes(unpack_source(self._base, source, block.size_bytes, 0))
        self._unpacked[block] = known  # the newest is last
        while sum(map(len, self._unpacked.values())) > _CACHED_BYTES_MAX:
            del self._unpacked[next(iter(self._unpacked))]
        return known
