"""Publishing: what the pinned root's chain does not sign, or is older, or does not fit, changes nothing."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conformance.repository import NOW, Repository
from tests.unit.server.rig import MadeRelease, Server, code_of, list_release, make_release, offered, text
from tests.unit.server.test_web import page
from twinlock.core import limits, manifest
from twinlock.core.payload import container
from twinlock.server.blobs.metadata import MetadataFiles
from twinlock.server.releases import chain

RELEASE = make_release("1.1")
EMPTY = container.Index(bytes(32), 512, None, ())


def contents(server: Server) -> dict[str, bytes]:
    """Every file of the repository that is served, by its path."""
    folder = server.settings.repository
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def prepare(server: Server, release: MadeRelease = RELEASE, **claims: Any) -> None:
    """Uploads a release and signs the metadata that lists it."""
    server.upload(release)
    list_release(server.repository, release, **claims)
    server.repository.publish("targets", "snapshot", "timestamp")


def refused(server: Server, code: str, release: MadeRelease = RELEASE, **changes: Any) -> None:
    """The publication is refused with this code, and neither files nor database have changed."""
    before = contents(server)
    audit, releases = (server.operator("GET", path).json() for path in ("/audit", "/releases"))
    answer = server.send(release, **changes)
    assert code_of(answer) == code, answer.text
    assert answer.status_code in (400, 409, 422)
    assert contents(server) == before
    assert server.operator("GET", "/audit").json() == audit
    assert server.operator("GET", "/releases").json() == releases


def test_a_release_is_stored_and_served_byte_for_byte(server: Server) -> None:
    prepare(server)
    answer = server.send(RELEASE)
    assert answer.status_code == 201
    shown = answer.json()
    assert (shown["product"], shown["version"], shown["hardware"]) == ("demo", "1.1", ["demo-board"])
    assert shown["image_sha256"] == RELEASE.manifest.image_sha256.hex()
    assert shown["payloads"] == [{**RELEASE.offer(), "base_sha256": None}]
    assert server.operator("GET", "/releases/demo/1.1").json() == shown
    for path, data in server.repository.files.items():
        if not path.endswith(("1.targets.json", "1.snapshot.json")):
            got = server.http("GET", f"/repository/{path}")
            assert (got.status_code, got.content) == (200, data), path


def test_the_same_publication_again_changes_nothing(server: Server) -> None:
    prepare(server)
    first = server.send(RELEASE).json()
    before = contents(server)
    server.clock.advance(60)
    again = server.send(RELEASE)
    assert (again.status_code, again.json()) == (201, first)
    assert contents(server) == before


def test_a_second_release_and_a_refresh(server: Server) -> None:
    server.publish(make_release("1.1"))
    server.publish(make_release("1.2", 2))
    server.repository.publish("snapshot", "timestamp")
    answer = server.operator("POST", "/metadata", json=offered(server.repository))
    assert (answer.status_code, answer.json()) == (
        200,
        {"root_version": 1, "targets_version": 3, "snapshot_version": 4, "timestamp_version": 4},
    )
    assert [one["version"] for one in server.operator("GET", "/releases").json()["releases"]] == [
        "1.2",
        "1.1",
    ]


def test_a_release_that_the_metadata_drops_is_rolled_out_no_more(server: Server) -> None:
    """Devices would refuse it, each after a poll of its own; the operator hears it at once."""
    release = make_release("1.1")
    server.publish(release)
    dropped = server.repository.targets.targets.pop(release.manifest.name)
    server.repository.publish("targets", "snapshot", "timestamp")
    assert server.operator("POST", "/metadata", json=offered(server.repository)).status_code == 200
    shown = server.operator("GET", "/releases/demo/1.1").json()
    since = server.operator("GET", "/audit").json()["entries"][-2]
    assert (since["action"], since["subject"]) == ("release-unlisted", "demo 1.1")
    assert shown["unlisted"] == since["at"]
    assert "not signed any more since" in page(server)
    body = {"product": "demo", "version": "1.1", "devices": "all"}
    answer = server.operator("POST", "/rollouts", json=body)
    assert (answer.status_code, code_of(answer)) == (422, "release-unknown")
    assert server.operator("GET", "/rollouts").json()["rollouts"] == []

    server.clock.advance(60)
    server.repository.publish("snapshot", "timestamp")  # still dropped: told once
    assert server.operator("POST", "/metadata", json=offered(server.repository)).status_code == 200
    assert server.operator("GET", "/releases/demo/1.1").json()["unlisted"] == since["at"]

    server.repository.targets.targets[release.manifest.name] = dropped
    server.repository.publish("targets", "snapshot", "timestamp")
    assert server.operator("POST", "/metadata", json=offered(server.repository)).status_code == 200
    assert server.operator("GET", "/releases/demo/1.1").json()["unlisted"] is None
    told = [one["action"] for one in server.operator("GET", "/audit").json()["entries"]]
    assert told.count("release-unlisted") == told.count("release-listed") == 1
    assert server.roll_out("1.1")


def test_metadata_of_a_stranger_is_refused(server: Server) -> None:
    prepare(server)
    stranger = Repository()
    stranger.rotate("targets")
    list_release(stranger, RELEASE)
    stranger.publish("targets", "snapshot", "timestamp")
    refused(server, "metadata-signature", metadata=offered(stranger))


def test_a_strangers_root_does_not_help(server: Server) -> None:
    prepare(server)
    stranger = Repository()
    stranger.new_key()
    for role in ("root", "targets", "snapshot", "timestamp"):
        stranger.rotate(role)
    stranger.publish("root")
    list_release(stranger, RELEASE)
    stranger.publish("targets", "snapshot", "timestamp")
    refused(server, "metadata-signature", metadata=offered(stranger))


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_unsigned_metadata_is_refused(server: Server, role: str) -> None:
    prepare(server)
    metadata = offered(server.repository)
    value = msgspec.json.decode(server.repository.served(role))
    value["signatures"] = []
    refused(server, "metadata-signature", metadata=metadata | {role: text(msgspec.json.encode(value))})


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b'{"signed":{},"signatures":[]}'])
def test_metadata_that_is_none_is_refused(server: Server, role: str, data: bytes) -> None:
    prepare(server)
    refused(server, "metadata-malformed", metadata=offered(server.repository) | {role: text(data)})


def test_an_older_state_is_refused(server: Server) -> None:
    server.publish(make_release("1.0"))
    older = offered(server.repository)
    server.publish(make_release("1.1"))
    before = contents(server)
    answer = server.operator("POST", "/metadata", json=older)
    assert (answer.status_code, code_of(answer)) == (422, "metadata-rollback")
    assert contents(server) == before


def test_a_mix_of_an_older_snapshot_and_a_newer_timestamp_is_refused(server: Server) -> None:
    server.publish(make_release("1.0"))
    older = server.repository.served("snapshot")
    prepare(server)
    refused(server, "metadata-mismatch", metadata=offered(server.repository) | {"snapshot": text(older)})


def test_targets_older_than_the_served_ones_are_refused_under_a_new_snapshot(server: Server) -> None:
    server.publish(make_release("1.0"))
    prepare(server)
    server.send(RELEASE)
    server.repository.targets.version -= 2
    server.repository.publish("targets", "snapshot", "timestamp")
    before = contents(server)
    answer = server.operator("POST", "/metadata", json=offered(server.repository))
    assert code_of(answer) == "metadata-rollback"
    assert contents(server) == before


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_other_bytes_under_a_served_version_are_refused(server: Server, role: str) -> None:
    prepare(server)
    server.send(RELEASE)
    server.repository.metadata[role].signed.expires += timedelta(days=1)
    server.repository.publish(role, bump=False)
    if role != "timestamp":
        newer = ["snapshot", "timestamp"] if role == "targets" else ["timestamp"]
        server.repository.publish(*newer)
    before = contents(server)
    answer = server.operator("POST", "/metadata", json=offered(server.repository))
    assert (answer.status_code, code_of(answer)) == (409, "conflict")
    assert contents(server) == before


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_expired_metadata_is_refused(server: Server, role: str) -> None:
    prepare(server)
    server.clock.now = NOW + timedelta(days=40)
    for other in {"root", "timestamp", "snapshot", "targets"} - {role}:
        server.repository.metadata[other].signed.expires = NOW + timedelta(days=80)
    published = ["targets", "snapshot", "timestamp"]
    server.repository.publish(*(["root", *published] if role != "root" else published))
    refused(server, "metadata-expired")


def test_a_manifest_that_is_not_listed_is_refused(server: Server) -> None:
    prepare(server, make_release("1.0"))
    server.upload(RELEASE)
    refused(server, "release-unknown")


def test_another_manifest_of_the_listed_name_is_refused(server: Server) -> None:
    prepare(server)
    other = make_release("1.1", notes="changed")
    refused(server, "manifest-hash", manifest=text(other.data))


@pytest.mark.parametrize(
    "claims",
    [{"counter": 99}, {"hardware": ["demo-board", "more"]}, {"image_size_bytes": 512}, {"product": "other"}],
)
def test_claims_that_differ_from_the_manifests_are_refused(server: Server, claims: dict[str, Any]) -> None:
    prepare(server, **claims)
    refused(server, "metadata-mismatch")


@pytest.mark.parametrize("custom", [None, {}, {"twinlock": 1}, {"twinlock": {"product": "demo"}}])
def test_an_entry_without_claims_is_refused(server: Server, custom: Any) -> None:
    server.upload(RELEASE)
    entry = server.repository.add_file(RELEASE.data, RELEASE.manifest.name)
    if custom is not None:
        entry.unrecognized_fields["custom"] = custom
    server.repository.publish("targets", "snapshot", "timestamp")
    refused(server, "metadata-malformed")


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff", b"x" * (limits.MANIFEST_SIZE_BYTES_MAX + 1)])
def test_a_manifest_that_is_none_is_refused(server: Server, data: bytes) -> None:
    prepare(server)
    refused(server, "manifest-malformed", manifest=text(data))


def test_a_missing_payload_is_refused(server: Server) -> None:
    list_release(server.repository, RELEASE)
    server.repository.publish("targets", "snapshot", "timestamp")
    refused(server, "payload-unfit")


@pytest.mark.parametrize(
    "changes",
    [
        {"size_bytes": len(RELEASE.payload) - 1},
        {"index_size_bytes": RELEASE.index_size_bytes + 1},
        {"kind": "delta"},
        {"base_sha256": "0" * 64},
        {"kind": "delta", "base_sha256": "0" * 64},
    ],
)
def test_a_payload_that_is_not_as_it_is_offered_is_refused(server: Server, changes: dict[str, Any]) -> None:
    prepare(server)
    refused(server, "payload-unfit", payloads=[RELEASE.offer() | changes])


def test_another_releases_payload_is_refused(server: Server) -> None:
    prepare(server)
    other = make_release("1.0")
    server.upload(other)
    refused(server, "payload-unfit", payloads=[other.offer()])


def test_a_payload_beside_a_wrong_one_is_not_enough(server: Server) -> None:
    prepare(server)
    other = make_release("1.0")
    server.upload(other)
    refused(server, "payload-unfit", payloads=[RELEASE.offer(), other.offer()])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: b"short", "payload-malformed"),
        (lambda data: b"x" * len(data), "payload-malformed"),
        (lambda data: data[:-32] + bytes(32), "payload-index-hash"),
        (lambda data: data[:-40] + bytes(40), "payload-malformed"),
        (lambda data: data[:-57] + b"\xff" + data[-56:], "payload-index-hash"),
        (lambda data: data[:-56] + container.encode_tail(EMPTY)[-56:], "payload-index-hash"),
    ],
)
def test_a_file_that_is_no_payload_is_refused(server: Server, change: Any, code: str) -> None:
    prepare(server)
    data = change(RELEASE.payload)
    sha256 = hashlib.sha256(data).hexdigest()
    assert server.operator("PUT", f"/payloads/{sha256}", body=data).status_code == 201
    offer = RELEASE.offer() | {"sha256": sha256, "size_bytes": len(data)}
    if data[-56:-48] == container.MAGIC:
        offer["index_size_bytes"] = int.from_bytes(data[-40:-32], "little")
    refused(server, code, payloads=[offer])


def test_a_published_version_keeps_its_manifest(server: Server) -> None:
    prepare(server)
    server.send(RELEASE)
    other = make_release("1.1", notes="changed")
    list_release(server.repository, other)
    server.repository.publish("targets", "snapshot", "timestamp")
    refused(server, "conflict", other)


def test_a_new_root_with_new_keys_is_followed(server: Server) -> None:
    server.publish(make_release("1.0"))
    for role in ("targets", "snapshot", "timestamp"):
        server.repository.rotate(role)
    server.repository.publish("root")
    server.publish(RELEASE)
    got = server.http("GET", "/repository/metadata/2.root.json")
    assert got.content == server.repository.served("root")
    server.publish(make_release("1.2", 2))


def test_a_root_is_published_by_metadata_alone(server: Server) -> None:
    prepare(server)
    server.send(RELEASE)
    server.repository.publish("root", "timestamp")
    answer = server.operator("POST", "/metadata", json=offered(server.repository))
    assert (answer.status_code, answer.json()["root_version"]) == (200, 2)


def test_a_gap_in_the_roots_is_refused(server: Server) -> None:
    prepare(server)
    server.repository.publish("root")
    server.repository.publish("root", "timestamp")
    metadata = offered(server.repository)
    metadata["roots"] = [text(server.repository.served("root"))]
    refused(server, "metadata-rollback", metadata=metadata)


def test_another_root_under_a_served_version_is_refused(server: Server) -> None:
    prepare(server)
    other = Repository()
    other.root.expires += timedelta(days=1)
    other.publish("root", bump=False)
    metadata = offered(server.repository) | {"roots": [text(other.served("root"))]}
    refused(server, "conflict", metadata=metadata)


def test_versions_driven_to_the_end_are_recovered_from_by_new_keys(server: Server) -> None:
    """Fast-forward: the key's rotation forgets the versions, and a broken publication can be repeated."""
    server.publish(make_release("1.0"))
    repository = server.repository
    repository.timestamp.version = repository.snapshot.version = limits.METADATA_VERSION_MAX - 1
    repository.publish("snapshot", "timestamp")
    assert server.operator("POST", "/metadata", json=offered(repository)).status_code == 200
    repository.timestamp.version = repository.snapshot.version = 1
    list_release(repository, RELEASE)
    server.upload(RELEASE)
    repository.publish("targets", "snapshot", "timestamp")
    refused(server, "metadata-rollback")
    for role in ("snapshot", "timestamp"):
        repository.rotate(role)
    repository.publish("root", "snapshot", "timestamp")
    assert server.send(RELEASE).status_code == 201
    assert server.send(RELEASE).status_code == 201


class PowerCutError(Exception):
    """The power went."""


@pytest.mark.parametrize("rotated", [False, True])
def test_a_publication_cut_at_any_write_is_completed_by_repeating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotated: bool
) -> None:
    """At each cut the timestamp leads only to what is there, and the same request completes it."""
    real_write = MetadataFiles.write
    cut_at, writes = 0, 10**6
    while cut_at < writes:
        server = Server(tmp_path / f"{rotated}-{cut_at}")
        server.publish(make_release("1.0"))
        if rotated:
            for role in ("snapshot", "timestamp"):
                server.repository.rotate(role)
            server.repository.publish("root")
        prepare(server)
        done = 0

        def cut(self: MetadataFiles, name: str, data: bytes, at: int = cut_at) -> None:
            nonlocal done
            if done == at:
                raise PowerCutError(name)
            done += 1
            real_write(self, name, data)

        monkeypatch.setattr(MetadataFiles, "write", cut)
        answer = server.send(RELEASE)
        monkeypatch.setattr(MetadataFiles, "write", real_write)
        if answer.status_code == 201:
            writes = done
        else:
            assert code_of(answer) == "internal"
            check_consistent(server)
            server.stop()
            server.start()
            assert server.send(RELEASE).status_code == 201
        check_consistent(server)
        assert server.operator("GET", "/releases/demo/1.1").status_code == 200
        server.close()
        cut_at += 1
    assert writes == (4 if rotated else 3)


def check_consistent(server: Server) -> None:
    """What a device would find: every file that the timestamp leads to is there, or there is no timestamp."""
    found = contents(server)
    timestamp = found.get("metadata/timestamp.json")
    if timestamp is None:
        return
    snapshot_version = msgspec.json.decode(timestamp)["signed"]["meta"]["snapshot.json"]["version"]
    snapshot = found[f"metadata/{snapshot_version}.snapshot.json"]
    targets_version = msgspec.json.decode(snapshot)["signed"]["meta"]["targets.json"]["version"]
    targets = msgspec.json.decode(found[f"metadata/{targets_version}.targets.json"])
    for name, entry in targets["signed"]["targets"].items():
        product, _, file = name.partition("/")
        data = found[f"targets/{product}/{entry['hashes']['sha256']}.{file}"]
        assert manifest.decode(data).name == name


def test_a_damaged_timestamp_of_the_server_itself_is_said_to_be_that(server: Server) -> None:
    prepare(server)
    server.send(RELEASE)
    (server.settings.repository / "metadata/timestamp.json").write_bytes(b"{}")
    answer = server.send(RELEASE)
    assert code_of(answer) == "metadata-malformed"
    assert "server's own copy" in answer.json()["error"]["hint"]


def test_the_number_of_roots_is_bounded(server: Server) -> None:
    prepare(server)
    roots = [text(server.repository.served("root"))] * (chain.ROOTS_PER_PUBLICATION_MAX + 1)
    refused(server, "request-malformed", metadata=offered(server.repository) | {"roots": roots})


@pytest.mark.parametrize("field", ["timestamp", "snapshot", "targets"])
def test_base64_that_is_none_is_refused(server: Server, field: str) -> None:
    prepare(server)
    for value in ("*", "AAA", "\N{SNOWMAN}"):
        metadata = offered(server.repository) | {field: value}
        refused(server, "request-malformed", metadata=metadata)


def test_publishing_is_in_the_audit_log(server: Server) -> None:
    server.publish(RELEASE)
    entry = server.operator("GET", "/audit").json()["entries"][-1]
    assert (entry["actor"], entry["action"], entry["subject"]) == (
        "operator",
        "release-published",
        "demo 1.1",
    )
    assert entry["detail"] == "root 1, targets 2, snapshot 2, timestamp 2"


def test_lists_that_delegate_in_a_circle_are_taken_once(server: Server) -> None:
    repository = server.repository
    repository.delegate("targets", "one", paths=["demo/*"])
    repository.delegate("one", "two", paths=["demo/*"])
    repository.delegate("two", "one", paths=["demo/*"])
    server.upload(RELEASE)
    entry = repository.add_file(RELEASE.data, RELEASE.manifest.name, "two")
    entry.unrecognized_fields["custom"] = {"twinlock": msgspec.to_builtins(RELEASE.manifest.claims)}
    repository.publish("two", "one", "targets", "snapshot", "timestamp")
    metadata = offered(repository)
    refused(server, "metadata-missing", metadata=metadata)
    lists = {role: text(repository.served(role)) for role in ("one", "two")}
    answer = server.send(RELEASE, metadata=metadata | {"delegated": lists})
    assert answer.status_code == 201, answer.text
    for role in ("one", "two"):
        served = server.http("GET", f"/repository/{repository.path(role)}")
        assert (served.status_code, served.content) == (200, repository.served(role))
