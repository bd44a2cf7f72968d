"""Attacks on the server, cases 33, 40, 41 and 46: full disks, tokens, identities, unsigned publications."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import insert

from tests.attacks.server_scene import refused, server_scene
from tests.conformance.repository import Repository
from tests.unit.server.rig import FakeDevice, list_release, make_release, offered, text
from twinlock.core.device_key import enrolment_bytes
from twinlock.server.operators import hash_of
from twinlock.server.store import tables

RELEASE = make_release()
FREE_BYTES_MIN = 1 << 50
CALLS = (
    ("GET", "/devices"),
    ("POST", "/devices/dev-1/accept"),
    ("POST", "/rollouts"),
    ("PUT", f"/payloads/{RELEASE.sha256}"),
    ("POST", "/releases"),
)


def test_case_33_a_servers_disk_is_full(tmp_path: Path) -> None:
    """What is to stay free stays free: an upload that would take it is refused before its first byte."""
    with server_scene(tmp_path, free_bytes_min=FREE_BYTES_MIN) as server:
        before = server.state()
        answer = server.operator("PUT", f"/payloads/{RELEASE.sha256}", body=RELEASE.payload)
        refused(answer, 507, "disk-full")
        assert server.state() == before


def test_case_40_empty_and_default_tokens(tmp_path: Path) -> None:
    with server_scene(tmp_path) as server:
        server.device(accepted=False)
        before = server.state()
        basic = base64.b64encode(b"admin:admin").decode()
        tokens = ("", " ", "null", "none", "admin", "changeme", "secret", "twinlock", "A" * 43, "A" * 10_000)
        for method, path in CALLS:
            for header in (None, "", f"Basic {basic}", "Bearer", *(f"Bearer {token}" for token in tokens)):
                headers = {} if header is None else {"Authorization": header.strip()}
                answer = server.http(method, f"/api/v1{path}", body=b"{}", headers=headers)
                refused(answer, 401, "unauthorised")
        assert server.state() == before


def test_case_40_an_operator_with_an_empty_token(tmp_path: Path) -> None:
    """Even one whose token somebody has set to nothing is nobody."""
    with server_scene(tmp_path) as server:
        with server.database.write() as transaction:
            row = {"name": "nobody", "token_sha256": hash_of(""), "created_ms": 1}
            transaction.connection.execute(insert(tables.operator_tokens).values(row))
        before = server.state()
        refused(server.http("GET", "/api/v1/devices"), 401, "unauthorised")
        assert server.state() == before


def test_case_41_a_session_in_another_devices_name(tmp_path: Path) -> None:
    with server_scene(tmp_path) as server:
        device, thief = server.device("dev-1"), server.device("dev-2")
        server.clock.advance(1)
        before = server.state()
        refused(device.open_session(device.challenge(), key=thief.key), 401, "unauthorised")
        assert server.state() == before


def test_case_41_a_report_in_another_devices_name(tmp_path: Path) -> None:
    with server_scene(tmp_path) as server:
        server.device("dev-1")
        thief = server.device("dev-2")
        before = server.state()
        report = msgspec.structs.replace(thief.report("succeeded"), device_id="dev-1")
        refused(thief.send_reports(report), 400, "request-malformed")
        assert server.state() == before


def test_case_41_a_report_with_another_key(tmp_path: Path) -> None:
    """A stolen session without the device's key tells nothing."""
    with server_scene(tmp_path) as server:
        device, thief = server.device("dev-1"), FakeDevice(server, "dev-1")
        before = server.state()
        signed = device.sign(device.report("succeeded"), thief.key)
        refused(device.send_reports(signed), 422, "signature-invalid")
        assert server.state() == before


def test_case_41_a_replayed_report(tmp_path: Path) -> None:
    """It was signed by the device that it is of; the one that sends it again is another."""
    with server_scene(tmp_path) as server:
        device, thief = server.device("dev-1"), server.device("dev-2")
        signed = device.sign(device.report("idle"))
        assert device.send_reports(signed).status_code == 200
        before = server.state()
        refused(thief.send_reports(signed), 422, "signature-invalid")
        assert device.send_reports(signed).json() == {"durable": [1]}
        assert server.state() == before


def test_case_41_a_cloned_key(tmp_path: Path) -> None:
    """Two devices with one key: the second report of one number is refused, and the clone is noted."""
    with server_scene(tmp_path) as server:
        device = server.device()
        assert device.tell("idle") == (1,)
        before = server.state()
        refused(device.send_reports(device.report("idle", seq=1, detail="clone")), 409, "conflict")
        assert server.state() == before
        assert server.noted("dev-1") == {"report-conflict"}


def test_case_41_a_cloned_key_that_only_polls(tmp_path: Path) -> None:
    """The clone opens a session of its own; the next poll of the first one is with an older session."""
    with server_scene(tmp_path) as server:
        device = server.device()
        clone = FakeDevice(server, "dev-1", key=device.key)
        assert device.poll().status_code == 200
        assert server.noted("dev-1") == set()
        server.clock.advance(1)
        clone.log_in()
        assert clone.poll().status_code == 200
        assert server.noted("dev-1") == set()
        assert device.poll().status_code == 200
        assert server.noted("dev-1") == {"session-forked"}


def test_case_41_an_id_with_another_key(tmp_path: Path) -> None:
    with server_scene(tmp_path) as server:
        server.device()
        before = server.state()
        refused(FakeDevice(server, "dev-1").enrol(), 403, "enrolment-conflict")
        assert server.state() == before
        assert server.noted("dev-1") == {"enrolment-conflict"}


def test_case_41_a_replayed_enrolment(tmp_path: Path) -> None:
    """What one device proved enrols no other one, nor the same as other hardware."""
    with server_scene(tmp_path) as server:
        device = FakeDevice(server, "dev-1")
        before = server.state()
        for changed in ({"device_id": "dev-2"}, {"hardware": "other-board"}):
            refused(device.enrol(**changed), 422, "signature-invalid")
        assert server.state() == before


def test_case_41_a_replayed_answer_to_a_challenge(tmp_path: Path) -> None:
    with server_scene(tmp_path) as server:
        device = server.device()
        server.clock.advance(1)
        challenge = device.challenge()
        assert device.open_session(challenge).status_code == 200
        before = server.state()
        refused(device.open_session(challenge), 401, "session-expired")
        assert server.state() == before


def test_case_41_an_unapproved_key(tmp_path: Path) -> None:
    with server_scene(tmp_path) as server:
        device = server.device(accepted=False)
        before = server.state()
        refused(device.open_session(device.challenge()), 403, "enrolment-pending")
        assert server.state() == before


def test_case_41_a_revoked_device(tmp_path: Path) -> None:
    """Its session is good for an hour yet; the next call ends it."""
    with server_scene(tmp_path) as server:
        device = server.device()
        assert server.operator("POST", "/devices/dev-1/reject").status_code == 200
        before = server.state()
        for answer in (device.poll(), device.send_reports(device.report("idle")), device.download("0" * 64)):
            refused(answer, 403, "enrolment-rejected")
        assert server.state() == before


def test_case_41_a_token_that_nobody_signed(tmp_path: Path) -> None:
    """No algorithm, another one, the right text with no seal or another's, and tokens for something else."""
    with server_scene(tmp_path) as server:
        device = server.device()
        before = server.state()

        def part(value: Any) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

        claims = {"sub": "dev-1", "aud": "twinlock", "exp": 4_000_000_000}
        kind, payload, seal = device.token.split(".")
        longer = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))[:-10] + b"4000000000"
        renewed = base64.urlsafe_b64encode(longer).rstrip(b"=").decode()
        for token in (
            *(f"{part({'alg': alg, 'typ': 'JWT'})}.{part(claims)}." for alg in ("none", "None", "HS256")),
            f"{kind}.{payload}.",
            f"{kind}.{payload}",
            f"none.{payload}.",
            f"{kind}.{renewed}.{seal}",
            device.challenge(),
            server.token,
        ):
            device.token = token
            refused(device.poll(), 401, "unauthorised")
        device.token = f"{kind}.{payload}.{seal}"
        answer = server.http("GET", "/api/v1/devices", headers={"Authorization": f"Bearer {device.token}"})
        refused(answer, 401, "unauthorised")
        assert server.state() == before


def test_case_41_a_key_of_another_algorithm(tmp_path: Path) -> None:
    """A device's key is of one kind; any other would be checked by rules that nobody chose."""
    with server_scene(tmp_path) as server:
        device = FakeDevice(server, "dev-1")
        key = ec.generate_private_key(ec.SECP384R1())
        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        public = pem.decode()
        signed = enrolment_bytes("dev-1", device.hardware, public)
        proof = key.sign(signed, ec.ECDSA(hashes.SHA256()))
        before = server.state()
        refused(device.enrol(public_key=public, proof=proof[:80]), 400, "input-invalid")
        assert server.state() == before


def test_case_46_a_release_that_nobody_signed(tmp_path: Path) -> None:
    """All of it is as it was signed but for its own words."""
    with server_scene(tmp_path) as server:
        server.upload(RELEASE)
        list_release(server.repository, RELEASE)
        server.repository.publish("targets", "snapshot", "timestamp")
        before = server.state()
        other = make_release(notes="evil")
        refused(server.send(RELEASE, manifest=text(other.data)), 422, "manifest-hash")
        assert server.state() == before


def test_case_46_metadata_that_nobody_signed(tmp_path: Path) -> None:
    with server_scene(tmp_path) as server:
        server.upload(RELEASE)
        list_release(server.repository, RELEASE)
        server.repository.publish("targets", "snapshot", "timestamp")
        before = server.state()
        for role in ("timestamp", "snapshot", "targets"):
            metadata = offered(server.repository)
            value = json.loads(server.repository.served(role))
            metadata[role] = text(json.dumps({**value, "signatures": []}).encode())
            refused(server.send(RELEASE, metadata=metadata), 422, "metadata-signature")
        assert server.state() == before


def test_case_46_one_person_where_two_are_needed(tmp_path: Path) -> None:
    repository = Repository()
    repository.add_key("targets")
    repository.root.roles["targets"].threshold = 2
    repository.publish("root", bump=False)
    with server_scene(tmp_path, repository) as server:
        server.upload(RELEASE)
        list_release(repository, RELEASE)
        second = repository.signers["targets"].pop()
        repository.publish("targets", "snapshot", "timestamp")
        before = server.state()
        refused(server.send(RELEASE), 422, "metadata-signature")
        assert server.state() == before
        repository.signers["targets"].append(second)
        repository.publish("targets", "snapshot", "timestamp")
        assert server.send(RELEASE).status_code == 201
