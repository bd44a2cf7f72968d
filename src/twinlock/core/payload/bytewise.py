"""Adding bytes to bytes without carries between them, by the interpreter's own long numbers."""

from __future__ import annotations

from typing import Final

CHUNK_SIZE_BYTES: Final = 8192
_LOW: Final = int.from_bytes(b"\x7f" * CHUNK_SIZE_BYTES, "little")
_HIGH: Final = int.from_bytes(b"\x80" * CHUNK_SIZE_BYTES, "little")


def add_into(into: memoryview, values: memoryview) -> None:
    """into[i] = (into[i] + values[i]) % 256 for every i; both have the same length.

    The low seven bits of all bytes are added at once, where no carry can leave its byte; the top bits are
    then their exclusive or.
    """
    for start in range(0, len(into), CHUNK_SIZE_BYTES):
        chunk = into[start : start + CHUNK_SIZE_BYTES]
        left = int.from_bytes(chunk, "little")
        right = int.from_bytes(values[start : start + CHUNK_SIZE_BYTES], "little")
        total = ((left & _LOW) + (right & _LOW)) ^ ((left ^ right) & _HIGH)
        chunk[:] = total.to_bytes(len(chunk), "little")
