"""The repository: signatures of several holders, rotation, refresh, and what it refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.publish.tools import (
    NOW,
    Holders,
    ceremony,
    file_size_limit,
    files_under,
    make_release,
    sign,
    simple_repository,
    start,
    state_of,
)
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import SIGNATURES_MAX
from twinlock.core.trust.verifier import TrustedSet, claims_of
from twinlock.publish import expiry, keys, releases, roots
from twinlock.publish.folder import read_release
from twinlock.publish.locking import folder_lock
from twinlock.publish.repository import open_repository
from twinlock.publish.roots import Change
from twinlock.publish.signing import Lifetimes


def refusal(step: Callable[[], object]) -> TwinlockError:
    with pytest.raises(TwinlockError) as caught:
        step()
    return caught.value


def device_accepts(repo: Path, now_days: int = 0) -> TrustedSet:
    """What a device that pins the first root makes of the files, fetched by name."""
    folder = repo / "metadata"
    trusted = TrustedSet((folder / "1.root.json").read_bytes(), NOW + timedelta(days=now_days))
    while (root := folder / f"{trusted.root.version + 1}.root.json").exists():
        trusted.update_root(root.read_bytes())
    trusted.update_timestamp((folder / "timestamp.json").read_bytes())
    assert trusted.timestamp is not None
    version = trusted.timestamp.snapshot_meta.version
    trusted.update_snapshot((folder / f"{version}.snapshot.json").read_bytes())
    version = trusted.listed("targets").version
    trusted.update_targets((folder / f"{version}.targets.json").read_bytes())
    return trusted


def rotate(repo: Path, holders: Holders, change: Change, *signing: str) -> dict[str, int]:
    with ceremony(repo, holders.ring(*signing)) as run:
        return roots.rotate(run, change)


# One holder


def test_a_signed_release_is_what_a_device_accepts(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    release = make_release(tmp_path, rng)
    assert sign(repo, holders, release, "main") == {"targets": 1, "snapshot": 1, "timestamp": 1}
    entry = device_accepts(repo).release("demo/1.0.manifest")
    assert claims_of(entry) == release.manifest.claims
    sha256 = release.record.manifest_sha256
    assert (repo / "targets/demo" / f"{sha256}.1.0.manifest").read_bytes() == release.manifest_bytes
    (payload,) = release.record.payloads
    assert (repo / "payloads" / f"{payload.sha256}.payload").stat().st_size == payload.size_bytes
    assert not (repo / "commit.json").exists()
    assert files_under(repo / "pending") == {}


def test_the_metadata_names_the_next_file_by_version_length_and_hash(
    tmp_path: Path, rng: random.Random
) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng), "main")
    timestamp = json.loads((repo / "metadata/timestamp.json").read_bytes())["signed"]
    snapshot = json.loads((repo / "metadata/1.snapshot.json").read_bytes())["signed"]
    for meta in (timestamp["meta"]["snapshot.json"], snapshot["meta"]["targets.json"]):
        assert set(meta) == {"version", "length", "hashes"}


def test_signing_again_changes_nothing(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    release = make_release(tmp_path, rng)
    sign(repo, holders, release, "main")
    before = files_under(repo)
    assert sign(repo, holders, release, "main") == {}
    assert files_under(repo) == before


def test_a_second_release_keeps_the_first(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng, "1.0"), "main")
    assert sign(repo, holders, make_release(tmp_path, rng, "1.1"), "main") == {
        "targets": 2,
        "snapshot": 2,
        "timestamp": 2,
    }
    assert state_of(repo)[0] == ["demo/1.0.manifest", "demo/1.1.manifest"]
    device_accepts(repo)


def test_a_name_with_other_bytes_is_refused(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng), "main")
    before = files_under(repo)
    (tmp_path / "other").mkdir()
    other = make_release(tmp_path / "other", rng)
    assert refusal(lambda: sign(repo, holders, other, "main")).code == "input-exists"
    assert files_under(repo) == before


def test_a_lower_counter_needs_a_word(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng, "1.0", counter=5), "main")
    lower = make_release(tmp_path, rng, "1.1", counter=4)
    assert refusal(lambda: sign(repo, holders, lower, "main")).code == "release-older"
    sign(repo, holders, make_release(tmp_path, rng, "1.2", counter=5), "main")
    with ceremony(repo, holders.ring("main")) as run:
        assert releases.take_in(run, lower, allow_lower=True)
        run.complete()
    assert len(state_of(repo)[0]) == 3


def test_a_damaged_payload_is_not_signed(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    release = make_release(tmp_path, rng)
    before = files_under(repo)
    path = release.payload_path(release.record.payloads[0])
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    assert refusal(lambda: sign(repo, holders, release, "main")).code == "payload-part-hash"
    assert files_under(repo) == before


def test_a_payload_under_a_wrong_name_is_not_taken_in(tmp_path: Path, rng: random.Random) -> None:
    """The bytes are proven to be the image; the name must be their hash all the same."""
    repo, holders = simple_repository(tmp_path)
    folder = make_release(tmp_path, rng).folder
    record = json.loads((folder / "release.json").read_bytes())
    real = record["payloads"][0]["sha256"]
    record["payloads"][0]["sha256"] = "0" * 64
    (folder / f"{real}.payload").rename(folder / f"{'0' * 64}.payload")
    (folder / "release.json").write_text(json.dumps(record))
    release = read_release(folder)
    assert refusal(lambda: sign(repo, holders, release, "main")).code == "payload-hash"
    assert not list((repo / "payloads").iterdir())


def test_a_damaged_copy_in_the_repository_is_copied_anew(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    release = make_release(tmp_path, rng)
    sign(repo, holders, release, "main")
    path = repo / "payloads" / release.record.payloads[0].file_name
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    sign(repo, holders, release, "main")
    assert path.read_bytes() == good


def test_a_full_disk_leaves_the_former_state(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng, "1.0"), "main")
    release = make_release(tmp_path, rng, "1.1")
    before = files_under(repo)
    for size_bytes in (0, 300, 2000, 100_000):
        with file_size_limit(size_bytes):
            assert refusal(lambda: sign(repo, holders, release, "main")).code == "disk-full"
        assert files_under(repo / "metadata") == {
            name.removeprefix("metadata/"): data
            for name, data in before.items()
            if name.startswith("metadata/")
        }
    assert sign(repo, holders, release, "main") == {"targets": 2, "snapshot": 2, "timestamp": 2}


# Several holders


def two_of_three(tmp_path: Path) -> tuple[Path, Holders]:
    holders = Holders(tmp_path / "keys")
    for holder in ("ann", "bob", "cat"):
        holders.make(holder, "root", "targets")
    holders.make("robot", "snapshot", "timestamp")
    repo = tmp_path / "repo"
    with pytest.raises(TwinlockError, match="1 of 2 signatures"):
        start(repo, holders, {"root": 2, "targets": 2}, "ann")
    assert not (repo / "metadata/1.root.json").exists()
    with ceremony(repo, holders.ring("bob")) as run:
        assert roots.start(run, [], {}) == {"root": 1}
    return repo, holders


def test_a_release_collects_signatures_over_several_runs(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = two_of_three(tmp_path)
    release = make_release(tmp_path, rng)
    first = refusal(lambda: sign(repo, holders, release, "ann"))
    assert first.code == "key-threshold"
    assert "targets version 1 has 1 of 2 signatures, 1 more needed" in first.what
    assert refusal(lambda: sign(repo, holders, None, "ann")).code == "key-threshold"  # the same key twice
    assert state_of(repo)[0] == []
    second = refusal(lambda: sign(repo, holders, None, "cat"))
    assert "snapshot version 1 has 0 of 1 signatures" in second.what
    assert not (repo / "metadata/timestamp.json").exists()
    assert sign(repo, holders, None, "robot") == {"targets": 1, "snapshot": 1, "timestamp": 1}
    device_accepts(repo).release("demo/1.0.manifest")


def test_a_change_voids_signatures_on_what_waited(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = two_of_three(tmp_path)
    refusal(lambda: sign(repo, holders, make_release(tmp_path, rng, "1.0"), "ann"))
    with ceremony(repo, holders.ring("bob")) as run:
        releases.take_in(run, make_release(tmp_path, rng, "1.1"), allow_lower=False)
        assert run.dropped == 1
        assert refusal(run.complete).code == "key-threshold"
    assert sign(repo, holders, None, "ann", "robot") == {"targets": 1, "snapshot": 1, "timestamp": 1}
    assert len(state_of(repo)[0]) == 2


def test_who_signs_what_waits_signs_proven_bytes(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = two_of_three(tmp_path)
    release = make_release(tmp_path, rng)
    refusal(lambda: sign(repo, holders, release, "ann"))
    with open_repository(repo, write=True) as repository:
        assert [one.manifest for one in releases.check_waiting(repository)] == [release.manifest]
    path = repo / "payloads" / release.record.payloads[0].file_name
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with open_repository(repo, write=True) as repository:
        assert refusal(lambda: releases.check_waiting(repository)).code == "payload-part-hash"


def test_thresholds_of_the_online_roles_are_honoured_too(tmp_path: Path, rng: random.Random) -> None:
    holders = Holders(tmp_path / "keys")
    holders.make("ann", "root", "targets", "snapshot", "timestamp")
    holders.make("bob", "snapshot", "timestamp")
    repo = tmp_path / "repo"
    start(repo, holders, {"snapshot": 2, "timestamp": 2}, "ann")
    problem = refusal(lambda: sign(repo, holders, make_release(tmp_path, rng), "ann"))
    assert "snapshot version 1 has 1 of 2" in problem.what
    problem = refusal(lambda: sign(repo, holders, None, "bob"))
    assert "timestamp version 1 has 1 of 2" in problem.what
    assert sign(repo, holders, None, "ann") == {"targets": 1, "snapshot": 1, "timestamp": 1}
    device_accepts(repo)


@pytest.mark.parametrize(
    ("thresholds", "roles", "code"),
    [
        ({}, ("root", "targets", "snapshot"), "key-missing"),
        ({"targets": 2}, keys.ROLES, "key-threshold"),
        ({"root": 0}, keys.ROLES, "key-threshold"),
    ],
)
def test_a_root_that_could_never_sign_is_not_made(
    tmp_path: Path, thresholds: dict[str, int], roles: tuple[str, ...], code: str
) -> None:
    holders = Holders(tmp_path / "keys")
    holders.make("main", *roles)
    assert refusal(lambda: start(tmp_path / "repo", holders, thresholds, "main")).code == code
    assert files_under(tmp_path / "repo") == {}


def test_a_role_has_no_more_keys_than_devices_accept(tmp_path: Path) -> None:
    holders = Holders(tmp_path / "keys")
    holders.make("main", *keys.ROLES)
    for number in range(SIGNATURES_MAX):
        holders.make(f"n{number}", "targets")
    assert refusal(lambda: start(tmp_path / "repo", holders, {}, "main")).code == "input-too-large"


def test_a_holder_who_means_another_root_does_not_sign(tmp_path: Path) -> None:
    holders = Holders(tmp_path / "keys")
    for holder in ("ann", "bob"):
        holders.make(holder, *keys.ROLES)
    repo = tmp_path / "repo"
    refusal(lambda: start(repo, holders, {"root": 2}, "ann"))
    before = files_under(repo)
    holders.make("eve", "targets")
    everyone = holders.public()
    known = [one for one in everyone if one[0] == "root"]
    with ceremony(repo, holders.ring("bob")) as run:
        assert refusal(lambda: roots.start(run, known, {"root": 1})).code == "input-invalid"
        assert refusal(lambda: roots.start(run, everyone, {"root": 2})).code == "input-invalid"
        assert files_under(repo) == before
        assert roots.start(run, known, {"root": 2}) == {"root": 1}


def test_a_second_root_of_trust_is_refused(tmp_path: Path) -> None:
    repo, holders = simple_repository(tmp_path)
    assert refusal(lambda: start(repo, holders, {}, "main")).code == "input-exists"


# Refresh and expiry


def test_refresh_renews_the_short_lived(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng), "main")
    device_accepts(repo, 6)
    assert refusal(lambda: device_accepts(repo, 8)).code == "metadata-expired"
    with ceremony(repo, holders.ring("main"), NOW + timedelta(days=8)) as run:
        assert run.complete(renew=True) == {"snapshot": 2, "timestamp": 2}
    device_accepts(repo, 14)


def test_expired_releases_are_signed_again(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng), "main")
    with ceremony(repo, holders.ring("main"), NOW + timedelta(days=364)) as run:
        run.renew_targets()
        assert run.complete(renew=True) == {"targets": 2, "snapshot": 2, "timestamp": 2}
    with ceremony(repo, holders.ring("main"), NOW + timedelta(days=366)) as run:
        assert refusal(lambda: run.complete(renew=True)).code == "metadata-expired"  # the root
        assert roots.rotate(run, Change()) == {"root": 2}
    device_accepts(repo, 366)


def test_warnings_come_in_time(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng), "main")
    with open_repository(repo, write=False) as repository:
        assert expiry.warnings(repository, NOW) == []
        (soon,) = expiry.warnings(repository, NOW + timedelta(days=6, hours=1))
        assert soon.startswith("timestamp metadata expires in 0 days")
        assert "twinlock release refresh" in soon
        late = expiry.warnings(repository, NOW + timedelta(days=400))
        assert [text.split()[0] for text in late] == ["root", "targets", "snapshot", "timestamp"]
        assert all("expired" in text for text in late)


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_lifetimes_are_bounded(tmp_path: Path, rng: random.Random, days: int) -> None:
    repo, holders = simple_repository(tmp_path)
    release = make_release(tmp_path, rng)
    with ceremony(repo, holders.ring("main"), lifetimes=Lifetimes(timestamp_days=days)) as run:
        releases.take_in(run, release, allow_lower=False)
        assert refusal(run.complete).code == "input-invalid"


# Rotation


def test_a_root_rotation_is_signed_by_old_and_new(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng), "main")
    (old,) = keys.list_keys(holders.folder / "main", "root")
    holders.make("new", "root")
    (new,) = keys.list_keys(holders.folder / "new", "root")
    change = Change(add=[("root", new.key)], remove=[("root", old.keyid[:8])])
    assert refusal(lambda: rotate(repo, holders, change, "new")).code == "key-threshold"
    device_accepts(repo)  # what is published is as before
    assert rotate(repo, holders, Change(), "main") == {"root": 2}
    assert device_accepts(repo).root.roles["root"].keyids == [new.keyid]


def test_a_stolen_targets_key_is_removed_and_all_signed_again(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng), "main")
    (stolen,) = keys.list_keys(holders.folder / "main", "targets")
    holders.make("new", "targets")
    (new,) = keys.list_keys(holders.folder / "new", "targets")
    change = Change(add=[("targets", new.key)], remove=[("targets", stolen.keyid[:6])])
    problem = refusal(lambda: rotate(repo, holders, change, "main"))
    assert "targets version 2 has 0 of 1" in problem.what
    assert device_accepts(repo).root.version == 1
    assert sign(repo, holders, None, "new", "main") == {
        "root": 2,
        "targets": 2,
        "snapshot": 2,
        "timestamp": 2,
    }
    device_accepts(repo).release("demo/1.0.manifest")


def test_new_online_keys_sign_snapshot_and_timestamp_anew(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng), "main")
    holders.make("new", "snapshot", "timestamp")
    old = {key.role: key.keyid for key in keys.list_keys(holders.folder / "main")}
    change = Change(
        add=[(key.role, key.key) for key in keys.list_keys(holders.folder / "new")],
        remove=[(role, old[role][:10]) for role in ("snapshot", "timestamp")],
    )
    assert rotate(repo, holders, change, "main", "new") == {"root": 2, "snapshot": 2, "timestamp": 2}
    device_accepts(repo)


def test_thresholds_can_rise(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng, "1.0"), "main")
    holders.make("bob", "targets")
    (bob,) = keys.list_keys(holders.folder / "bob")
    change = Change(add=[("targets", bob.key)], thresholds={"targets": 2})
    assert rotate(repo, holders, change, "main", "bob") == {
        "root": 2,
        "targets": 2,
        "snapshot": 2,
        "timestamp": 2,
    }
    release = make_release(tmp_path, rng, "1.1")
    assert refusal(lambda: sign(repo, holders, release, "main")).code == "key-threshold"


def test_the_same_rotation_again_adds_signatures_and_another_one_replaces_it(tmp_path: Path) -> None:
    repo, holders = two_of_three(tmp_path)
    holders.make("new", "targets")
    (new,) = keys.list_keys(holders.folder / "new", "targets")
    change = Change(add=[("targets", new.key)])
    assert "has 1 of 2" in refusal(lambda: rotate(repo, holders, change, "ann")).what
    assert (
        "has 1 of 2" in refusal(lambda: rotate(repo, holders, Change(thresholds={"targets": 3}), "bob")).what
    )
    assert rotate(repo, holders, Change(thresholds={"targets": 3}), "cat") == {"root": 2}
    root = state_of(repo)[1].root
    assert root is not None
    assert new.keyid not in root.signed.roles["targets"].keyids
    assert root.signed.roles["targets"].threshold == 3


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (Change(remove=[("targets", "123456")]), "input-invalid"),
        (Change(remove=[("targets", "")]), "input-invalid"),
        (Change(remove=[("admin", "123456")]), "input-invalid"),
        (Change(thresholds={"targets": 2}), "key-threshold"),
        (Change(thresholds={"targets": 0}), "key-threshold"),
    ],
)
def test_a_wrong_rotation_changes_nothing(tmp_path: Path, change: Change, code: str) -> None:
    repo, holders = simple_repository(tmp_path)
    before = files_under(repo)
    assert refusal(lambda: rotate(repo, holders, change, "main")).code == code
    assert files_under(repo) == before


def test_the_last_key_of_a_role_stays_and_none_is_added_twice(tmp_path: Path) -> None:
    repo, holders = simple_repository(tmp_path)
    (key,) = keys.list_keys(holders.folder / "main", "snapshot")
    remove = Change(remove=[("snapshot", key.keyid)])
    assert refusal(lambda: rotate(repo, holders, remove, "main")).code == "key-threshold"
    add = Change(add=[("snapshot", key.key)])
    assert refusal(lambda: rotate(repo, holders, add, "main")).code == "input-exists"


# The folder itself


def test_no_repository_no_root_and_two_writers(tmp_path: Path) -> None:
    def open_it() -> None:
        with open_repository(tmp_path / "repo", write=True) as repository:
            repository.need_root()

    assert refusal(open_it).code == "input-missing"
    (tmp_path / "repo/metadata").mkdir(parents=True)
    assert "keys init" in refusal(open_it).hint
    with folder_lock(tmp_path / "repo"):
        assert refusal(open_it).code == "conflict"


@pytest.mark.parametrize("name", ["1.root.json", "1.targets.json", "1.snapshot.json", "timestamp.json"])
def test_tampered_metadata_is_noticed_before_anything_is_signed(
    tmp_path: Path, rng: random.Random, name: str
) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng, "1.0"), "main")
    path = repo / "metadata" / name
    path.write_bytes(path.read_bytes().replace(b'"expires": "2', b'"expires": "3'))
    problem = refusal(lambda: sign(repo, holders, make_release(tmp_path, rng, "1.1"), "main"))
    assert problem.code in ("metadata-signature", "metadata-mismatch")


def test_a_missing_file_is_named(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng), "main")
    (repo / "metadata/1.snapshot.json").unlink()
    problem = refusal(lambda: state_of(repo))
    assert (problem.code, "1.snapshot.json" in problem.what) == ("metadata-missing", True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"files": {"../x": "AA=="}, "remove": []}',
        b'{"files": {"targets/x": "AA=="}, "remove": []}',
        b'{"files": {"metadata/../x": "AA=="}, "remove": []}',
        b'{"files": {}, "remove": ["/etc/passwd"]}',
    ],
)
def test_a_forged_commit_writes_nothing(tmp_path: Path, data: bytes) -> None:
    repo, _ = simple_repository(tmp_path)
    (repo / "commit.json").write_bytes(data)
    before = files_under(tmp_path)

    def open_it() -> None:
        with open_repository(repo, write=True):
            pass

    assert refusal(open_it).code in ("input-wrong-type", "input-invalid")
    assert files_under(tmp_path) == before
