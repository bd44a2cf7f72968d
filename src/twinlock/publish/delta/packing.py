"""Packing pieces of texts as a device does, each piece once."""

from __future__ import annotations

from typing import Final

from twinlock.core import limits
from twinlock.core.payload.program import RAW, Pack
from twinlock.core.payload.repack import packed

REMEMBERED_BYTES_MAX: Final = 16 * limits.MIB


class Packing:
    """Remembers what the pieces packed last gave, so that a proof need not pack them again.

    A piece is known by all of its bytes, its codec, level and version, never by a hash: what is remembered is
    what this machine's library gave for these very bytes.
    """

    def __init__(self, size_bytes_max: int = REMEMBERED_BYTES_MAX) -> None:
        self._size_bytes_max = size_bytes_max
        self._size_bytes = 0
        self._known: dict[tuple[int, int, str, bytes], bytes] = {}

    def piece(self, text: bytes | bytearray, pack: Pack, number: int) -> bytes | bytearray | memoryview:
        """All of what a pack of the text gives. Raises as `core.payload.repack.repack`."""
        plain = bytes(memoryview(text)[pack.start : pack.start + pack.length])
        if pack.codec == RAW:
            return plain
        if pack.history:
            return packed(bytearray(text), pack, number)
        key = (pack.codec, pack.level, pack.version, plain)
        found = self._known.pop(key, None)
        if found is None:
            whole = Pack(pack.codec, pack.level, pack.version, 0, 0, len(plain), pack.skip, pack.take)
            found = bytes(packed(bytearray(plain), whole, number))
            self._size_bytes += len(plain) + len(found)
        self._known[key] = found  # the newest is last
        while self._size_bytes > self._size_bytes_max:
            oldest = next(iter(self._known))
            self._size_bytes -= len(oldest[3]) + len(self._known.pop(oldest))
        return found
