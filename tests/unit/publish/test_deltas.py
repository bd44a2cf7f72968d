"""Deltas beside full payloads: made once, named in the record, kept when the release is signed again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.publish.tools import (
    Holders,
    image_bytes,
    make_release,
    request_for,
    sign,
    simple_repository,
)
from twinlock.core.errors import TwinlockError, error
from twinlock.core.limits import MIB
from twinlock.publish import deltas, releases, upload
from twinlock.publish.deltas import Made, make_delta
from twinlock.publish.folder import RECORD, Release, read_release
from twinlock.publish.pack import pack
from twinlock.publish.payload_file import PayloadFile
from twinlock.publish.repository import open_repository


def packed(folder: Path, image: bytes, version: str, **changes: Any) -> Release:
    (folder / f"image-{version}").write_bytes(image)
    request = request_for(folder / f"image-{version}", folder / f"demo-{version}", version)
    for name, value in changes.items():
        object.__setattr__(request, name, value)
    pack(request)
    return read_release(folder / f"demo-{version}")


@pytest.fixture
def pair(tmp_path: Path, rng: random.Random) -> tuple[Release, Release]:
    old = image_bytes(rng, 3 * MIB)
    new = bytearray(old)
    new[MIB : MIB + 100] = rng.randbytes(100)
    return packed(tmp_path, old, "1.0"), packed(tmp_path, bytes(new), "1.1")


def made_from(pair: tuple[Release, Release], told: list[int] | None = None) -> Made:
    advance = (told if told is not None else []).append
    return make_delta(*pair, pair[1].folder / RECORD, 1, advance)


def test_a_delta_is_named_in_the_record_and_made_once(pair: tuple[Release, Release]) -> None:
    told: list[int] = []
    made = made_from(pair, told)
    assert (made.new, made.kept) == (True, True)
    assert sum(told) == 3 * 3 * MIB
    again = read_release(pair[1].folder)
    assert again.record.payloads == (*pair[1].record.payloads, made.payload)
    assert made.payload.base_sha256 == pair[0].manifest.image_sha256.hex()
    assert made.payload.size_bytes < 1000
    assert make_delta(pair[0], again, again.folder / RECORD) == Made(made.payload, new=False, kept=True)
    assert sorted(path.suffix for path in again.folder.iterdir()) == [
        ".json",
        ".manifest",
        ".payload",
        ".payload",
    ]


def test_nothing_that_is_signed_changes(pair: tuple[Release, Release]) -> None:
    made_from(pair)
    again = read_release(pair[1].folder)
    assert again.manifest_bytes == pair[1].manifest_bytes
    assert again.record.manifest_sha256 == pair[1].record.manifest_sha256


def test_a_delta_that_is_no_smaller_is_not_kept(tmp_path: Path) -> None:
    """Zeros cost nothing in full."""
    one, two = packed(tmp_path, b"x" * MIB, "1.0"), packed(tmp_path, bytes(MIB), "1.1")
    made = make_delta(one, two, two.folder / RECORD, 1)
    assert (made.new, made.kept) == (True, False)
    assert read_release(two.folder).record == two.record
    assert sorted(path.suffix for path in two.folder.iterdir()) == [".json", ".manifest", ".payload"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"product": "other"}, "different products"), ({"hardware": ("other-board",)}, "no hardware runs both")],
)
def test_releases_that_cannot_follow_each_other(
    tmp_path: Path, rng: random.Random, changes: dict[str, Any], what: str
) -> None:
    older = packed(tmp_path, image_bytes(rng, MIB), "1.0", **changes)
    newer = packed(tmp_path, image_bytes(rng, MIB), "1.1")
    with pytest.raises(TwinlockError, match=what):
        make_delta(older, newer, newer.folder / RECORD)


def test_the_same_image_needs_no_delta(tmp_path: Path, rng: random.Random) -> None:
    image = image_bytes(rng, MIB)
    older, newer = packed(tmp_path, image, "1.0"), packed(tmp_path, image, "1.1")
    with pytest.raises(TwinlockError, match="the same image"):
        make_delta(older, newer, newer.folder / RECORD)


def test_a_damaged_full_payload_makes_no_delta(pair: tuple[Release, Release]) -> None:
    path = pair[0].payload_path(pair[0].record.payloads[0])
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(TwinlockError) as caught:
        made_from(pair)
    assert caught.value.code == "payload-part-hash"
    assert read_release(pair[1].folder).record == pair[1].record


def test_an_image_comes_back_out_of_its_payload(pair: tuple[Release, Release], tmp_path: Path) -> None:
    deltas.write_image(pair[0], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "image-1.0").read_bytes()


def test_a_delta_alone_gives_no_image(pair: tuple[Release, Release], tmp_path: Path) -> None:
    made = made_from(pair)
    with PayloadFile(pair[1].payload_path(made.payload)) as file, (tmp_path / "out").open("wb") as out:
        with pytest.raises(TwinlockError) as caught:
            file.write_image(pair[1].manifest, out)
        file.prove(pair[1].manifest)  # its parts have their hashes
    assert caught.value.code == "delta-base"


def test_a_damaged_delta_is_found_before_it_is_sent(pair: tuple[Release, Release]) -> None:
    made = made_from(pair)
    path = pair[1].payload_path(made.payload)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(TwinlockError) as caught:
        upload.check_payloads(read_release(pair[1].folder))
    assert caught.value.code == "payload-hash"


# --- in a repository --------------------------------------------------------------------------------------


@pytest.fixture
def signed(tmp_path: Path, pair: tuple[Release, Release]) -> tuple[Path, Holders]:
    repo, holders = simple_repository(tmp_path)
    for release in pair:
        sign(repo, holders, release, "main")
    return repo, holders


def names_of(repo: Path) -> list[str]:
    with open_repository(repo, write=False) as repository:
        one = releases.read_signed(repository, releases.find_release(repository, "demo", "1.1"))
        return [payload.kind for payload in one.record.payloads]


def test_deltas_stay_when_the_release_is_signed_again(
    signed: tuple[Path, Holders], pair: tuple[Release, Release]
) -> None:
    repo, holders = signed
    with open_repository(repo, write=True) as repository:
        older, newer = (
            releases.read_signed(repository, releases.find_release(repository, "demo", version))
            for version in ("1.0", "1.1")
        )
        path = releases.record_path(repository.folder, "demo", "1.1")
        assert make_delta(older, newer, path, 1).kept
    assert names_of(repo) == ["full", "delta"]
    sign(repo, holders, pair[1], "main")  # its folder knows nothing of the delta
    assert names_of(repo) == ["full", "delta"]


class Fleet:
    """A server that says what the fleet runs; only `get` is asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def get(self, path: str) -> Any:
        assert path == "/fleet/demo"
        if isinstance(self.answer, TwinlockError):
            raise self.answer
        return self.answer


def bases(repo: Path, answer: Any, count: int = 3) -> list[str]:
    with open_repository(repo, write=False) as repository:
        newer = releases.find_release(repository, "demo", "1.1")
        found = deltas.bases_in_use(repository, Fleet(answer), newer, count)  # type: ignore[arg-type]
        return [one.claims.version for one in found]


def test_deltas_are_made_from_what_the_fleet_runs(
    signed: tuple[Path, Holders], pair: tuple[Release, Release], tmp_path: Path
) -> None:
    repo, holders = signed
    sign(repo, holders, make_release(tmp_path, random.Random(3), "0.9", 1), "main")
    ours = {version: hash_of(repo, version) for version in ("0.9", "1.0", "1.1")}
    images = [{"image_sha256": ours["0.9"]}, {"image_sha256": "ff" * 32}, {"image_sha256": ours["1.0"]}]
    assert bases(repo, {"images": images}) == ["0.9", "1.0"]
    assert bases(repo, {"images": images}, 2) == ["0.9"]
    assert bases(repo, {"images": [{"image_sha256": ours["1.1"]}]}) == []
    assert bases(repo, {"images": []}) == []


def hash_of(repo: Path, version: str) -> str:
    with open_repository(repo, write=False) as repository:
        found = releases.find_release(repository, "demo", version)
        return releases.read_signed(repository, found).manifest.image_sha256.hex()


def test_a_server_that_does_not_tell_is_not_asked_for_more(signed: tuple[Path, Holders]) -> None:
    assert bases(signed[0], error("not-found", "no such page")) == []
    answers: list[Any] = [[], {}, {"images": [1]}]
    for answer in answers:
        with pytest.raises(TwinlockError) as caught:
            bases(signed[0], answer)
        assert caught.value.code == "answer-malformed"
    with pytest.raises(TwinlockError, match="out of reach"):
        bases(signed[0], error("server-unreachable", "out of reach"))
