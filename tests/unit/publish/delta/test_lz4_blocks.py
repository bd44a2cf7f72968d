"""LZ4 blocks: how they are cut into pieces that come back, and packed with less search where that pays."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise

import pytest

from twinlock.core.errors import TwinlockError
from twinlock.core.payload.base import BytesBase
from twinlock.core.payload.libraries import lz4_pack, shared
from twinlock.core.payload.parts import Patch, decode_part
from twinlock.core.payload.program import LZ4, Pack
from twinlock.publish.delta.covers import Cover
from twinlock.publish.delta.lz4_blocks import PackedBlock, Piece
from twinlock.publish.delta.mending import Mended, mended
from twinlock.publish.delta.model import Ref
from twinlock.publish.delta.price import Price
from twinlock.publish.delta.program import build_program, pack_step

LEVEL = 9
(VERSION,) = (name.removeprefix("lz4-") for name in shared() if name.startswith("lz4-"))


def packed(plain: bytes, level: int = LEVEL) -> bytes:
    found = lz4_pack(bytearray(plain), 0, 0, len(plain), level)
    assert found is not None
    return bytes(found)


def words(rng: random.Random, size: int) -> bytes:
    """Text that packs to about a half, with few candidates for each match."""
    known = [rng.randbytes(rng.randrange(3, 12)) for _ in range(2000)]
    return b"".join(rng.choices(known, k=size // 6))[:size]


def crowded(rng: random.Random, size: int) -> bytes:
    """Text of few letters: hundreds of candidates for each match."""
    return bytes(rng.choices(b"abc", k=size))


def in_pieces(plain: bytes) -> list[Piece | tuple[int, int]]:
    whole = packed(plain)
    return list(PackedBlock(whole, plain, LEVEL, VERSION).pieces(0, len(whole)))


def sizes(pieces: list[Piece | tuple[int, int]]) -> list[int]:
    return [piece.pack.take if isinstance(piece, Piece) else piece[1] - piece[0] for piece in pieces]


def test_what_packs_to_little_stays_packed() -> None:
    rng = random.Random(1)
    table = (b"entry" + bytes(40)) * 6000
    plain = words(rng, 300_000) + table + words(rng, 100_000)
    pieces = in_pieces(plain)
    whole = packed(plain)
    assert [isinstance(piece, Piece) for piece in pieces] == [True, False, True]
    assert sum(sizes(pieces)) == len(whole)
    assert sizes(pieces)[1] < len(table) // 8
    assert pieces[1] == (sizes(pieces)[0], sum(sizes(pieces)[:2]))


def test_a_short_dense_stretch_is_packed_with_what_is_around_it() -> None:
    rng = random.Random(2)
    pieces = in_pieces(words(rng, 200_000) + bytes(100_000) + words(rng, 200_000))
    assert [isinstance(piece, Piece) for piece in pieces] == [True]


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_any_range_lie_one_behind_the_other(seed: int) -> None:
    rng = random.Random(seed)
    plain = b"".join(
        rng.choice((words(rng, 150_000), bytes(rng.randrange(300_000)), crowded(rng, 20_000)))
        for _ in range(5)
    )
    whole = packed(plain)
    block = PackedBlock(whole, plain, LEVEL, VERSION)
    cuts = [0, *sorted(rng.randrange(len(whole)) for _ in range(3)), len(whole)]
    for start, end in pairwise(cuts):
        position = start
        for piece in block.pieces(start, end):
            if isinstance(piece, Piece):
                text, pack = plain[piece.start : piece.end], piece.pack
                found = lz4_pack(bytearray(text), pack.start, pack.history, pack.length, pack.level)
                assert found is not None
                size = pack.take
                wanted = whole[position : position + size]
                assert found[pack.skip : pack.skip + size] == wanted
                assert all(0 <= place <= len(text) for place in piece.matches)
            else:
                assert piece[0] == position
                size = piece[1] - piece[0]
            position += size
        assert position == end


# --- less search, and mending


def mending(plain: bytes, price: Price, level: int = LEVEL) -> tuple[Pack, bytes, Mended | None]:
    """The pack of a block, its bytes, and how they are mended at that price."""
    whole = packed(plain, level)
    (piece,) = PackedBlock(whole, plain, level, VERSION).pieces(0, len(whole))
    assert isinstance(piece, Piece)
    return piece.pack, whole, mended(plain, piece.pack, piece.matches, whole, price)


DEAR, CHEAP = Price(50_000_000), Price(1)


def test_a_mended_block_decodes_to_the_image() -> None:
    plain = crowded(random.Random(3), 120_000)
    pack, wanted, found = mending(plain, DEAR)
    assert found is not None
    assert found.pack.level < pack.level
    program = build_program([Ref(None, 0, len(plain))], plain, plain, [Cover(0, 0, len(plain))], [found.pack])
    data = pack_step(program, found.pack.take, kept_back=True) + found.step
    part = Patch(len(data), hashlib.sha256(data).digest())
    assert decode_part(part, data, len(wanted), 0, BytesBase(plain)) == wanted
    alone = pack_step(program, found.pack.take)
    with pytest.raises(TwinlockError):
        decode_part(part, alone, len(wanted), 0, BytesBase(plain))


def test_mending_has_to_pay() -> None:
    plain = crowded(random.Random(3), 120_000)
    assert mending(plain, CHEAP)[2] is None
    assert mending(words(random.Random(4), 120_000), CHEAP)[2] is None


def test_where_little_is_searched_nothing_is_mended() -> None:
    assert mending(random.Random(5).randbytes(40_000) * 2, DEAR)[2] is None


@pytest.mark.parametrize("level", [7, 12])
def test_levels_that_search_no_more_or_otherwise_are_left(level: int) -> None:
    assert mending(crowded(random.Random(3), 120_000), DEAR, level)[2] is None


def test_the_same_block_is_mended_the_same_way() -> None:
    plain = crowded(random.Random(6), 100_000)
    assert mending(plain, DEAR) == mending(plain, DEAR)
    assert mending(plain, DEAR)[0].codec == LZ4
