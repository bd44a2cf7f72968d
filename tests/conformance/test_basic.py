"""What every client of a TUF repository does, and what it makes of a repository that is not quite one."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tests.conformance.driver import Driver
from tests.conformance.repository import ALL, TOP, Repository

FIRST_REFRESH = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]


def test_a_refresh_asks_for_each_role_once(client: Driver, repository: Repository) -> None:
    assert client.refresh() == 0
    assert repository.asked_metadata() == FIRST_REFRESH


def test_a_second_refresh_fetches_only_what_may_have_changed(client: Driver, repository: Repository) -> None:
    assert client.refresh() == 0
    repository.asked.clear()
    assert client.refresh() == 0
    assert repository.asked_metadata() == ["2.root.json", "timestamp.json"]


def test_files_are_kept_byte_for_byte(client: Driver, repository: Repository) -> None:
    for role in TOP[1:]:
        repository.files[repository.path(role)] += b" \n"
    assert client.refresh() == 0
    for role in TOP:
        assert (client.metadata / f"{role}.json").read_bytes() == repository.served(role)


def test_init_asks_for_nothing(client: Driver, repository: Repository) -> None:
    assert repository.asked == []
    assert client.versions() == {"root": 1}


def test_a_download_refreshes_first(client: Driver, repository: Repository) -> None:
    assert client.download("no such file") == 1
    assert client.code == "release-unknown"
    assert repository.asked_metadata() == FIRST_REFRESH
    assert client.versions() == dict.fromkeys(sorted(TOP), 1)


def test_nothing_is_asked_on_the_word_of_a_malformed_root(client: Driver, repository: Repository) -> None:
    root = json.loads(repository.served("root"))
    del root["signed"]["version"]
    client.root.write_text(json.dumps(root))
    assert client.init() == 0
    assert client.refresh() == 1
    assert client.code == "metadata-malformed"
    assert repository.asked == []


def test_nothing_is_asked_on_the_word_of_an_unsigned_root(client: Driver, repository: Repository) -> None:
    root = json.loads(repository.served("root"))
    root["signatures"][0]["sig"] = "30" * 64
    client.root.write_text(json.dumps(root))
    assert client.init() == 0
    assert client.refresh() == 1
    assert client.code == "metadata-signature"
    assert repository.asked == []


def test_init_without_a_root_fails(client: Driver) -> None:
    client.root.unlink()
    assert client.init() == 1
    assert client.code == "input-missing"


@pytest.mark.parametrize(
    ("role", "trusted"),
    [
        ("root", {"root": 1}),
        ("timestamp", {"root": 2}),
        ("snapshot", {"root": 2, "timestamp": 2}),
        ("targets", {"root": 2, "snapshot": 2, "timestamp": 2}),
    ],
)
def test_an_unsigned_role_stops_the_refresh(
    client: Driver, repository: Repository, role: str, trusted: dict[str, int]
) -> None:
    repository.signers[role].clear()
    repository.publish(*ALL)
    assert client.refresh() == 1
    assert client.code == "metadata-signature"
    assert client.versions() == trusted


@pytest.mark.parametrize(
    ("role", "code", "trusted"),
    [
        ("root", "metadata-rollback", {"root": 1}),
        ("snapshot", "metadata-mismatch", {"root": 2, "timestamp": 2}),
        ("targets", "metadata-mismatch", {"root": 2, "snapshot": 2, "timestamp": 2}),
    ],
)
def test_the_version_inside_must_be_the_one_asked_for(
    client: Driver, repository: Repository, role: str, code: str, trusted: dict[str, int]
) -> None:
    repository.publish(*ALL)
    metadata = repository.metadata[role]
    metadata.signed.version = 3
    repository.publish(role, bump=False, version=2)
    metadata.signed.version = 2
    repository._note(role)
    repository.publish(
        *{"snapshot": ["timestamp"], "targets": ["snapshot", "timestamp"]}.get(role, []), bump=False
    )
    assert client.refresh() == 1
    assert client.code == code
    assert client.versions() == trusted


def test_a_timestamp_of_the_same_version_is_dropped(client: Driver, repository: Repository) -> None:
    assert client.refresh() == 0
    kept = client.files()
    repository.timestamp.snapshot_meta.version = 100
    repository.publish("timestamp", bump=False)
    repository.asked.clear()
    assert client.refresh() == 0
    assert repository.asked_metadata() == ["2.root.json", "timestamp.json"]
    assert client.files() == kept


def test_listed_hashes_are_checked(client: Driver, repository: Repository) -> None:
    repository.list_hashes = True
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    repository.publish("targets")
    hashes = repository.snapshot.meta["targets.json"].hashes
    assert hashes is not None
    hashes["sha256"] = "46" * 32
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-mismatch"
    assert client.versions() == {"root": 1, "snapshot": 3, "targets": 2, "timestamp": 3}


def test_listed_lengths_are_checked(client: Driver, repository: Repository) -> None:
    length = len(repository.served("targets"))
    for listed, code in ((length + 1, "metadata-mismatch"), (length - 1, "transfer-oversized"), (length, "")):
        repository.snapshot.meta["targets.json"].length = listed
        repository.publish("snapshot", "timestamp")
        assert client.refresh() == bool(code)
        assert client.code == code


def test_unknown_fields_are_covered_by_the_signatures(client: Driver, repository: Repository) -> None:
    signer = repository.new_key()
    signer.public_key.unrecognized_fields["extra-field"] = {"a": 1, "b": [2]}
    signer.public_key.unrecognized_fields["keyid_hash_algorithms"] = "md5"
    repository.add_key("root", signer)
    repository.root.unrecognized_fields["custom-field"] = "value"
    repository.root.roles["root"].unrecognized_fields["another-field"] = "value"
    repository.publish("root")
    assert client.refresh() == 0
    assert client.version("root") == 2
    repository.publish("root")
    changed = json.loads(repository.served("root"))
    changed["signed"]["custom-field"] = "other value"
    repository.files[repository.path("root")] = json.dumps(changed).encode()
    assert client.refresh() == 1
    assert client.code == "metadata-signature"


def test_entries_that_the_parser_drops_are_covered_too(client: Driver, repository: Repository) -> None:
    timestamp = json.loads(repository.served("timestamp"))
    timestamp["signed"]["meta"]["other.json"] = {"version": 1}
    repository.files[repository.path("timestamp")] = json.dumps(timestamp).encode()
    assert client.refresh() == 1
    assert client.code == "metadata-signature"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_missing_file_stops_the_refresh(client: Driver, repository: Repository, role: str) -> None:
    assert client.refresh() == 0
    repository.publish("targets", "snapshot", "timestamp")
    del repository.files[repository.path(role)]
    assert client.refresh() == 1
    assert client.code == "metadata-missing"
    assert repository.asked[-1] == repository.path(role)
    new = {"timestamp": (), "snapshot": ("timestamp",), "targets": ("timestamp", "snapshot")}[role]
    assert client.versions() == {name: 2 if name in new else 1 for name in sorted(TOP)}


def test_a_server_that_fails_is_not_a_repository_without_new_roots(
    client: Driver, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.statuses["metadata/2.root.json"] = 500
    assert client.refresh() == 1
    assert client.code == "server-error"
    repository.statuses["metadata/2.root.json"] = 403
    assert client.refresh() == 0


def test_a_role_of_another_type_is_refused(client: Driver, repository: Repository) -> None:
    """A snapshot that could pass as a timestamp but for its type, signed by the timestamp's key."""
    repository.add_key("snapshot", repository.signers["timestamp"][0])
    repository.snapshot.meta["snapshot.json"] = repository.snapshot.meta.pop("targets.json")
    repository.publish("root", "snapshot")
    repository.files["metadata/timestamp.json"] = repository.served("snapshot")
    assert client.refresh() == 1
    assert client.code == "metadata-malformed"
    assert client.versions() == {"root": 2}


@pytest.mark.parametrize("consistent", [True, False])
def test_consistent_snapshots_decide_the_names(
    client: Driver, repository: Repository, consistent: bool
) -> None:
    repository.root.consistent_snapshot = consistent
    repository.add_file(b"content", "folder/file")
    repository.publish(*ALL)
    assert client.download("folder/file") == 0
    assert client.downloaded() == [b"content"]
    digest = repository.targets.targets["folder/file"].hashes["sha256"]
    expected = ["2.snapshot.json", "2.targets.json"] if consistent else ["snapshot.json", "targets.json"]
    assert repository.asked_metadata() == ["2.root.json", "3.root.json", "timestamp.json", *expected]
    assert repository.asked[-1] == f"targets/folder/{digest}.file" if consistent else "targets/folder/file"


def test_the_command_as_a_process_follows_the_clock(repository: Repository, client: Driver) -> None:
    """The fixtures' repository has expired long ago, or is not yet made, by the process's own clock."""
    client.real = True
    fresh = Repository(datetime.now(UTC))
    fresh.add_file(b"content", "file")
    fresh.publish("targets", "snapshot", "timestamp")
    repository.files, repository.root.expires = fresh.files, fresh.expires
    client.root.write_bytes(fresh.files["metadata/1.root.json"])
    assert client.init() == 0
    assert client.refresh() == 0
    assert client.download("file") == 0
    assert client.downloaded() == [b"content"]
    kept = client.files()
    fresh.timestamp.expires = datetime(2020, 1, 1, tzinfo=UTC)
    fresh.publish("timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-expired"
    assert client.files() == kept
