"""Which packed blocks of a text travel unpacked, to be packed again, and which as they lie in the image.

Decided when the text is matched: a block that resembles nothing costs more unpacked than packed, and packing
it again takes a device's time and the encoder's. What is left of a block is told by what zstd's fastest level
makes of the bytes that its covers do not give, as for fields (see `fields.worth`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from twinlock.core.payload.program import RAW, ZLIB, ZSTD, Pack
from twinlock.core.zstd import compress
from twinlock.publish.delta.covers import Cover
from twinlock.publish.delta.executables import Located
from twinlock.publish.delta.packing import Packing
from twinlock.publish.delta.price import Price
from twinlock.publish.delta.stretches import Packed

# ns that packing a byte takes on a desktop's core, at the levels that images are made with (zlib's 9, zstd's
# 15), by the least share of its size that a block packs to. zlib is slowest on long tables of small numbers.
_NS_PER_BYTE: Final = {
    ZLIB: ((0.5, 75), (0.35, 190), (0.3, 310), (0.22, 380), (0.15, 540), (0.0, 200)),
    ZSTD: ((0.5, 120), (0.2, 165), (0.0, 200)),
}
# Bytes of a payload for each byte under zstd's fastest level; of a block that is mostly new, all of them.
_SHARE: Final = 0.75
# Blocks are packed at a part of the price of what else a device does: nothing else saves so much in all. zlib
# would be left with few blocks otherwise, since it takes long.
_WORTH: Final = {ZLIB: 3.6, ZSTD: 2.2}

# (start, end, shift): a stretch of the text that stays, and how far it moves
_Kept = tuple[int, int, int]


def settled(
    stretch: Packed,
    window: bytes | bytearray,
    text: bytes | bytearray,
    covers: list[Cover],
    price: Price,
    packing: Packing,
) -> tuple[Packed, list[Cover]]:
    """The stretch with its blocks as they travel, and the covers of its text.

    `text` is the stretch's as it is matched against the window. A block stays unpacked when that saves its
    price, and when it packs to the image's block bit for bit.
    """
    if not stretch.blocks:
        return stretch, covers
    left = _left(window, text, covers)
    out = bytearray()
    packs: list[Pack] = []
    kept: list[_Kept] = []
    for pack, block in zip(stretch.packs, stretch.blocks, strict=True):
        end = pack.start + pack.length
        if pack.codec == RAW or (
            _pays(pack, block, left[pack.start : end], price)
            and packing.piece(stretch.text, pack, 0) == block
        ):
            kept.append((pack.start, end, len(out) - pack.start))
            packs.append(replace(pack, start=len(out)))
            out += stretch.text[pack.start : end]
        else:
            packs.append(Pack(RAW, 0, "", len(out), 0, pack.take, 0, pack.take))
            out += block[pack.skip : pack.skip + pack.take]
    if len(kept) == len(packs):
        return replace(stretch, blocks=()), covers
    located = tuple(_moved(stretch.located, kept))
    settled = replace(stretch, text=bytes(out), packs=tuple(packs), located=located, blocks=())
    return settled, list(_cut(covers, kept))


def _left(window: bytes | bytearray, text: bytes | bytearray, covers: Sequence[Cover]) -> bytes:
    """The text less what its covers copy: zeros where they give what is wanted."""
    old = np.frombuffer(window, np.uint8)
    left = np.frombuffer(text, np.uint8).copy()
    for place, start, length in covers:
        left[start : start + length] -= old[place : place + length]
    return left.tobytes()


def _pays(pack: Pack, block: bytes, left: bytes, price: Price) -> bool:
    cost = len(compress(left, 1)) * (_SHARE if 2 * left.count(0) >= len(left) else 1)
    share = len(block) / pack.length
    ns = next(ns for least, ns in _NS_PER_BYTE[pack.codec] if share >= least)
    return price.pays(_WORTH[pack.codec] * (pack.take - cost), pack.length * ns)


def _cut(covers: Sequence[Cover], kept: Sequence[_Kept]) -> Iterator[Cover]:
    """The covers of the stretches that stay, moved with them; both are in the order of the text."""
    index = 0
    for start, end, shift in kept:
        while index < len(covers) and covers[index].start + covers[index].length <= start:
            index += 1
        for cover in covers[index:]:
            if cover.start >= end:
                break
            low, high = max(start, cover.start), min(end, cover.start + cover.length)
            yield Cover(cover.place + low - cover.start, low + shift, high - low)


def _moved(located: Sequence[Located], kept: Sequence[_Kept]) -> Iterator[Located]:
    """What is in the stretches that stay; each item is in one block."""
    shifts = {start: (end, shift) for start, end, shift in kept}
    starts = np.array(sorted(shifts))
    for item in located:
        index = int(np.searchsorted(starts, item.stretch.place, "right")) - 1
        if index < 0:
            continue
        end, shift = shifts[int(starts[index])]
        if item.stretch.place < end:
            yield replace(item, stretch=replace(item.stretch, place=item.stretch.place + shift))
