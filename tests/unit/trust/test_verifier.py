"""The verifier's steps out of order, its hashes, its claims, and the parts that a client rarely meets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tuf.api.metadata import TargetFile

from tests.conformance.memory import MemoryStore, client
from tests.conformance.repository import NOW, Repository
from twinlock.core import limits
from twinlock.core.errors import InternalError, TwinlockError
from twinlock.core.trust import delegations, hashes
from twinlock.core.trust.floors import Floors
from twinlock.core.trust.verifier import TrustedSet, check_manifest_bytes, claims_of


@pytest.fixture
def repository() -> Repository:
    return Repository()


@pytest.fixture
def trusted(repository: Repository) -> TrustedSet:
    return TrustedSet(repository.served("root"), NOW)


STEPS: list[tuple[str, Callable[[TrustedSet, Repository], object]]] = [
    ("timestamp", lambda t, r: t.update_timestamp(r.served("timestamp"))),
    ("snapshot", lambda t, r: t.update_snapshot(r.served("snapshot"))),
    ("targets", lambda t, r: t.update_targets(r.served("targets"))),
    ("release", lambda t, r: t.release("name")),
]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_steps_come_in_order(trusted: TrustedSet, repository: Repository, number: int) -> None:
    for _, step in STEPS[: number - 1]:
        step(trusted, repository)
    with pytest.raises(InternalError):
        STEPS[number][1](trusted, repository)


def test_steps_do_not_come_again(trusted: TrustedSet, repository: Repository) -> None:
    for _, step in STEPS[:3]:
        step(trusted, repository)
    repository.publish("root")
    for late in (
        lambda: trusted.update_root(repository.served("root")),
        lambda: trusted.update_timestamp(repository.served("timestamp")),
        lambda: trusted.update_snapshot(repository.served("snapshot")),
        lambda: trusted.update_role(repository.served("targets"), "child", "unknown"),
    ):
        with pytest.raises(TwinlockError):
            late()


def test_a_refusal_changes_nothing(trusted: TrustedSet, repository: Repository) -> None:
    repository.publish("targets", "snapshot", "timestamp")
    trusted.update_timestamp(repository.served("timestamp"))
    before = (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets, trusted.floors)
    with pytest.raises(TwinlockError, match="metadata-mismatch"):
        trusted.update_snapshot(repository.files["metadata/1.snapshot.json"])
    assert (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets, trusted.floors) == before


def test_floors_given_by_hand_hold(repository: Repository) -> None:
    """A server knows only three numbers of what it published before."""
    for floors, code in (
        (Floors(timestamp=2), "metadata-rollback"),
        (Floors(snapshot=2), "metadata-rollback"),
        (Floors(targets=2), "metadata-rollback"),
        (Floors(1, 1, 1), ""),
    ):
        trusted = TrustedSet(repository.served("root"), NOW, floors)
        try:
            for _, step in STEPS[:3]:
                step(trusted, repository)
            assert code == ""
        except TwinlockError as problem:
            assert problem.code == code  # noqa: PT017  the loop tells which floors
    assert trusted.floors.timestamp == trusted.floors.snapshot == trusted.floors.targets == 1


def test_a_release_that_needs_a_role_not_taken(trusted: TrustedSet, repository: Repository) -> None:
    repository.delegate("targets", "A")
    repository.publish("A", "targets", "snapshot", "timestamp")
    for _, step in STEPS[:3]:
        step(trusted, repository)
    with pytest.raises(TwinlockError, match="metadata-missing"):
        trusted.release("name")
    trusted.update_role(repository.served("A"), "A", "targets")
    with pytest.raises(TwinlockError, match="release-unknown"):
        trusted.release("name")


def test_more_roots_than_a_refresh_takes(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client stops at its bound and goes on from there next time, as 5.3.3 says."""
    monkeypatch.setattr(limits, "ROOT_ROTATIONS_MAX", 3)
    for _ in range(5):
        repository.publish("root")
    store = MemoryStore(repository.files["metadata/1.root.json"])
    assert client(repository, store).refresh().root.version == 4
    assert client(repository, store).refresh().root.version == 6


def test_the_newer_of_stored_and_pinned_root_serves(repository: Repository) -> None:
    old = repository.served("root")
    repository.publish("root")
    new = repository.served("root")
    cases: list[tuple[bytes | None, bytes | None, int]]
    cases = [(old, new, 3), (new, old, 3), (b"", new, 3), (None, old, 2), (old, b"", 2)]
    for stored, pinned, asked in cases:
        store = MemoryStore(stored)
        repository.asked.clear()
        client(repository, store, pinned=pinned).refresh()
        assert repository.asked_metadata()[0] == f"{asked}.root.json"
    with pytest.raises(TwinlockError, match="metadata-missing"):
        client(repository, MemoryStore()).refresh()
    with pytest.raises(TwinlockError, match="metadata-malformed"):
        client(repository, MemoryStore(b""), pinned=b"{}").refresh()


def test_floors_are_written_once_and_only_when_they_rise(repository: Repository) -> None:
    store = MemoryStore(repository.served("root"))
    client(repository, store).refresh()
    assert store.writes == ["save timestamp", "save snapshot", "save targets", "floors"]
    store.writes.clear()
    client(repository, store).refresh()
    assert store.writes == []
    repository.publish("timestamp")
    del repository.files[repository.path("targets")]
    store.files.pop("targets")
    with pytest.raises(TwinlockError):
        client(repository, store).refresh()
    assert store.writes == ["save timestamp", "floors"]


def test_a_rotation_is_noted_before_the_root(repository: Repository) -> None:
    store = MemoryStore(repository.served("root"))
    client(repository, store).refresh()
    store.writes.clear()
    repository.rotate("timestamp")
    repository.publish("root", "timestamp")
    client(repository, store).refresh()
    assert store.writes[:3] == ["delete timestamp", "delete snapshot", "save root"]


@pytest.mark.parametrize(
    ("length", "listed", "holds"),
    [
        (4, {"sha256": "good"}, True),
        (None, {"sha512": "good", "md5": "bad"}, True),
        (4, {"sha256": "good", "sha512": "bad"}, False),
        (3, {"sha256": "good"}, False),
        (5, {"sha256": "good"}, False),
        (4, {"md5": "good"}, False),
        (4, {"sha256": ""}, False),
        (4, {}, False),
    ],
)
def test_hashes(length: int | None, listed: dict[str, str], holds: bool) -> None:
    import hashlib

    right = {kind: hashlib.new(kind, b"data").hexdigest() for kind in listed}
    given = {kind: right[kind] if text == "good" else text * 16 for kind, text in listed.items()}
    if holds:
        hashes.check(b"data", length, given, "metadata-mismatch", "it")
    else:
        with pytest.raises(TwinlockError, match="metadata-mismatch"):
            hashes.check(b"data", length, given, "metadata-mismatch", "it")


def test_a_stream_ends_as_soon_as_it_is_too_long() -> None:
    checker = hashes.Checker(3, {"sha256": "0" * 64}, "manifest-hash", "it")
    checker.feed(b"abc")
    with pytest.raises(TwinlockError, match="more than the 3 bytes"):
        checker.feed(b"d")


CLAIMS = {"product": "demo", "version": "1", "hardware": ["x"], "counter": 1, "image_size_bytes": 512}


@pytest.mark.parametrize(
    "custom",
    [None, [], {}, {"twinlock": None}, {"twinlock": {}}, {"twinlock": {**CLAIMS, "more": 1}},
     {"twinlock": {**CLAIMS, "counter": "1"}}, {"twinlock": {**CLAIMS, "counter": True}}],
)  # fmt: skip
def test_claims_are_whole_or_none(custom: Any) -> None:
    entry = TargetFile.from_data("name", b"data", ["sha256"])
    entry.unrecognized_fields["custom"] = custom
    with pytest.raises(TwinlockError, match="metadata-malformed"):
        claims_of(entry)
    entry.unrecognized_fields["custom"] = {"twinlock": CLAIMS}
    assert claims_of(entry).counter == 1


def test_a_manifest_needs_its_sha256() -> None:
    check_manifest_bytes(TargetFile.from_data("name", b"data", ["sha256", "sha512"]), b"data")
    for entry in (
        TargetFile.from_data("name", b"data", ["sha512"]),
        TargetFile.from_data("name", b"other", ["sha256"]),
    ):
        with pytest.raises(TwinlockError, match="manifest-hash"):
            check_manifest_bytes(entry, b"data")


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("A-1_x.y~", "A-1_x.y~"),
        ("../a", "..%2Fa"),
        ("ü", "%C3%BC"),
        ("%2F", "%252F"),
        ("a\0b", "a%00b"),
    ],
)
def test_a_role_as_a_file_name(role: str, name: str) -> None:
    assert delegations.file_name(role) == name


def test_freshness_is_by_the_time_handed_in(repository: Repository) -> None:
    late = TrustedSet(repository.served("root"), repository.expires + timedelta(seconds=1))
    with pytest.raises(TwinlockError, match="metadata-expired"):
        late.check_root_fresh()


def test_two_delegators_that_name_the_same_key(trusted: TrustedSet, repository: Repository) -> None:
    """One file, asked for through both; each vouches for it, and it is taken once."""
    for parent in ("A", "B"):
        repository.delegate("targets", parent, paths=[f"{parent}/*"])
        repository.delegate(parent, "C", paths=[f"{parent}/*"])
        repository.add_file(b"data", f"{parent}/file", "C")
    repository.publish("A", "B", "C", "targets", "snapshot", "timestamp")
    for _, step in STEPS[:3]:
        step(trusted, repository)
    for role, delegator in (("A", "targets"), ("B", "targets"), ("C", "A")):
        trusted.update_role(repository.served(role), role, delegator)
    assert trusted.release("A/file").path == "A/file"
    assert trusted.release("B/file").path == "B/file"


def test_a_role_comes_after_its_delegator(trusted: TrustedSet, repository: Repository) -> None:
    for _, step in STEPS[:3]:
        step(trusted, repository)
    with pytest.raises(InternalError):
        trusted.update_role(repository.served("targets"), "targets", "unknown")


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_critical_fields_that_nobody_knows_are_refused(repository: Repository, role: str) -> None:
    repository.metadata[role].signed.unrecognized_fields["critical"] = ["something"]
    repository.publish("root", "targets", "snapshot", "timestamp")
    store = MemoryStore(repository.files["metadata/1.root.json"])
    with pytest.raises(TwinlockError, match="format-unknown"):
        client(repository, store).refresh()
    assert store.files.get(role) == (store.files["root"] if role == "root" else None)


def test_a_timestamp_that_goes_back_to_a_known_snapshot_is_seen_by_the_snapshot_too(
    trusted: TrustedSet, repository: Repository
) -> None:
    """The stored snapshot is newer than the one listed, though no timestamp is left to say so."""
    repository.publish("snapshot")
    newer = repository.served("snapshot")
    trusted.update_timestamp(repository.files["metadata/timestamp.json"])
    assert trusted.load_snapshot(newer) is False
    with pytest.raises(TwinlockError, match="metadata-rollback"):
        trusted.update_snapshot(repository.files["metadata/1.snapshot.json"])
