"""Payload files on disk: damage anywhere is found, and named for what it is."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.unit.publish.tools import as_nobody, make_release
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB, PAYLOAD_SIZE_BYTES_MAX
from twinlock.core.manifest import Manifest
from twinlock.core.payload import container
from twinlock.core.payload.parts import Zero, Zstd
from twinlock.publish.payload_file import PayloadFile


def refused(step: Callable[[], object]) -> str:
    with pytest.raises(TwinlockError) as caught:
        step()
    return caught.value.code


@pytest.fixture
def payload(tmp_path: Path, rng: random.Random) -> tuple[Path, Manifest]:
    release = make_release(tmp_path, rng, size_bytes=3 * MIB)
    return release.payload_path(release.record.payloads[0]), release.manifest


def every_check(path: Path, manifest: Manifest) -> None:
    with PayloadFile(path) as file:
        file.prove(manifest)
        file.check_itself()
        file.check_parts()


def test_a_whole_payload_passes_and_tells_its_progress(payload: tuple[Path, Manifest]) -> None:
    path, manifest = payload
    every_check(path, manifest)
    proven, parts, hashed = list[int](), list[int](), list[int]()
    with PayloadFile(path) as file:
        file.prove(manifest, proven.append)
        file.check_parts(parts.append)
        assert file.sha256(hashed.append) == path.stem
    assert sum(proven) == manifest.image_size_bytes
    assert sum(hashed) == path.stat().st_size
    assert sum(parts) < path.stat().st_size


def test_one_bit_anywhere_is_noticed(payload: tuple[Path, Manifest], rng: random.Random) -> None:
    path, manifest = payload
    good = path.read_bytes()
    for position in [0, len(good) - 1, *(rng.randrange(len(good)) for _ in range(60))]:
        data = bytearray(good)
        data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        code = refused(lambda: every_check(path, manifest))
        assert code in ("payload-part-hash", "payload-index-hash", "payload-malformed", "format-unknown"), (
            position
        )


def test_a_cut_anywhere_is_noticed(payload: tuple[Path, Manifest], rng: random.Random) -> None:
    path, manifest = payload
    size_bytes = path.stat().st_size
    for length in sorted((0, 1, 55, 56, *(rng.randrange(size_bytes) for _ in range(20))), reverse=True):
        os.truncate(path, length)
        assert refused(lambda: every_check(path, manifest)) in ("payload-malformed", "payload-index-hash")


def test_a_forged_payload_of_right_hashes_gives_other_bytes_and_is_found(
    tmp_path: Path, payload: tuple[Path, Manifest], rng: random.Random
) -> None:
    """Everything inside agrees; only the manifest knows better."""
    _, manifest = payload
    (tmp_path / "other").mkdir()
    other = make_release(tmp_path / "other", rng, size_bytes=3 * MIB)
    path = other.payload_path(other.record.payloads[0])
    with PayloadFile(path) as file:
        file.check_itself()
        assert refused(lambda: file.prove(manifest)) == "payload-unfit"
        body = path.read_bytes()[: file.index.offsets()[-1]]
        lying = container.Index(manifest.image_sha256, manifest.image_size_bytes, None, file.index.parts)
    path.write_bytes(body + container.encode_tail(lying))
    with PayloadFile(path) as file:
        assert refused(lambda: file.prove(manifest)) == "segment-hash"
        assert refused(file.check_itself) == "segment-hash"


@pytest.mark.parametrize(
    ("parts", "size_bytes", "body"),
    [
        ((Zero(),), 2 * MIB, b""),  # a segment too few
        ((Zero(), Zero()), MIB, b""),  # one too many
        ((Zero(),), MIB, b"x"),  # bytes that no part names
        ((Zstd(9, bytes(32)),), 512, b"x"),  # a part past the end
    ],
)
def test_parts_that_do_not_fill_the_file_are_refused(
    tmp_path: Path, parts: tuple[Zero | Zstd, ...], size_bytes: int, body: bytes
) -> None:
    digest = hashlib.sha256(bytes(size_bytes)).digest()
    path = tmp_path / "x.payload"
    path.write_bytes(body + container.encode_tail(container.Index(digest, size_bytes, None, parts)))
    with PayloadFile(path) as file:
        assert refused(file.check_itself) == "payload-malformed"
        assert refused(file.check_parts) == "payload-malformed"


def test_files_that_cannot_be_payloads(tmp_path: Path, payload: tuple[Path, Manifest]) -> None:
    assert refused(lambda: PayloadFile(tmp_path / "none")) == "input-missing"
    assert refused(lambda: PayloadFile(tmp_path)) == "input-wrong-type"
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(PAYLOAD_SIZE_BYTES_MAX + 1)
    assert refused(lambda: PayloadFile(huge)) == "input-too-large"
    with as_nobody():
        assert refused(lambda: PayloadFile(payload[0])) == "permission-denied"


def test_each_segment_is_compared_with_its_own_hash(payload: tuple[Path, Manifest]) -> None:
    """The hash of the whole image is no substitute: a device checks segment by segment."""
    path, manifest = payload
    first, second, rest = manifest.segments[:32], manifest.segments[32:64], manifest.segments[64:]
    swapped = msgspec.structs.replace(manifest, segments=second + first + rest)
    with PayloadFile(path) as file:
        told: list[int] = []
        assert refused(lambda: file.prove(swapped, told.append)) == "segment-hash"
        assert told == []
