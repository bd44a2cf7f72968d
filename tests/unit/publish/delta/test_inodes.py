"""Inodes: their checksums do not travel, and come back as the kernel and mke2fs compute them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.publish.delta import trees
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import SEGMENT_SIZE_BYTES
from twinlock.core.payload import sums
from twinlock.core.payload.fields import Field, Fields, Kind, decode_fields
from twinlock.core.payload.moving import finish, move, unfinish
from twinlock.core.payload.varints import Reader, encode, fold
from twinlock.publish.delta.encode import encode_delta
from twinlock.publish.delta.files.ext4 import InodeTables, inode_tables
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.inodes import Inodes
from twinlock.publish.delta.model import Block, Ref

FILES = 400
FIRST_OF_FILES = 11  # s_first_ino


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Many files behind one that grows: every inode changes by where its file lies now."""
    folder = tmp_path_factory.mktemp("inodes")
    made = []
    for name, size_bytes in (("old", 4096), ("new", 40_960)):
        tree = folder / name
        rng = random.Random(1)
        (tree / "sub").mkdir(parents=True)
        (tree / "a").write_bytes(bytes([65]) * size_bytes)
        for number in range(FILES):
            (tree / f"sub/{number:04}").write_bytes(rng.randbytes(200))
        trees.build(tree, folder / f"{name}.ext4", "ext4")
        made.append(folder / f"{name}.ext4")
    return made[0], made[1]


def known(path: Path) -> InodeTables:
    with Image(path) as image:
        found = inode_tables(image)
    assert found is not None
    return found


def one_by_one(table: bytes, size: int, seed: int, number: int) -> bytes:
    """The checksums by the words of the kernel's documentation, one inode after the other."""
    out = bytearray(table)
    for index in range(len(table) // size):
        inode = out[index * size : (index + 1) * size]
        for at in (0x7C, 0x7D, 0x82, 0x83):
            inode[at] = 0
        register = 0
        if any(inode):
            own = (number + index).to_bytes(4, "little") + inode[0x64:0x68]
            register = sums.crc32c(bytes(inode), sums.crc32c(bytes(own), seed))
        inode[0x7C:0x7E] = (register & 0xFFFF).to_bytes(2, "little")
        inode[0x82:0x84] = (register >> 16).to_bytes(2, "little")
        out[index * size : (index + 1) * size] = inode
    return bytes(out)


def test_the_crc_is_castagnolis() -> None:
    """RFC 3720, B.4, and the check value of CRC-32/ISCSI."""
    assert sums.crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283
    assert sums.crc32c(bytes(32)) ^ 0xFFFFFFFF == 0x8A9136AA
    assert sums.crc32c(b"\xff" * 32) ^ 0xFFFFFFFF == 0x62A8AB43


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_all_inodes_at_once_are_one_after_the_other(seed: int) -> None:
    rng = random.Random(seed)
    size, count = rng.choice([132, 133, 160, 256]), rng.randrange(1, 9)
    place, number, own = (
        rng.randrange(50),
        rng.choice([1, 2**32 - count, rng.getrandbits(30)]),
        rng.getrandbits(32),
    )
    table = b"".join(rng.choice([bytes(size), rng.randbytes(size)]) for _ in range(count))
    data = bytearray(rng.randbytes(place) + table + rng.randbytes(9))
    wanted = data[:place] + one_by_one(table, size, own, number) + data[-9:]
    sums.seal(data, place, size, count, own, number)
    assert data == wanted


def test_the_checksums_of_a_real_image_come_back(images: tuple[Path, Path]) -> None:
    """Reserved inodes without the second half of a checksum are left out; all others are in one run."""
    found = known(images[1])
    data = images[1].read_bytes()
    offset, number = found.tables[0]
    table = data[offset : offset + found.count * found.inode_size]
    with Image(images[0]) as base, Image(images[1]) as image:
        fields = Inodes(base, image).text(offset, table)
    assert fields[-1].number - number < FIRST_OF_FILES <= fields[-1].number + 11
    assert fields[-1].count > FILES
    blank = bytearray(table)
    unfinish(blank, Fields([], [], fields))
    assert sum(one != two for one, two in zip(blank, table, strict=True)) > 3 * FILES
    finish(blank, Fields([], [], fields))
    assert blank == table


def test_a_delta_does_without_the_checksums(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bytes for each inode that changed do not travel; the encoder proves the rest."""
    small = encode_delta(*images, tmp_path / "delta", 1).size_bytes
    monkeypatch.setattr(Inodes, "text", lambda *_: [])
    large = encode_delta(*images, tmp_path / "without", 1).size_bytes
    print(small, large)
    assert small < large - 3 * FILES


def test_an_inode_with_a_wrong_checksum_stays_as_it_is(images: tuple[Path, Path], tmp_path: Path) -> None:
    found = known(images[1])
    data = bytearray(images[1].read_bytes())
    offset, number = found.tables[0]
    damaged = offset + 100 * found.inode_size
    data[damaged + sums.LOW] ^= 1
    (tmp_path / "new").write_bytes(data)
    with Image(images[0]) as base, Image(tmp_path / "new") as image:
        start = offset // SEGMENT_SIZE_BYTES * SEGMENT_SIZE_BYTES
        text = image[start : start + SEGMENT_SIZE_BYTES]
        fields = Inodes(base, image).text(start, text)
    spans = [range(field.place + start, field.place + start + field.length) for field in fields]
    assert len(fields) > 1
    assert not any(damaged in span for span in spans)
    assert any(damaged - 1 in span for span in spans)
    assert any(damaged + found.inode_size in span for span in spans)
    sealed = bytearray(text)
    unfinish(sealed, Fields([], [], fields))
    assert sealed != text
    finish(sealed, Fields([], [], fields))
    assert sealed == text
    assert fields[0].number >= number


def test_too_many_wrong_checksums_are_left_alone(images: tuple[Path, Path], tmp_path: Path) -> None:
    found = known(images[1])
    data = bytearray(images[1].read_bytes())
    offset, _ = found.tables[0]
    for index in range(0, found.count, 2):
        data[offset + index * found.inode_size] ^= 1
    (tmp_path / "new").write_bytes(data)
    start = offset // SEGMENT_SIZE_BYTES * SEGMENT_SIZE_BYTES
    with Image(images[0]) as base, Image(tmp_path / "new") as image:
        assert Inodes(base, image).text(start, image[start : start + SEGMENT_SIZE_BYTES]) == []


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_whatever_a_window_holds_of_inodes_loses_their_checksums(
    images: tuple[Path, Path], seed: int
) -> None:
    """Ranges that begin and end anywhere: each checksum that lies in one whole is blank, nothing else is."""
    rng = random.Random(seed)
    found = known(images[0])
    first = found.tables[0][0] - 500
    span = found.count * found.inode_size + 1000
    refs = []
    for _ in range(rng.randrange(1, 5)):
        low = first + rng.choice([rng.randrange(span), rng.randrange(3000)])
        refs.append(Ref(None, low, rng.choice([1, 40, 700, 9000])))
    refs.insert(rng.randrange(len(refs)), Ref(Block(1, 50, ((0, 50),)), 0, 50))
    with Image(images[0]) as base:
        fields = Inodes(base, base).window(refs)
        window = b"".join(base[ref.offset : ref.end] if ref.block is None else bytes(50) for ref in refs)
        blank = bytearray(window)
        move(blank, Fields([], fields, []))
        place = 0
        for ref in refs:
            for at in range(ref.length):
                inode, inside = divmod(ref.offset + at - found.tables[0][0], found.inode_size)
                span_low = ref.offset + at - inside + sums.LOW
                whole = ref.offset <= span_low and span_low + sums.SPAN_BYTES <= ref.end
                checksum = inside in (0x7C, 0x7D, 0x82, 0x83) and 0 <= inode < found.count and whole
                if ref.block is None and checksum:
                    assert blank[place + at] == 0
                else:
                    assert blank[place + at] == window[place + at]
            place += ref.length


def test_images_without_checksums_have_no_fields(tmp_path: Path, images: tuple[Path, Path]) -> None:
    head = bytearray(images[0].read_bytes()[:65536])
    head[1024 + 0x65] &= ~4  # metadata_csum
    (tmp_path / "plain").write_bytes(head)
    (tmp_path / "none").write_bytes(bytes(65536))
    (tmp_path / "cut").write_bytes(images[0].read_bytes()[:4096])
    for name in ("plain", "none", "cut"):
        with Image(tmp_path / name) as image, Image(images[1]) as other:
            assert inode_tables(image) is None
            assert Inodes(image, other).text(0, other[: 1 << 20]) == []
            assert Inodes(other, image).text(0, image[: 1 << 20]) == []
            assert Inodes(image, other).window([Ref(None, 0, 4096)]) == []


def test_a_seed_of_its_own_counts(images: tuple[Path, Path], tmp_path: Path) -> None:
    data = bytearray(images[0].read_bytes())
    data[1024 + 0x61] |= 0x20  # metadata_csum_seed
    data[1024 + 0x270 : 1024 + 0x274] = b"\1\2\3\4"
    (tmp_path / "own").write_bytes(data)
    assert known(tmp_path / "own").seed == 0x04030201
    assert known(images[0]).seed == sums.crc32c(bytes(data[1024 + 0x68 : 1024 + 0x78]))


GOOD = (fold(0), 256, 4)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        (GOOD, None),
        ((fold(0), 131, 4), "payload-malformed"),  # no room for a checksum
        ((fold(0), 4097, 1), "payload-malformed"),
        ((fold(0), 256, 0), "payload-malformed"),
        ((fold(0), 256, 5), "payload-malformed"),  # one more than there is
        ((fold(1), 256, 4), "payload-malformed"),
        ((fold(-1), 256, 4), "payload-malformed"),
        ((fold(0), 256, 2**40), "payload-malformed"),
    ],
)
def test_inodes_outside_the_text_are_refused(numbers: tuple[int, ...], code: str | None) -> None:
    row = b"\6" + b"".join(map(encode, numbers)) + b"seed" + encode(11)
    control = encode(0) + encode(0) + encode(1) + row
    assert refused(control, 1024) == code


def test_inodes_past_the_last_number_are_refused() -> None:
    row = b"\6" + b"".join(map(encode, GOOD)) + b"seed"
    head = encode(0) + encode(0) + encode(1)
    assert refused(head + row + encode(2**32 - 4), 1024) is None
    assert refused(head + row + encode(2**32 - 3), 1024) == "payload-malformed"


def test_inodes_need_no_map_and_lie_within_the_window() -> None:
    first = fold(sums.LOW)
    for place, count, code in (
        (first, 4, None),
        (first, 5, "payload-malformed"),
        (fold(-1), 1, "payload-malformed"),
    ):
        row = b"\6" + encode(place) + encode(256) + encode(count)
        assert refused(encode(0) + encode(1) + row + encode(0), 1024) == code
    again = Field(Kind.INODES, 0, 0, 8, stride=256, count=1)
    assert refused(encode(0) + encode(1) + b"\6" + encode(0) + encode(256) + encode(1) + encode(0), 8) is None
    assert again.map == 0


def refused(control: bytes, size_bytes: int) -> str | None:
    try:
        fields = decode_fields(Reader(control, 0), size_bytes, size_bytes, 0)
    except TwinlockError as problem:
        return problem.code
    data = bytearray(size_bytes)
    move(data, fields)
    finish(data, fields)
    assert len(data) == size_bytes
    return None
