"""Pieces of text are packed once, and what is remembered is bounded and never mixed up."""

from __future__ import annotations

import random
import zlib

import pytest

from twinlock.core.payload.program import RAW, ZLIB, Pack
from twinlock.core.payload.repack import packed as really_packed
from twinlock.core.payload.repack import repack
from twinlock.publish.delta import packing
from twinlock.publish.delta.packing import Packing

VERSION = zlib.ZLIB_RUNTIME_VERSION
TEXT = bytes(random.Random(5).choices(b"abcdef", k=30_000))


def pack(start: int = 0, length: int = 10_000, level: int = 9) -> Pack:
    return Pack(ZLIB, level, VERSION, start, 0, length, 0, 100)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pieces that were really packed, in order."""
    pieces = []

    def counted(text: bytearray, pack: Pack, number: int) -> bytes | bytearray | memoryview:
        pieces.append(bytes(text[pack.start : pack.start + pack.length]))
        return really_packed(text, pack, number)

    monkeypatch.setattr(packing, "packed", counted)
    return pieces


def test_a_piece_is_packed_once_wherever_it_lies(packed: list[bytes]) -> None:
    found = Packing()
    wanted = zlib.compress(TEXT[:10_000], 9)
    assert found.piece(TEXT, pack(), 0) == wanted
    behind = bytearray(b"something else" + TEXT)
    assert found.piece(behind, pack(14), 3) == wanted
    assert packed == [TEXT[:10_000]]


def test_another_piece_or_level_is_packed_by_itself(packed: list[bytes]) -> None:
    found = Packing()
    one = bytearray(TEXT)
    found.piece(one, pack(), 0)
    one[9_999] ^= 1
    assert found.piece(one, pack(), 0) == zlib.compress(bytes(one[:10_000]), 9)
    assert found.piece(TEXT, pack(level=1), 0) == zlib.compress(TEXT[:10_000], 1)
    assert len(packed) == 3


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(packed: list[bytes]) -> None:
    found = Packing(40_000)
    for start in (0, 10_000, 0, 20_000, 0, 10_000):
        found.piece(TEXT, pack(start), 0)
    assert [TEXT.find(piece) for piece in packed] == [0, 10_000, 20_000, 10_000]


def test_a_larger_piece_than_may_be_remembered_is_packed(packed: list[bytes]) -> None:
    found = Packing(5_000)
    assert found.piece(TEXT, pack(), 0) == found.piece(TEXT, pack(), 0) == zlib.compress(TEXT[:10_000], 9)
    assert len(packed) == 2


def test_it_packs_as_a_device_does() -> None:
    text = bytearray(TEXT)
    raw = Pack(RAW, 0, "", 20_000, 0, 5_000, 10, 4_000)
    packs = [pack(), pack(10_000), raw]
    assert repack(text, packs, 4_200, 0, Packing().piece) == repack(text, packs, 4_200, 0)
