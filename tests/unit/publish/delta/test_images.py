"""Deltas of whole images, as the real tools make them: file systems, kernels, any number of processes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.publish.delta import trees
from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.payload import libraries
from twinlock.core.payload.base import BytesBase
from twinlock.core.payload.parts import Copy, Patch, check_encoded, decode_part
from twinlock.publish.delta.encode import DeltaStats, encode_delta
from twinlock.publish.delta.files import erofs, ext4, squashfs
from twinlock.publish.delta.files.detect import map_files
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.model import Window
from twinlock.publish.payload_file import PayloadFile

FORMS = ("ext4", "erofs", "squashfs-gzip", "squashfs-zstd")
MIB = limits.MIB


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The images of both trees in every form; `kernel` is ext4 with kernels."""
    folder = tmp_path_factory.mktemp("pairs")
    old, new = trees.make_trees(folder)
    made = {}
    for form in FORMS:
        made[form] = folder / f"{form}.old", folder / f"{form}.new"
        for tree, image in zip((old, new), made[form], strict=True):
            trees.build(tree, image, form)
    old, new = trees.make_kernels(folder / "kernels")
    made["kernel"] = folder / "kernel.old", folder / "kernel.new"
    for tree, image in zip((old, new), made["kernel"], strict=True):
        trees.build(tree, image, "ext4")
    return made


def applied(delta: Path, old: bytes) -> bytes:
    """What a device makes of a delta."""
    out = bytearray()
    with PayloadFile(delta) as file:
        for number, part in enumerate(file.index.parts):
            start = file.index.offsets()[number]
            file.file.seek(start)
            encoded = file.file.read(part.length)
            check_encoded(part, encoded, number)
            left = min(MIB, file.index.image_size_bytes - len(out))
            out += decode_part(part, encoded, left, number, BytesBase(old))
    return bytes(out)


def encoded(pair: tuple[Path, Path], out: Path, jobs: int = 1, **more: list[str]) -> DeltaStats:
    told: list[int] = []
    stats = encode_delta(*pair, out, jobs, told.append, **more)  # type: ignore[arg-type]
    assert told == sorted(told)
    assert told[-1] == pair[1].stat().st_size
    assert stats.size_bytes == out.stat().st_size
    assert applied(out, pair[0].read_bytes()) == pair[1].read_bytes()
    return stats


@pytest.mark.parametrize("form", FORMS)
def test_a_delta_gives_the_image_back_and_is_small(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, form: str
) -> None:
    """What is new is about 60 KB: 50 KB of words, some edits; in squashfs, its tables in one piece too."""
    stats = encoded(pairs[form], tmp_path / "out")
    assert stats.size_bytes < 60_000


@pytest.mark.parametrize("form", FORMS)
def test_every_file_is_found_where_it_lies(
    pairs: dict[str, tuple[Path, Path]], form: str, tmp_path: Path
) -> None:
    old, new = trees.make_trees(tmp_path)
    del old
    with Image(pairs[form][1]) as image:
        kind, found = map_files(image)
        assert form.startswith(kind)
        wanted = {
            str(path.relative_to(new)): path.read_bytes()
            for path in new.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        files = {file.path: file for file in found.files}
        assert set(files) == set(wanted)
        window = Window(image)
        for name, data in wanted.items():
            assert files[name].size_bytes == len(data)
            got = bytearray(len(data))
            for extent in files[name].extents:
                end = extent.file_offset + extent.length
                got[extent.file_offset : end] = image[
                    extent.image_offset : extent.image_offset + extent.length
                ]
            for packed in files[name].packed:
                end = packed.file_offset + packed.length
                plain = window.unpacked(packed.block)
                got[packed.file_offset : end] = plain[packed.block_offset :][: packed.length]
            assert bytes(got) == data, name


@pytest.mark.parametrize("form", ["kernel", "squashfs-zstd"])
def test_the_same_bytes_whatever_the_number_of_processes(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, form: str
) -> None:
    encoded(pairs[form], tmp_path / "one", 1)
    encoded(pairs[form], tmp_path / "three", 3)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three"]


def test_a_compressed_kernel_is_patched_unpacked(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    with_library = encoded(pairs["kernel"], tmp_path / "with")
    without = encoded(pairs["kernel"], tmp_path / "without", libraries=[])
    assert with_library.size_bytes < 0.6 * without.size_bytes


@pytest.mark.parametrize("form", ["squashfs-gzip", "squashfs-zstd"])
def test_packed_blocks_are_rebuilt_only_by_what_devices_have(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, form: str
) -> None:
    packed = encoded(pairs[form], tmp_path / "with")
    raw = encoded(pairs[form], tmp_path / "without", libraries=["lz4-1.0.0"])
    assert packed.size_bytes < 0.5 * raw.size_bytes


def test_a_device_without_the_library_says_so_for_that_part_alone(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pairs["kernel"]
    encode_delta(old, new, tmp_path / "out", 1)
    monkeypatch.setattr(libraries, "available", lambda: ("zlib-1",))
    base = BytesBase(old.read_bytes())
    codes = []
    with PayloadFile(tmp_path / "out") as file:
        for number, part in enumerate(file.index.parts):
            file.file.seek(file.index.offsets()[number])
            data = file.file.read(part.length)
            codes.append(outcome(part, data, number, base))
    assert codes.count("delta-library") in (1, 2, 3)
    assert set(codes) == {"", "delta-library"}


def outcome(part: object, data: bytes, number: int, base: BytesBase) -> str:
    try:
        decode_part(part, data, MIB, number, base)  # type: ignore[arg-type]
    except TwinlockError as problem:
        return problem.code
    return ""


def test_an_image_that_only_moved_is_copied(tmp_path: Path) -> None:
    rng = random.Random(4)
    data = rng.randbytes(3 * MIB)
    (tmp_path / "old").write_bytes(data)
    (tmp_path / "new").write_bytes(data[40960:] + data[:40960])
    stats = encoded((tmp_path / "old", tmp_path / "new"), tmp_path / "out")
    assert stats.parts == {"copy": 3}


def test_images_that_have_nothing_in_common(tmp_path: Path) -> None:
    rng = random.Random(5)
    (tmp_path / "old").write_bytes(rng.randbytes(MIB))
    (tmp_path / "new").write_bytes(rng.randbytes(2 * MIB + 512) + bytes(MIB))
    stats = encoded((tmp_path / "old", tmp_path / "new"), tmp_path / "out")
    assert stats.size_bytes > 2 * MIB


@pytest.mark.parametrize(
    ("size", "code"), [(0, "image-empty"), (1000, "image-unaligned"), (None, "input-missing")]
)
def test_images_that_are_none(tmp_path: Path, size: int | None, code: str) -> None:
    (tmp_path / "good").write_bytes(bytes(512))
    if size is not None:
        (tmp_path / "bad").write_bytes(bytes(size))
    for old, new in (("good", "bad"), ("bad", "good")):
        with pytest.raises(TwinlockError) as caught:
            encode_delta(tmp_path / old, tmp_path / new, tmp_path / "out", 1)
        assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_written_meanwhile_is_noticed(tmp_path: Path) -> None:
    data = random.Random(6).randbytes(2 * MIB)
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(data)

    def disturb(done: int) -> None:
        with (tmp_path / "old").open("r+b") as file:
            file.write(b"changed!")

    with pytest.raises(TwinlockError) as caught:
        encode_delta(tmp_path / "old", tmp_path / "new", tmp_path / "out", 1, disturb)
    assert caught.value.code == "image-changed"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_an_image_that_gets_shorter_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(4 * MIB))
    with Image(tmp_path / "image") as image:
        (tmp_path / "image").write_bytes(b"")
        with pytest.raises(TwinlockError) as caught:
            image.read_into(memoryview(bytearray(100)), MIB)
    assert caught.value.code == "image-changed"


def test_slices_of_an_image_are_those_of_its_bytes(tmp_path: Path) -> None:
    rng = random.Random(7)
    data = rng.randbytes(300 * 1024)
    (tmp_path / "image").write_bytes(data)
    with Image(tmp_path / "image") as image:
        for _ in range(500):
            start, length = rng.randrange(len(data) + 10), rng.choice([0, 1, 8, 5000, 65536, 200_000])
            assert image[start : start + length] == data[start : start + length]
        with pytest.raises(ValueError, match="slice"):
            image[0:10:2]


@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMS))
@settings(max_examples=120, deadline=None)
def test_a_damaged_file_system_is_read_as_far_as_it_goes_or_not_at_all(
    pairs: dict[str, tuple[Path, Path]], seed: int, form: str
) -> None:
    """Its tables at will: files within the image, or no file system, and nothing else."""
    rng = random.Random(seed)
    path = pairs[form][0]
    data = path.read_bytes()
    damaged = Damaged(data, rng)
    kind, found = map_files(damaged)  # type: ignore[arg-type]
    assert kind in ("ext4", "erofs", "squashfs", "unknown")
    for file in found.files[:50]:
        for extent in file.extents:
            assert extent.image_offset >= 0
            assert extent.length > 0


class Damaged:
    """An image in which some bytes near its front, or where its tables lie, are others."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self._data = bytearray(data)
        for _ in range(rng.randrange(1, 8)):
            place = rng.choice([96, 1200, 8192, len(data)])
            at = rng.randrange(place) if place < len(data) else len(data) - 1 - rng.randrange(20_000)
            self._data[at] = rng.randrange(256)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, where: slice) -> bytes:
        return bytes(self._data[where])


def test_what_is_no_file_system_has_no_files(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(MIB))
    with Image(tmp_path / "image") as image:
        assert map_files(image)[0] == "unknown"
        for parser in (ext4.files, erofs.files, squashfs.files):
            with pytest.raises(Exception, match="superblock"):
                parser(image)


def test_parts_of_every_kind_are_made(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    encode_delta(*pairs["ext4"], tmp_path / "out", 1)
    with PayloadFile(tmp_path / "out") as file:
        kinds = {type(part) for part in file.index.parts}
    assert Patch in kinds
    assert Copy in kinds or len(kinds) > 1
