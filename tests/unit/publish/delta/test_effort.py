"""What an encoder leaves undone for images of packed blocks, and that the delta is right without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.publish.delta import trees
from twinlock.core.errors import TwinlockError
from twinlock.core.payload import patch
from twinlock.core.payload.base import BytesBase
from twinlock.core.payload.parts import decode_part
from twinlock.publish.delta import encode
from twinlock.publish.delta.analysing import Analyst
from twinlock.publish.delta.effort import Effort
from twinlock.publish.delta.encode import encode_delta
from twinlock.publish.delta.price import Price
from twinlock.publish.payload_file import PayloadFile

DEAR = Price(1_200_000)
MIB = 1 << 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    images = folder / "old.image", folder / "new.image"
    for tree, image in zip(trees.make_trees(folder), images, strict=True):
        trees.build(tree, image, "squashfs-zstd")
    return images


def test_only_where_blocks_are_packed_and_many_have_to_be() -> None:
    assert Effort.of(DEAR, packed=False) == Effort.of(Price(), packed=True) == Effort()
    quick = Effort.of(DEAR, packed=True)
    assert not quick.analyses
    assert quick.zstd_level < Effort().zstd_level
    assert quick.segment_level < Effort().segment_level


def test_programs_take_less_time_where_nearly_all_has_to_be_made() -> None:
    most = Effort.of(Price(1_200_001), packed=False)
    assert most.analyses
    assert Effort.of(DEAR, packed=True).zstd_level < most.zstd_level < Effort().zstd_level


def test_with_less_effort_the_delta_is_right_and_not_much_larger(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thorough = encode_delta(*pair, tmp_path / "thorough", 1)
    monkeypatch.setattr(encode, "price_of", lambda _: DEAR)
    monkeypatch.setattr(Analyst, "analyse", lambda *_: pytest.fail("analysed"))
    quick = encode_delta(*pair, tmp_path / "quick", 1)
    encode_delta(*pair, tmp_path / "three", 3)
    assert (tmp_path / "three").read_bytes() == (tmp_path / "quick").read_bytes()
    assert thorough.size_bytes < quick.size_bytes < 1.5 * thorough.size_bytes
    old, new = (image.read_bytes() for image in pair)
    made = b""
    with PayloadFile(tmp_path / "quick") as file:
        for number, part in enumerate(file.index.parts):
            file.file.seek(file.index.offsets()[number])
            data = file.file.read(part.length)
            left = min(MIB, len(new) - len(made))
            made += decode_part(part, data, left, number, BytesBase(old))
    assert made == new


def test_a_part_that_does_not_decode_is_never_written(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch, "decode", lambda encoded, size, *_: bytes(size))
    with pytest.raises(TwinlockError) as caught:
        encode_delta(*pair, tmp_path / "out", 1)
    assert caught.value.code == "internal"
    assert list(tmp_path.iterdir()) == []
