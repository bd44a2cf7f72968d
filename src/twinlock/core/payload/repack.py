"""Compressing pieces of a text again, so that they are the bytes that an image holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.core.errors import error
from twinlock.core.payload import libraries
from twinlock.core.payload.program import LZ4, RAW, ZLIB

if TYPE_CHECKING:
    from twinlock.core.payload.program import Pack


def repack(text: bytearray, packs: list[Pack], output_size_bytes: int, number: int) -> bytearray:
    """The output of a checked program's packs.

    Raises CompatibilityError `delta-library` when this machine lacks a library, `delta-base` when a piece
    packs to fewer bytes than it should: then the text, and so the base, is another.
    """
    output = bytearray()
    for pack in packs:
        packed = _packed(text, pack, number)
        piece = packed[pack.skip : pack.skip + pack.take]
        if len(piece) != pack.take:
            raise error("delta-base", f"part {number} packs to {len(packed)} bytes; the base is another")
        output += piece
    if len(output) != output_size_bytes:
        raise error("payload-malformed", f"part {number} packs to another size than it says")
    return output


def _packed(text: bytearray, pack: Pack, number: int) -> bytes | bytearray | memoryview:
    piece = memoryview(text)[pack.start : pack.start + pack.length]
    if pack.codec == RAW:
        return piece
    libraries.need(pack.library, number)
    packed: bytes | bytearray | None
    if pack.codec == LZ4:
        packed = libraries.lz4_pack(text, pack.start, pack.history, pack.length, pack.level)
    elif pack.codec == ZLIB:
        packed = libraries.zlib_pack(piece, pack.level)
    else:
        packed = libraries.zstd_pack(piece, pack.level, pack.version)
    if packed is None:
        raise error("delta-base", f"part {number} does not pack by {pack.library}")
    return packed
