"""Expired metadata: never final, still good as memory, and checked at the moments the specification names."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.conformance.driver import Driver
from tests.conformance.repository import NOW, TOP, Repository

PAST = NOW - timedelta(days=1)


def test_an_expired_last_root_is_kept_and_ends_the_refresh(client: Driver, repository: Repository) -> None:
    assert client.refresh() == 0
    repository.root.expires = PAST
    repository.publish("root", "targets", "snapshot", "timestamp")
    repository.asked.clear()
    assert client.refresh() == 1
    assert client.code == "metadata-expired"
    assert repository.asked_metadata() == ["2.root.json", "3.root.json"]
    assert client.versions() == {"root": 2, "snapshot": 1, "targets": 1, "timestamp": 1}


def test_an_expired_root_on_the_way_does_not_matter(client: Driver, repository: Repository) -> None:
    repository.root.expires = PAST
    repository.publish("root")
    repository.root.expires = repository.expires
    repository.publish("root")
    assert client.refresh() == 0
    assert client.version("root") == 3


def test_an_expired_first_root_does_not_matter(repository: Repository, client: Driver) -> None:
    expired = Repository()
    expired.root.expires = PAST
    expired.publish("root", bump=False)
    client.root.write_bytes(expired.served("root"))
    assert client.init() == 0
    expired.root.expires = repository.expires
    expired.publish("root")
    repository.files = expired.files
    assert client.refresh() == 0


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_an_expired_role_is_never_kept(client: Driver, repository: Repository, role: str) -> None:
    assert client.refresh() == 0
    repository.metadata[role].signed.expires = PAST
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-expired"
    new = {"timestamp": (), "snapshot": ("timestamp",), "targets": ("timestamp", "snapshot")}[role]
    assert client.versions() == {name: 2 if name in new else 1 for name in sorted(TOP)}


def test_the_moment_of_expiry_is_too_late(client: Driver, repository: Repository) -> None:
    client.now = repository.expires - timedelta(seconds=1)
    assert client.refresh() == 0
    client.now = repository.expires
    assert client.refresh() == 1
    assert client.code == "metadata-expired"


def test_expired_stored_metadata_still_leads_to_newer(client: Driver, repository: Repository) -> None:
    repository.timestamp.expires = NOW + timedelta(days=7)
    repository.publish("timestamp")
    assert client.refresh() == 0
    repository.timestamp.expires = NOW + timedelta(days=21)
    repository.publish("targets", "snapshot", "timestamp")
    client.now = NOW + timedelta(days=18)
    assert client.refresh() == 0
    assert client.versions() == {"root": 1, "snapshot": 2, "targets": 2, "timestamp": 3}


def test_expired_stored_metadata_still_prevents_a_rollback(client: Driver, repository: Repository) -> None:
    repository.root.expires += timedelta(days=60)
    repository.publish("root", "targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    kept = client.files()
    for role in ("targets", "snapshot", "timestamp"):
        repository.metadata[role].signed.version = 1
        repository.metadata[role].signed.expires += timedelta(days=60)
        repository.publish(role, bump=False)
    client.now = repository.expires + timedelta(days=1)
    assert client.refresh() == 1
    assert client.code == "metadata-rollback"
    assert client.files() == kept


def test_a_stored_timestamp_that_expired_is_not_final(client: Driver, repository: Repository) -> None:
    assert client.refresh() == 0
    kept = client.files()
    repository.root.expires += timedelta(days=300)
    repository.publish("root")
    client.now = repository.expires + timedelta(days=1)
    assert client.refresh() == 1
    assert client.code == "metadata-expired"
    assert {**client.files(), "root.json": b"", "floors": b""} == {**kept, "root.json": b"", "floors": b""}


@pytest.mark.parametrize("renewed", [False, True])
def test_a_delegated_role_that_expired_is_not_used(
    client: Driver, repository: Repository, renewed: bool
) -> None:
    repository.delegate("targets", "other", paths=["folder/*"])
    repository.role("other").expires = NOW + timedelta(days=7)
    for name in ("first", "second"):
        repository.add_file(name.encode(), f"folder/{name}", "other")
    repository.publish("other", "targets", "snapshot", "timestamp")
    assert client.download("folder/first") == 0
    if renewed:
        repository.role("other").expires = NOW + timedelta(days=21)
        repository.publish("other", "snapshot", "timestamp")
    client.now = NOW + timedelta(days=18)
    assert client.download("folder/second") == (not renewed)
    assert client.code == ("" if renewed else "metadata-expired")
    assert client.downloaded() == ([b"first", b"second"] if renewed else [b"first"])


def test_a_delegated_role_that_comes_expired_is_not_kept(client: Driver, repository: Repository) -> None:
    repository.delegate("targets", "other", paths=["folder/*"])
    repository.role("other").expires = PAST
    repository.add_file(b"content", "folder/file", "other")
    repository.publish("other", "targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    assert client.download("folder/file") == 1
    assert client.code == "metadata-expired"
    assert client.versions() == {"root": 1, "snapshot": 2, "targets": 2, "timestamp": 2}
    assert client.downloaded() == []
