"""Packing: the bytes that come out, what is refused, and what a failure leaves behind: nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.publish.tools import (
    as_nobody,
    file_size_limit,
    files_under,
    image_bytes,
    request_for,
    write_image,
)
from twinlock.core import limits, manifest
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import KIB, MIB, SBOM_SIZE_BYTES_MAX
from twinlock.core.zstd import ZstdCompressor
from twinlock.publish import encode
from twinlock.publish.folder import read_release
from twinlock.publish.image import ImageReader, check_kind
from twinlock.publish.locking import folder_lock
from twinlock.publish.pack import pack
from twinlock.publish.payload_file import PayloadFile


def refusal(step: Callable[[], object]) -> TwinlockError:
    with pytest.raises(TwinlockError) as caught:
        step()
    return caught.value


@pytest.mark.parametrize("size_bytes", [512, MIB - 512, MIB, MIB + 512, 3 * MIB + 4 * KIB])
def test_what_is_packed_decodes_to_the_image(tmp_path: Path, rng: random.Random, size_bytes: int) -> None:
    data = write_image(tmp_path / "image", rng, size_bytes)
    packed = pack(request_for(tmp_path / "image", tmp_path / "out"))
    release = read_release(tmp_path / "out")
    assert release.manifest == packed.manifest
    assert release.manifest.image_sha256 == hashlib.sha256(data).digest()
    assert release.manifest.segments == b"".join(
        hashlib.sha256(data[start : start + MIB]).digest() for start in range(0, size_bytes, MIB)
    )
    (payload,) = release.record.payloads
    with PayloadFile(release.payload_path(payload)) as file:
        file.prove(release.manifest)
        assert file.sha256() == payload.sha256
    assert sorted(files_under(tmp_path / "out")) == sorted(
        ["release.json", "1.0.manifest", f"{payload.sha256}.payload"]
    )


def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, 6 * MIB)
    for jobs in (1, 2, 7):
        pack(replace(request_for(tmp_path / "image", tmp_path / f"out{jobs}"), jobs=jobs))
    first = files_under(tmp_path / "out1")
    assert files_under(tmp_path / "out2") == first
    assert files_under(tmp_path / "out7") == first


def test_packing_again_gives_the_same_and_changes_nothing(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng)
    request = request_for(tmp_path / "image", tmp_path / "out")
    pack(request)
    before = files_under(tmp_path / "out")
    pack(request)
    assert files_under(tmp_path / "out") == before


def test_zero_segments_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(4 * MIB))
    packed = pack(request_for(tmp_path / "image", tmp_path / "out"))
    assert packed.zero_segments == 4
    assert packed.record.payloads[0].size_bytes < 200


def test_holes_are_not_read_and_give_the_same_bytes(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_bytes(rng, MIB)
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    with sparse.open("wb") as file:
        file.seek(3 * MIB)
        file.write(data)
        file.truncate(40 * MIB + 512)
    full.write_bytes(sparse.read_bytes())
    read: list[int] = []
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        read.append(offset // MIB)
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    pack(request_for(sparse, tmp_path / "out-sparse"))
    assert sorted(set(read)) == [3]
    read.clear()
    pack(request_for(full, tmp_path / "out-full"))
    assert len(read) == 41
    assert files_under(tmp_path / "out-sparse") == files_under(tmp_path / "out-full")


def test_a_file_system_that_knows_no_holes_is_read_whole(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_image(tmp_path / "image", rng, 2 * MIB)
    real = os.lseek

    def lseek(fd: int, offset: int, whence: int) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(22, "Invalid argument")
        return real(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    with ImageReader(tmp_path / "image") as reader:
        assert b"".join(segment.data or b"" for segment in reader.segments()) == data


def test_claims_notes_and_sbom_are_in_the_manifest(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, MIB)
    content = b'{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": []}'
    (tmp_path / "sbom.json").write_bytes(content)
    request = replace(
        request_for(tmp_path / "image", tmp_path / "out"),
        notes="first",
        sbom=tmp_path / "sbom.json",
        hardware=("b1", "b2"),
        counter=7,
    )
    made = pack(request).manifest
    assert (made.notes, made.hardware, made.counter) == ("first", ("b1", "b2"), 7)
    assert made.sbom_sha256 == hashlib.sha256(content).digest()


def test_progress_tells_every_byte_once(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, 3 * MIB + 512)
    told: list[int] = []
    pack(request_for(tmp_path / "image", tmp_path / "out"), told.append)
    assert sum(told) == 3 * MIB + 512


# What is refused


def empty(path: Path) -> None:
    path.write_bytes(b"")


def unaligned(path: Path) -> None:
    path.write_bytes(bytes(1000))


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(limits.IMAGE_SIZE_BYTES_MAX + 512)


def missing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (missing, "input-missing"),
        (empty, "image-empty"),
        (unaligned, "image-unaligned"),
        (folder, "input-wrong-type"),
        (pipe, "input-wrong-type"),
        (too_large, "input-too-large"),
    ],
)
def test_an_image_that_is_not_right_is_refused(
    tmp_path: Path, make: Callable[[Path], None], code: str
) -> None:
    make(tmp_path / "image")
    problem = refusal(lambda: pack(request_for(tmp_path / "image", tmp_path / "new" / "out")))
    assert problem.code == code
    assert "image" in problem.what
    assert not (tmp_path / "new").exists()


def test_an_unreadable_image_is_refused(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, MIB)
    (tmp_path / "image").chmod(0)
    with as_nobody():
        problem = refusal(lambda: ImageReader(tmp_path / "image"))
    assert problem.code == "input-unreadable"


def test_a_device_in_use_is_refused_with_what_to_do(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "image", rng, MIB)

    def busy(path: object, flags: int, mode: int = 0) -> int:
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    monkeypatch.setattr(os, "open", busy)
    problem = refusal(lambda: ImageReader(tmp_path / "image"))
    assert (problem.code, "unmount" in problem.hint) == ("input-unreadable", True)


def test_only_files_and_block_devices_are_images(tmp_path: Path) -> None:
    check_kind(0o060600, tmp_path)  # a block device's mode
    check_kind(0o100600, tmp_path)
    for mode in (0o040700, 0o020600, 0o140700, 0o010600):
        assert refusal(lambda mode=mode: check_kind(mode, tmp_path)).code == "input-wrong-type"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("product", "a/b"),
        ("product", ""),
        ("version", "1..0"),
        ("version", "x" * 65),
        ("hardware", ()),
        ("hardware", ("a", "a")),
        ("hardware", ("a b",)),
        ("counter", -1),
        ("counter", 1 << 31),
        ("level", 0),
        ("level", 23),
        ("jobs", -1),
        ("jobs", 65),
        ("notes", "x" * 4097),
    ],
)
def test_a_request_out_of_bounds_is_refused_before_any_work(
    tmp_path: Path, field: str, value: object
) -> None:
    request = replace(request_for(tmp_path / "image", tmp_path / "out"), **{field: value})  # type: ignore[arg-type]
    assert refusal(lambda: pack(request)).code == "input-invalid"  # and not input-missing: nothing was opened
    assert list(tmp_path.iterdir()) == []


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")


def cut(path: Path) -> None:
    os.truncate(path, MIB)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(512))


@pytest.mark.parametrize("change", [overwrite, cut, grow])
def test_an_image_that_changes_meanwhile_is_refused(
    tmp_path: Path, rng: random.Random, change: Callable[[Path], None]
) -> None:
    image = tmp_path / "image"
    write_image(image, rng, 12 * MIB)
    os.utime(image, ns=(1, 1))  # as old as an image is: a change is never within the clock's tick
    pending = [change]

    def once(size_bytes: int) -> None:
        if pending:
            pending.pop()(image)

    assert refusal(lambda: pack(request_for(image, tmp_path / "out"), once)).code == "image-changed"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size_bytes", [0, 100, 64 * KIB])
def test_a_full_disk_leaves_nothing(tmp_path: Path, rng: random.Random, size_bytes: int) -> None:
    write_image(tmp_path / "image", rng)
    with file_size_limit(size_bytes):
        problem = refusal(lambda: pack(request_for(tmp_path / "image", tmp_path / "out")))
    assert problem.code == "disk-full"
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_with_the_manifest_leaves_nothing(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as file:
        file.truncate(64 * MIB)  # payload of 300 bytes, manifest of 3 KB
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"kept")
    with file_size_limit(1024):
        problem = refusal(lambda: pack(request_for(tmp_path / "image", tmp_path / "out")))
    assert problem.code == "disk-full"
    assert files_under(tmp_path / "out") == {"mine": b"kept"}


def test_a_folder_with_another_release_is_not_touched(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, MIB)
    pack(request_for(tmp_path / "image", tmp_path / "out"))
    before = files_under(tmp_path / "out")
    other = request_for(tmp_path / "image", tmp_path / "out", "1.1")
    assert refusal(lambda: pack(other)).code == "input-exists"
    write_image(tmp_path / "image", rng, MIB)
    assert refusal(lambda: pack(request_for(tmp_path / "image", tmp_path / "out"))).code == "input-exists"
    assert files_under(tmp_path / "out") == before


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, MIB)
    (tmp_path / "out").write_bytes(b"")
    assert refusal(lambda: pack(request_for(tmp_path / "image", tmp_path / "out"))).code == "input-missing"


def test_two_packers_do_not_share_a_folder(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, MIB)
    (tmp_path / "out").mkdir()
    with folder_lock(tmp_path / "out"):
        assert refusal(lambda: pack(request_for(tmp_path / "image", tmp_path / "out"))).code == "conflict"
    pack(request_for(tmp_path / "image", tmp_path / "out"))


def test_a_missing_sbom_is_refused(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, MIB)
    request = replace(request_for(tmp_path / "image", tmp_path / "out"), sbom=tmp_path / "none")
    assert refusal(lambda: pack(request)).code == "input-missing"
    assert not (tmp_path / "out").exists()


def test_an_sbom_past_its_bound_is_refused(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, MIB)
    with (tmp_path / "sbom").open("wb") as file:
        file.truncate(SBOM_SIZE_BYTES_MAX + 1)
    request = replace(request_for(tmp_path / "image", tmp_path / "out"), sbom=tmp_path / "sbom")
    assert refusal(lambda: pack(request)).code == "input-too-large"


def test_an_interrupt_stops_the_threads_and_leaves_nothing(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, 20 * MIB)

    def interrupt(size_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(request_for(tmp_path / "image", tmp_path / "out"), interrupt)
    assert not (tmp_path / "out").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pack")]


# The encoder proves each part


def test_a_part_that_does_not_come_back_is_never_written(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        FLUSH_FRAME = ZstdCompressor.FLUSH_FRAME

        def __init__(self, options: object) -> None:
            self._real = ZstdCompressor(options=options)  # type: ignore[arg-type]

        def compress(self, data: bytes, mode: int) -> bytes:
            return self._real.compress(data[:-1] + bytes([data[-1] ^ 1]), ZstdCompressor.FLUSH_FRAME)

    monkeypatch.setattr(encode, "ZstdCompressor", Wrong)
    write_image(tmp_path / "image", rng, MIB)
    assert refusal(lambda: pack(request_for(tmp_path / "image", tmp_path / "out"))).code == "internal"
    assert not (tmp_path / "out").exists()


def test_incompressible_segments_stay_within_the_part_bound(rng: random.Random) -> None:
    encoded = encode.encode_segment(rng.randbytes(MIB), 0, encode.LEVEL_MAX)
    assert MIB < len(encoded.data) <= limits.PART_SIZE_BYTES_MAX


def test_the_window_of_every_level_is_one_that_devices_accept(rng: random.Random) -> None:
    data = image_bytes(rng, MIB)
    for level in (encode.LEVEL_MIN, encode.LEVEL_DEFAULT, encode.LEVEL_MAX):
        encode.encode_segment(data, 0, level)  # decodes with the bound, or raises


def test_a_manifest_too_large_for_devices_cannot_be_packed() -> None:
    count = limits.SEGMENTS_MAX
    made = manifest.Manifest(
        format="twinlock-manifest",
        format_version=1,
        product="p" * limits.NAME_LENGTH_MAX,
        version="v" * limits.VERSION_LENGTH_MAX,
        hardware=tuple(f"{number:064}" for number in range(limits.HARDWARE_IDS_MAX)),
        counter=limits.COUNTER_MAX,
        image_size_bytes=limits.IMAGE_SIZE_BYTES_MAX,
        image_sha256=bytes(32),
        segment_size_bytes=limits.SEGMENT_SIZE_BYTES,
        segments=b"\xff" * 32 * count,
        sbom_sha256=bytes(32),
        notes="\\" * limits.NOTES_LENGTH_MAX,
    )
    assert len(manifest.encode(made)) <= limits.MANIFEST_SIZE_BYTES_MAX
    assert manifest.decode(manifest.encode(made)) == made
