"""A packed block travels unpacked when that saves its price and packs to the image's bytes; else as it is."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.core.payload.program import RAW, ZLIB, Pack
from twinlock.publish.delta.covers import Cover
from twinlock.publish.delta.executables import Located
from twinlock.publish.delta.fields.cutting import Stretch
from twinlock.publish.delta.packing import Packing
from twinlock.publish.delta.price import Price
from twinlock.publish.delta.settling import settled
from twinlock.publish.delta.stretches import Packed

SIZE = 60_000
CHEAP = Price()
NEVER = Price(1 << 50)
VERSION = zlib.ZLIB_RUNTIME_VERSION
RNG = random.Random(9)
KNOWN = [bytes(RNG.choices(b"abcdefghijklmnop", k=SIZE)) for _ in range(3)]


def stretch(plains: list[bytes], skip: int = 0) -> Packed:
    """Blocks one behind the other, each in a file of its own, raw bytes behind them."""
    packs, blocks, located = [], [], []
    for number, plain in enumerate(plains):
        block = zlib.compress(plain, 9)
        packs.append(Pack(ZLIB, 9, VERSION, number * SIZE, 0, SIZE, skip, len(block) - skip))
        blocks.append(block)
        located.append(Located(f"file {number}", Stretch(number * SIZE, 7, SIZE)))
    packs.append(Pack(RAW, 0, "", len(plains) * SIZE, 0, 5, 0, 5))
    return Packed(b"".join(plains) + b"table", tuple(packs), (), tuple(located), (*blocks, b""))


WINDOW = b"".join(KNOWN)
WHOLE = [Cover(0, 0, 3 * SIZE)]


def image_of(found: Packed) -> bytes:
    packing = Packing()
    text = found.text
    return b"".join(bytes(packing.piece(text, p, 0)[p.skip : p.skip + p.take]) for p in found.packs)


def test_blocks_that_the_base_has_travel_unpacked() -> None:
    whole = stretch(KNOWN)
    found, covers = settled(whole, WINDOW, whole.text, WHOLE, CHEAP, Packing())
    assert found == replace(whole, blocks=())
    assert covers == WHOLE


@pytest.mark.parametrize("price", [CHEAP, NEVER])
def test_a_block_that_resembles_nothing_goes_as_it_is_whatever_its_price(price: Price) -> None:
    new = RNG.randbytes(SIZE)
    whole = stretch([KNOWN[0], new, KNOWN[2]])
    covers = [Cover(0, 0, SIZE), Cover(2 * SIZE, 2 * SIZE, SIZE)]
    found, moved = settled(whole, WINDOW, whole.text, covers, price, Packing())
    assert found.packs[1].codec == RAW
    assert image_of(found) == image_of(whole)
    if price is CHEAP:
        shift = found.packs[1].length - SIZE
        assert moved == [Cover(0, 0, SIZE), Cover(2 * SIZE, 2 * SIZE + shift, SIZE)]
        assert [item.stretch.place for item in found.located] == [0, 2 * SIZE + shift]
        assert [item.name for item in found.located] == ["file 0", "file 2"]
    else:
        assert (moved, found.located) == ([], ())


def test_a_block_is_not_packed_when_that_is_too_dear() -> None:
    class Refusing(Packing):
        def piece(self, *_: object) -> bytes:
            raise AssertionError("packed")

    whole = stretch(KNOWN)
    found, _ = settled(whole, WINDOW, whole.text, WHOLE, NEVER, Refusing())
    assert {pack.codec for pack in found.packs} == {RAW}


def test_a_block_that_packs_otherwise_goes_as_it_is() -> None:
    whole = stretch(KNOWN)
    other = zlib.compress(KNOWN[1], 6)[: len(whole.blocks[1])].ljust(len(whole.blocks[1]), b"x")
    whole = replace(whole, blocks=(whole.blocks[0], other, *whole.blocks[2:]))
    found, _ = settled(whole, WINDOW, whole.text, WHOLE, CHEAP, Packing())
    assert [pack.codec for pack in found.packs] == [ZLIB, RAW, ZLIB, RAW]
    place = found.packs[1].start
    assert found.text[place : place + len(other)] == other


def test_what_is_settled_stays() -> None:
    whole = replace(stretch(KNOWN), blocks=())
    assert settled(whole, WINDOW, whole.text, WHOLE, NEVER, Packing()) == (whole, WHOLE)


@given(seed=st.integers(0, 1 << 32), skip=st.integers(0, 3000))
def test_covers_copy_the_same_and_the_image_stays(seed: int, skip: int) -> None:
    """Seeded: some blocks known, some new, cut into covers that reach over blocks' borders."""
    rng = random.Random(seed)
    plains = [KNOWN[n] if rng.randrange(3) else rng.randbytes(SIZE) for n in range(3)]
    whole = stretch(plains, skip)
    covers = []
    position = 0
    while position < 3 * SIZE:
        length = min(rng.randrange(1, SIZE), 3 * SIZE - position)
        if WINDOW[position : position + length] == whole.text[position : position + length]:
            covers.append(Cover(position, position, length))
        position += length
    found, moved = settled(whole, WINDOW, whole.text, covers, CHEAP, Packing())
    end = 0
    for place, start, length in moved:
        assert start >= end
        end = start + length
        assert WINDOW[place : place + length] == found.text[start:end]
    assert image_of(found) == image_of(whole)
    for pack, plain in zip(found.packs, plains, strict=False):
        if pack.codec != RAW:
            assert found.text[pack.start : pack.start + pack.length] == plain
