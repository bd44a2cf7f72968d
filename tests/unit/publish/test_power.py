"""The power goes before every single write, flush, rename and removal, once each: nothing signed is lost.

After each cut the repository is opened as a reader would (it must verify, and hold the old or the new state
whole), then the command is repeated, and everything must end as if nothing had happened.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.publish.tools import (
    NOW,
    Power,
    PowerCut,
    ceremony,
    files_under,
    make_release,
    request_for,
    sign,
    simple_repository,
    state_of,
    write_image,
)
from twinlock.core.limits import KIB, MIB
from twinlock.publish import keys, roots
from twinlock.publish.folder import RECORD, read_release
from twinlock.publish.pack import pack
from twinlock.publish.roots import Change

CUTS_MAX = 300


def every_cut(
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[], None],
    step: Callable[[], object],
    check: Callable[[], None],
) -> int:
    """Runs `step` with the power going before call 0, 1, 2... until it gets through; how many cuts that took.

    `prepare` comes before each run, `check` after each cut.
    """
    for last in range(CUTS_MAX):
        prepare()
        with monkeypatch.context() as patch:
            Power(patch, last)
            try:
                step()
            except PowerCut:
                cut = True
            else:
                return last
        assert cut
        check()
    raise AssertionError("it never gets through")


def test_a_release_is_taken_in_and_signed(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, holders = simple_repository(tmp_path)
    sign(base, holders, make_release(tmp_path, rng, "1.0", size_bytes=64 * KIB), "main")
    release = make_release(tmp_path, rng, "1.1", size_bytes=64 * KIB)
    repo = tmp_path / "cut"
    old, new = ["demo/1.0.manifest"], ["demo/1.0.manifest", "demo/1.1.manifest"]
    seen: set[int] = set()

    def prepare() -> None:
        shutil.rmtree(repo, ignore_errors=True)
        shutil.copytree(base, repo)

    def check() -> None:
        names, repository = state_of(repo)
        assert names in (old, new)
        assert repository.chain is not None
        repository.chain.verify(NOW)
        seen.add(len(names))
        sign(repo, holders, release, "main")
        assert state_of(repo)[0] == new
        assert files_under(repo / "pending") == {}
        assert not (repo / "commit.json").exists()

    cuts = every_cut(monkeypatch, prepare, lambda: sign(repo, holders, release, "main"), check)
    assert cuts > 30
    assert seen == {1, 2}  # cuts before and after the moment that counts


def test_keys_are_rotated(tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    base, holders = simple_repository(tmp_path)
    sign(base, holders, make_release(tmp_path, rng, size_bytes=MIB), "main")
    holders.make("new", "timestamp")
    (old_key,) = keys.list_keys(holders.folder / "main", "timestamp")
    (new_key,) = keys.list_keys(holders.folder / "new", "timestamp")
    change = Change(add=[("timestamp", new_key.key)], remove=[("timestamp", old_key.keyid)])
    repo = tmp_path / "cut"
    seen: set[int] = set()

    def prepare() -> None:
        shutil.rmtree(repo, ignore_errors=True)
        shutil.copytree(base, repo)

    def rotate() -> None:
        with ceremony(repo, holders.ring("main", "new")) as run:
            root = run.repository.root
            assert root is not None
            if old_key.keyid in root.signed.roles["timestamp"].keyids:
                roots.rotate(run, change)

    def check() -> None:
        _, repository = state_of(repo)
        assert repository.chain is not None
        repository.chain.verify(NOW)
        seen.add(len(repository.chain.roots))
        rotate()
        _, repository = state_of(repo)
        assert repository.root is not None
        assert repository.root.signed.roles["timestamp"].keyids == [new_key.keyid]

    assert every_cut(monkeypatch, prepare, rotate, check) > 15
    assert seen == {1, 2}


def test_an_image_is_packed(tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "image", rng, 2 * MIB)
    out = tmp_path / "out"
    pack(request_for(tmp_path / "image", tmp_path / "whole"))
    expected = files_under(tmp_path / "whole")

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)

    def check() -> None:
        if (out / RECORD).exists():  # then it is a release, and whole
            read_release(out)
        pack(request_for(tmp_path / "image", out))
        assert files_under(out) == expected

    cuts = every_cut(monkeypatch, prepare, lambda: pack(request_for(tmp_path / "image", out)), check)
    assert cuts > 10


def test_keys_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "keys"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def check() -> None:
        for path in folder.glob("*.pub") if folder.exists() else ():
            assert (
                path.with_suffix(".pem").stat().st_size > 0
            )  # a public half never comes before its private one

    roles = ["root", "targets"]
    cuts = every_cut(monkeypatch, prepare, lambda: keys.create(folder, roles, "main", "ed25519", None), check)
    assert cuts > 8
