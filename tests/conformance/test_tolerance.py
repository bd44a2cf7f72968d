"""What other writers of metadata do differently, and a client takes: the specification leaves it open."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tuf.api.metadata import Key

from tests.conformance.driver import Driver
from tests.conformance.repository import ALL, Repository
from twinlock.core import limits

LISTED = ("targets", "snapshot", "timestamp")


@pytest.mark.parametrize("keyid", ["alice", "0", "ab" * 32, "schlüssel 1", "x" * 500])
def test_key_ids_are_any_text(client: Driver, repository: Repository, keyid: str) -> None:
    """Section 4.2: the id is the key's name, and no rule says how a client could check it."""
    signer = repository.new_key()
    signer.public_key.keyid = keyid
    for held in repository.signers["timestamp"]:
        repository.root.revoke_key(held.public_key.keyid, "timestamp")
    repository.signers["timestamp"] = []
    repository.add_key("timestamp", signer)
    repository.publish("root", "timestamp")
    assert client.refresh() == 0, client.stderr
    assert client.version("timestamp") == 2


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_bytes_that_are_not_canonical_are_verified_and_kept(
    client: Driver, repository: Repository, role: str
) -> None:
    """Other spaces, another order of keys, escapes and a line's end: the signature is over the content."""
    repository.metadata[role].signed.unrecognized_fields["x"] = "naïve/slash"
    repository.publish(*ALL)
    value = json.loads(repository.served(role))
    turned = {"signed": dict(reversed(value["signed"].items())), "signatures": value["signatures"]}
    data = b"\n " + json.dumps(turned, indent=3, ensure_ascii=True).replace("/", "\\/").encode() + b"\r\n\n"
    repository.files[repository.path(role)] = data
    assert client.refresh() == 0, client.stderr
    assert (client.metadata / f"{role}.json").read_bytes() == data


@pytest.mark.parametrize(
    ("version", "taken"), [("1.0", True), ("1.0.0", True), ("1.9.99", True), ("2.0.0", False), ("x", False)]
)
def test_versions_of_the_specification(
    client: Driver, repository: Repository, version: str, taken: bool
) -> None:
    repository.publish("timestamp")
    repository.resign("timestamp", lambda signed: signed.update(spec_version=version))
    assert client.refresh() == (not taken)
    assert client.code == ("" if taken else "metadata-malformed")


def test_a_root_that_says_nothing_of_consistent_snapshots(client: Driver, repository: Repository) -> None:
    """Section 4.3: then there are none, and the other files have their plain names."""
    repository.publish("root")
    repository.resign("root", lambda root: root.pop("consistent_snapshot"))
    repository.root.consistent_snapshot = None
    repository.add_file(b"content", "file")
    repository.publish(*LISTED)
    assert client.download("file") == 0, client.stderr
    assert repository.asked[-3:] == ["metadata/snapshot.json", "metadata/targets.json", "targets/file"]


def test_undefined_fields_everywhere(client: Driver, repository: Repository) -> None:
    repository.add_file(b"content", "file")
    repository.publish("root", *LISTED)

    def more(value: Any) -> None:
        for inner in list(value.values()) if isinstance(value, dict) else value:
            if isinstance(inner, dict | list):
                more(inner)
        if isinstance(value, dict) and value and not all(isinstance(one, dict) for one in value.values()):
            value["x-later"] = {"a": [1, None, True, "text"]}

    for role in ("root", "timestamp"):
        repository.resign(role, more)
    assert client.download("file") == 0, client.stderr
    assert client.version("root") == 2


@pytest.mark.parametrize("slash", ["", "/"])
def test_addresses_end_with_a_slash_or_do_not(client: Driver, repository: Repository, slash: str) -> None:
    repository.add_file(b"content", "file")
    repository.publish(*LISTED)
    where = ["--metadata-url", f"{client.address}/metadata{slash}"]
    files = ["--target-base-url", f"{client.address}/targets{slash}", "--target-dir", str(client.downloads)]
    assert client._run("download", *where, *files, "--target-name", "file") == 0
    assert client.downloaded() == [b"content"]


def test_a_file_without_bytes(client: Driver, repository: Repository) -> None:
    repository.add_file(b"", "empty")
    repository.publish(*LISTED)
    assert client.download("empty") == 0
    assert client.downloaded() == [b""]


@pytest.mark.parametrize("curve", ["ecdsa", "ed25519", "rsa"])
def test_one_key_for_every_role(client: Driver, repository: Repository, curve: str) -> None:
    signer = repository.new_key(curve)
    for role in ALL[1:]:
        for held in repository.signers[role]:
            repository.root.revoke_key(held.public_key.keyid, role)
        repository.signers[role] = []
        repository.add_key(role, signer)
    repository.publish(*ALL)
    assert client.refresh() == 0, client.stderr


def test_a_key_with_fields_of_its_own(client: Driver, repository: Repository) -> None:
    signer = repository.new_key()
    key: Key = signer.public_key
    key.unrecognized_fields |= {"keyid_hash_algorithms": ["md5"], "x-owner": "@alice", "x-hsm": {"slot": 1}}
    repository.add_key("root", signer)
    repository.root.roles["root"].threshold = 2
    repository.publish("root")
    assert client.refresh() == 0, client.stderr
    assert client.version("root") == 2


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_a_file_larger_than_its_bound_is_not_read_to_its_end(
    client: Driver, repository: Repository, role: str
) -> None:
    assert client.refresh() == 0
    kept = client.files()
    repository.publish(*ALL)
    size_bytes = limits.METADATA_SIZE_BYTES_MAX[role]
    repository.files[repository.path(role)] = repository.served(role) + b" " * size_bytes
    assert client.refresh() == 1
    assert client.code == "transfer-oversized"
    assert client.files()[f"{role}.json"] == kept[f"{role}.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b"[]", b'{"signed":{},"signatures":[]}', b"\xff\xfe"])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_stored_files_that_were_damaged_are_fetched_again(
    client: Driver, repository: Repository, role: str, damage: bytes
) -> None:
    assert client.refresh() == 0
    kept = client.files()
    (client.metadata / f"{role}.json").write_bytes(damage)
    assert client.refresh() == 0, client.stderr
    assert client.files() == kept


def test_the_same_state_again_writes_nothing(client: Driver, repository: Repository) -> None:
    repository.add_file(b"content", "file")
    repository.publish(*LISTED)
    assert client.download("file") == 0
    before = {path: path.stat().st_mtime_ns for path in client.metadata.iterdir()}
    (stored,) = client.downloads.iterdir()
    at = stored.stat().st_mtime_ns
    for _ in range(3):
        assert client.refresh() == 0
        assert client.download("file") == 0
    assert {path: path.stat().st_mtime_ns for path in client.metadata.iterdir()} == before
    assert stored.stat().st_mtime_ns == at
