"""Compressing pieces of a text again, so that they are the bytes that an image holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.core.errors import error
from twinlock.core.payload import libraries
from twinlock.core.payload.program import LZ4, RAW, ZLIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from twinlock.core.payload.program import Pack

    # (text, one of its packs, the part's number) -> all of what that pack gives
    Packer = Callable[[bytearray, Pack, int], bytes | bytearray | memoryview]


def packed(text: bytearray, pack: Pack, number: int) -> bytes | bytearray | memoryview:
    """All of what one pack of a checked program gives, by this machine's libraries. Raises as `repack`."""
    piece = memoryview(text)[pack.start : pack.start + pack.length]
    if pack.codec == RAW:
        return piece
    libraries.need(pack.library, number)
    found: bytes | bytearray | None
    if pack.codec == LZ4:
        found = libraries.lz4_pack(text, pack.start, pack.history, pack.length, pack.level)
    elif pack.codec == ZLIB:
        found = libraries.zlib_pack(piece, pack.level)
    else:
        found = libraries.zstd_pack(piece, pack.level, pack.version)
    if found is None:
        raise error("delta-base", f"part {number} does not pack by {pack.library}")
    return found


def repack(
    text: bytearray, packs: list[Pack], output_size_bytes: int, number: int, packer: Packer = packed
) -> bytearray:
    """The output of a checked program's packs, each packed by `packer`.

    Raises CompatibilityError `delta-library` when this machine lacks a library, `delta-base` when a piece
    packs to fewer bytes than it should: then the text, and so the base, is another.
    """
    output = bytearray()
    for pack in packs:
        whole = packer(text, pack, number)
        piece = whole[pack.skip : pack.skip + pack.take]
        if len(piece) != pack.take:
            raise error("delta-base", f"part {number} packs to {len(whole)} bytes; the base is another")
        output += piece
    if len(output) != output_size_bytes:
        raise error("payload-malformed", f"part {number} packs to another size than it says")
    return output
