"""What a device's second is worth: the more there is to decode, the more."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.payload import streams
from twinlock.core.payload.parts import Copy, Zero
from twinlock.publish.delta import copies
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.price import Price
from twinlock.publish.delta.program import LZMA_CODEC, pack

MIB = limits.MIB


def test_a_small_delta_costs_what_it_always_did() -> None:
    assert Price.of(0, 0) == Price.of(3, 3) == Price.of(50, 352) == Price()
    assert Price().lzma


def test_the_price_rises_with_the_share_that_is_made() -> None:
    prices = [Price.of(made, 320).bytes_per_s for made in range(321)]
    assert all(one <= other for one, other in pairwise(prices))
    assert prices[320] > 5 * prices[0]
    assert not Price.of(320, 320).lzma


@pytest.mark.parametrize(("saved", "pays"), [(249_999, False), (250_000, True)])
def test_what_pays(saved: int, *, pays: bool) -> None:
    assert Price().pays(saved, 1_000_000_000) is pays


def test_programs_are_zstd_when_time_is_dear() -> None:
    program = random.Random(3).randbytes(30_000) * 2 + bytes(60_000)
    assert pack(program)[0] == LZMA_CODEC
    assert pack(program, with_lzma=False)[0] == streams.ZSTD
    noise = random.Random(4).randbytes(20_000)
    assert pack(noise, with_lzma=False) == (streams.STORED, noise)


def test_copies_and_zeros_are_found_before_anything_is_encoded(tmp_path: Path) -> None:
    rng = random.Random(5)
    old, new = rng.randbytes(3 * MIB), rng.randbytes(MIB)
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new + bytes(MIB) + old[MIB:] + new[:4096])
    with Image(tmp_path / "old") as base, Image(tmp_path / "new") as image:
        found = copies.find_copies(base, image)
    assert [None if one is None else one.part for one in found] == [
        None,
        Zero(),
        Copy(((MIB, MIB),)),
        Copy(((2 * MIB, MIB),)),
        None,
    ]
    assert copies.price_of(found) == Price.of(2, 4)


def test_a_copy_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(6).randbytes(MIB)
    (tmp_path / "old").write_bytes(data)
    monkeypatch.setattr(copies, "decode_part", lambda *_: bytes(MIB))
    with Image(tmp_path / "old") as base, pytest.raises(TwinlockError) as caught:
        copies.find_copies(base, base)
    assert caught.value.code == "internal"
