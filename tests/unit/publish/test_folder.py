"""Release folders: what a record may say, and that it must agree with what lies beside it."""

from __future__ import annotations

import errno
import fcntl
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.publish.tools import make_release, request_for, write_image
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.publish.folder import PAYLOADS_MAX, encode_record, read_release
from twinlock.publish.locking import folder_lock
from twinlock.publish.pack import pack


def refusal(step: Callable[[], object]) -> TwinlockError:
    with pytest.raises(TwinlockError) as caught:
        step()
    return caught.value


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> TwinlockError:
    record = json.loads((folder / "release.json").read_bytes())
    change(record)
    (folder / "release.json").write_text(json.dumps(record))
    return refusal(lambda: read_release(folder))


def test_a_record_has_one_encoding(tmp_path: Path, rng: random.Random) -> None:
    release = make_release(tmp_path, rng)
    assert encode_record(release.record) == (release.folder / "release.json").read_bytes()


def test_a_folder_without_a_record_says_how_to_make_one(tmp_path: Path) -> None:
    problem = refusal(lambda: read_release(tmp_path))
    assert (problem.code, "release pack" in problem.hint) == ("input-missing", True)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda record: record.update(payloads=[]), "input-invalid"),
        (lambda record: record.update(payloads=record["payloads"] * (PAYLOADS_MAX + 1)), "input-invalid"),
        (lambda record: record.update(product="other"), "manifest-malformed"),
        (lambda record: record.update(format_version=2), "input-wrong-type"),
        (lambda record: record.update(more=1), "input-wrong-type"),
        (lambda record: record.update(manifest_sha256="0" * 64), "manifest-hash"),
        (lambda record: record.update(version="9.9"), "input-missing"),
        (lambda record: record.update(version="../1.0"), "input-invalid"),
        (lambda record: record["payloads"][0].update(size_bytes=1), "payload-unfit"),
        (lambda record: record["payloads"][0].update(index_size_bytes=1), "payload-unfit"),
        (lambda record: record["payloads"][0].update(kind="delta"), "payload-unfit"),
        (lambda record: record["payloads"][0].update(base_sha256="0" * 64), "payload-unfit"),
        (lambda record: record["payloads"][0].update(sha256="0" * 64), "input-missing"),
        (lambda record: record["payloads"][0].update(sha256="A" * 64), "input-invalid"),
    ],
)
def test_a_record_that_does_not_agree_is_refused(
    tmp_path: Path, rng: random.Random, change: Callable[[dict[str, Any]], None], code: str
) -> None:
    folder = make_release(tmp_path, rng).folder
    assert changed(folder, change).code == code


def test_a_taken_folder_is_noticed_before_the_image_is_read(tmp_path: Path, rng: random.Random) -> None:
    write_image(tmp_path / "image", rng, MIB)
    pack(request_for(tmp_path / "image", tmp_path / "out"))
    told: list[int] = []
    other = request_for(tmp_path / "image", tmp_path / "out", "1.1")
    assert refusal(lambda: pack(other, told.append)).code == "input-exists"
    assert told == []


def test_a_lock_that_the_file_system_cannot_give_is_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)

    def lock() -> None:
        with folder_lock(tmp_path):
            pass

    assert refusal(lock).code == "io-error"
