"""Covers: which pieces of the window a plain text is made of, approximately.

The search (a suffix array and the choice between overlapping matches that may differ in some bytes) is
HDiffPatch's. Only its covers are read from its output; how they travel is the patch's own affair.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import hdiffpatch

from twinlock.core.errors import error

_MAGIC: Final = b"HDIFF13&\0"
_HEAD_NUMBERS: Final = 11


class Cover(NamedTuple):
    """`length` bytes at `start` of the plain text resemble those at `place` of the window."""

    place: int
    start: int
    length: int


class _Numbers:
    """HDiffPatch's packed numbers: big endian, 7 bits a byte, with a sign bit ahead where one is needed."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    def _more(self, value: int) -> int:
        while True:
            byte = self._data[self._position]
            self._position += 1
            value = value << 7 | byte & 0x7F
            if not byte & 0x80:
                return value

    def unsigned(self) -> int:
        return self._more(0)

    def signed(self) -> int:
        byte = self._data[self._position]
        self._position += 1
        value = byte & 0x3F
        if byte & 0x40:
            value = self._more(value)
        return -value if byte & 0x80 else value


def find_covers(window: bytes, plain: bytes) -> list[Cover]:
    """Covers in the order of `plain`, none overlapping another there; empty when nothing resembles."""
    if not window or not plain:
        return []
    patch: bytes = hdiffpatch.diff(window, plain, None, validate=False)
    if not patch.startswith(_MAGIC):
        raise error("internal", f"hdiffpatch writes a format that begins with {patch[:10]!r}")
    numbers = _Numbers(patch, len(_MAGIC))
    head = [numbers.unsigned() for _ in range(_HEAD_NUMBERS)]
    if head[:2] != [len(plain), len(window)]:
        raise error("internal", f"hdiffpatch names sizes {head[:2]}, not {[len(plain), len(window)]}")
    covers = []
    place = start = 0
    for _ in range(head[2]):
        place += numbers.signed()
        start += numbers.unsigned()
        length = numbers.unsigned()
        if not (0 <= place <= len(window) - length and start <= len(plain) - length):
            raise error("internal", "hdiffpatch names a cover outside its input")
        if length:
            covers.append(Cover(place, start, length))
        place += length
        start += length
    return covers
