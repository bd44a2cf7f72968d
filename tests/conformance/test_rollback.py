"""Older metadata than seen before: refused wherever it comes from, until keys are rotated."""

from __future__ import annotations

import pytest

from tests.conformance.driver import Driver
from tests.conformance.repository import ALL, Repository

LISTS = pytest.mark.parametrize("list_hashes", [False, True])


def back(repository: Repository, *roles: str, version: int = 1) -> None:
    """Publishes the roles in an older version."""
    for role in roles:
        repository.metadata[role].signed.version = version
        repository.publish(role, bump=False)


def test_an_older_timestamp(client: Driver, repository: Repository) -> None:
    repository.publish("timestamp")
    assert client.refresh() == 0
    kept = client.files()
    back(repository, "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"
    assert repository.asked_metadata()[-1] == "timestamp.json"
    assert client.files() == kept


@LISTS
def test_an_older_snapshot_in_a_newer_timestamp(
    client: Driver, repository: Repository, list_hashes: bool
) -> None:
    repository.list_hashes = list_hashes
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 0
    kept = client.files()
    back(repository, "snapshot")
    repository.publish("timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"
    assert repository.asked_metadata()[-1] == "timestamp.json"
    assert client.files() == kept


def test_a_snapshot_that_the_timestamp_does_not_list_is_not_asked_for(
    client: Driver, repository: Repository
) -> None:
    assert client.refresh() == 0
    repository.publish("snapshot")
    repository.timestamp.snapshot_meta.version = 1
    repository.publish("timestamp")
    assert client.refresh() == 0
    assert client.versions() == {"root": 1, "snapshot": 1, "targets": 1, "timestamp": 2}


@LISTS
def test_older_targets_in_a_newer_snapshot(client: Driver, repository: Repository, list_hashes: bool) -> None:
    repository.list_hashes = list_hashes
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    back(repository, "targets")
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"
    assert client.versions() == {"root": 1, "snapshot": 2, "targets": 2, "timestamp": 3}


@LISTS
def test_an_older_delegated_role_that_was_never_fetched(
    client: Driver, repository: Repository, list_hashes: bool
) -> None:
    """What counts is what the snapshot listed, not what this client happened to need."""
    repository.list_hashes = list_hashes
    repository.delegate("targets", "other")
    repository.publish("other", "other", "targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    back(repository, "other")
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"
    assert client.version("snapshot") == 2


@pytest.mark.parametrize("name", ["other.json", "targets.json"])
def test_a_listed_file_does_not_disappear(client: Driver, repository: Repository, name: str) -> None:
    repository.delegate("targets", "other")
    repository.publish("other", "targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    del repository.snapshot.meta[name]
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.code == ("metadata-mismatch" if name == "targets.json" else "metadata-rollback")
    assert client.version("snapshot") == 2


def test_a_snapshot_between_two_that_are_seen_counts(client: Driver, repository: Repository) -> None:
    """The stored snapshot is not the one listed any more: it is memory all the same."""
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    (client.metadata / "floors").unlink()
    back(repository, "targets")
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"


def test_the_floors_count_without_the_files(client: Driver, repository: Repository) -> None:
    for _ in range(3):
        repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    for role in ("timestamp", "snapshot", "targets"):
        (client.metadata / f"{role}.json").unlink()
    for roles, trusted in (
        (("targets", "snapshot", "timestamp"), {"root": 1}),
        (("timestamp",), {"root": 1}),
    ):
        back(repository, *roles, version=2)
        assert client.refresh() == 1
        assert client.code == "metadata-rollback"
        assert client.versions() == trusted


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_a_rotation_recovers_from_versions_driven_up(
    client: Driver, repository: Repository, role: str
) -> None:
    """Section 5.3.11: one key of either role taken away forgets what was seen of both, and what they list."""
    for name in ("targets", "snapshot", "timestamp"):
        repository.metadata[name].signed.version = 99
        repository.publish(name)
    assert client.refresh() == 0
    repository.rotate(role)
    repository.publish("root")
    back(repository, "targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    assert client.versions() == {"root": 2, "snapshot": 1, "targets": 1, "timestamp": 1}
    assert client.floors().timestamp == 1


def test_one_key_of_several_taken_away_is_a_rotation(client: Driver, repository: Repository) -> None:
    """The stored files would still verify by the keys that stay."""
    for _ in range(2):
        repository.add_key("timestamp")
    repository.root.roles["timestamp"].threshold = 2
    repository.publish(*ALL)
    repository.metadata["timestamp"].signed.version = 99
    repository.publish("timestamp")
    assert client.refresh() == 0
    gone = repository.signers["timestamp"].pop(0)
    repository.root.revoke_key(gone.public_key.keyid, "timestamp")
    repository.publish("root")
    back(repository, "timestamp", version=5)
    assert client.refresh() == 0
    assert client.version("timestamp") == 5


@pytest.mark.parametrize("role", ["root", "targets"])
def test_the_rotation_of_other_keys_forgets_nothing(
    client: Driver, repository: Repository, role: str
) -> None:
    repository.publish("timestamp")
    assert client.refresh() == 0
    old = repository.signers["root"][0]
    repository.rotate(role)
    repository.signers["root"] += [old] if role == "root" else []
    repository.publish("root", "targets", "snapshot")
    back(repository, "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"
    assert client.version("root") == 2


def test_a_key_more_forgets_nothing(client: Driver, repository: Repository) -> None:
    repository.publish("timestamp")
    assert client.refresh() == 0
    repository.add_key("timestamp")
    repository.publish("root")
    back(repository, "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"
    assert client.version("timestamp") == 2


def test_a_lost_root_file_cannot_be_used_to_go_back(client: Driver, repository: Repository) -> None:
    """The pinned root is old; without the newer ones, the old online keys would be good again."""
    old = dict(repository.files)
    repository.rotate("timestamp")
    repository.publish("root", "timestamp")
    assert client.refresh() == 0
    (client.metadata / "root.json").unlink()
    new, repository.files = repository.files, old
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"
    assert "root.json" not in client.files()
    repository.files = new
    assert client.refresh() == 0
    assert client.version("root") == 2


def test_a_higher_threshold_forgets_nothing(client: Driver, repository: Repository) -> None:
    """The stored timestamp no longer carries enough signatures; its version is remembered all the same."""
    repository.publish("timestamp")
    assert client.refresh() == 0
    repository.add_key("timestamp")
    repository.root.roles["timestamp"].threshold = 2
    repository.publish("root")
    back(repository, "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"


def test_the_listed_one_of_two_snapshots_with_one_version(client: Driver, repository: Repository) -> None:
    """Section 5.5.2: what counts is the hash that the timestamp lists, not the number."""
    repository.list_hashes = True
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 0
    repository.snapshot.unrecognized_fields["note"] = "another"
    repository.publish("snapshot", bump=False)
    repository.publish("timestamp")
    assert client.refresh() == 0
    assert client.files()["snapshot.json"] == repository.served("snapshot")
