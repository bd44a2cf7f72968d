"""Numbers in as few bytes as they need (LEB128: 7 bits a byte, low ones first), columns of them, and rows.

A row is for thousands of numbers: a byte that says how many bytes each takes, then the lowest byte of all of
them, the next of all, and so on; negative ones in two's complement. Compressed it is as small as a column,
and it is read by a few copies instead of a loop. A row of no numbers is nothing.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import TwinlockError, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BYTES_MAX: Final = 6  # 42 bits: more than any offset in an image
_SHIFT_MAX: Final = 7 * (BYTES_MAX - 1)
_GOES_ON: Final = bytes(range(0x80, 0x100))  # bytes behind which a number goes on
_SIGNS: Final = bytes(0x80) + b"\xff" * 0x80  # what lies above a number with this highest byte
_WORD_BYTES: Final = 8
_BIG: Final = sys.byteorder == "big"


class Reader:
    """Reads numbers from the front of `data`. Whatever is wrong raises TrustError `payload-malformed`."""

    def __init__(self, data: bytes | memoryview, number: int) -> None:
        self._data = memoryview(data)
        self._part = number
        self.position = 0

    def value(self, maximum: int, what: str, minimum: int = 0) -> int:
        """One number, refused outside `minimum`..`maximum`."""
        found = self.column(1)[0]
        if not minimum <= found <= maximum:
            raise error("payload-malformed", f"part {self._part} claims {found} for its {what}")
        return found

    def column(self, count: int) -> array[int]:
        """`count` numbers; the caller has bounded `count`."""
        data = self._column(count)
        if len(data) == count:
            return array("Q", list(data))
        found = array("Q")
        append = found.append
        result = shift = 0
        for byte in data:
            if byte >= 0x80:
                result |= (byte & 0x7F) << shift
                shift += 7
                if shift > _SHIFT_MAX:
                    raise self._broken()
            elif shift:
                append(result | byte << shift)
                result = shift = 0
            else:
                append(byte)
        return found

    def _column(self, count: int) -> bytes:
        """The bytes of `count` numbers: as many more, again and again, as numbers have not ended yet."""
        start = end = self.position
        missing = count
        while missing:
            piece = bytes(self._data[end : end + missing])
            end += missing
            if len(piece) < missing or end - start > count * BYTES_MAX:
                raise self._broken()
            missing -= len(piece.translate(None, _GOES_ON))
        self.position = end
        return bytes(self._data[start:end])

    def _broken(self) -> TwinlockError:
        return error("payload-malformed", f"part {self._part} ends within its numbers")

    def signed_column(self, count: int) -> array[int]:
        """`count` numbers that may be negative, folded as 0, -1, 1, -2, 2 ..."""
        return array("q", [(value >> 1) ^ -(value & 1) for value in self.column(count)])

    def row(self, count: int) -> array[int]:
        """`count` numbers of one width; the caller has bounded `count`."""
        return self._row(count, array("Q"))

    def signed_row(self, count: int) -> array[int]:
        """The same for numbers that may be negative."""
        return self._row(count, array("q"))

    def _row(self, count: int, found: array[int]) -> array[int]:
        if not count:
            return found
        width = self.take(1)[0]
        if not 1 <= width <= BYTES_MAX:
            raise error("payload-malformed", f"part {self._part} has numbers of {width} bytes")
        words = bytearray(_WORD_BYTES * count)
        for place in range(width):
            highest = bytes(self.take(count))
            words[place::_WORD_BYTES] = highest
        if found.typecode == "q":
            signs = highest.translate(_SIGNS)
            for place in range(width, _WORD_BYTES):
                words[place::_WORD_BYTES] = signs
        found.frombytes(words)
        if _BIG:
            found.byteswap()
        return found

    def take(self, length: int) -> memoryview:
        """The next `length` bytes, without a copy."""
        if length > len(self._data) - self.position:
            raise error("payload-malformed", f"part {self._part} is shorter than it says")
        found = self._data[self.position : self.position + length]
        self.position += length
        return found

    def rest(self) -> memoryview:
        """Everything that is left."""
        return self.take(len(self._data) - self.position)

    def end(self) -> None:
        """Raises unless everything was read."""
        if self.position != len(self._data):
            raise error("payload-malformed", f"part {self._part} has bytes that nothing reads")


def encode(value: int) -> bytes:
    """One number of at most 42 bits."""
    if not 0 <= value < 1 << (7 * BYTES_MAX):
        raise ValueError(value)
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fold(value: int) -> int:
    """A number that may be negative as one that is not: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4."""
    return value << 1 if value >= 0 else ~(value << 1)


def column(values: Iterable[int]) -> bytes:
    """Numbers one behind the other."""
    return b"".join(map(encode, values))


def row(values: Sequence[int]) -> bytes:
    """Numbers of at most 48 bits as a row."""
    return _row(values, "Q", max((value.bit_length() for value in values), default=0))


def signed_row(values: Sequence[int]) -> bytes:
    """Numbers of at most 47 bits and a sign as a row."""
    return _row(values, "q", max((max(value, ~value).bit_length() + 1 for value in values), default=0))


def _row(values: Sequence[int], typecode: str, bits: int) -> bytes:
    if not values:
        return b""
    width = max(1, -(-bits // 8))
    if width > BYTES_MAX:
        raise ValueError(bits)
    words = array(typecode, values)
    if _BIG:
        words.byteswap()
    raw = words.tobytes()
    return bytes([width]) + b"".join(raw[place::_WORD_BYTES] for place in range(width))
