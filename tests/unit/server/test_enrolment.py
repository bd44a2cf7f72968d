"""Enrolment: the device makes its key, the operator decides, and no id changes hands unnoticed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.server.rig import FakeDevice, Server, code_of
from twinlock.core.device_key import DeviceKey, DevicePublicKey, enrolment_bytes, generate
from twinlock.server.devices.model import INDICATORS_PER_DEVICE_MAX, Device, Status
from twinlock.server.enrolment import service
from twinlock.server.enrolment.decide import Action, Applicant, Verdict, decide

APPLICANT = Applicant("dev-1", "demo-board", "aa")


def known(status: Status = Status.ACCEPTED, fingerprint: str = "aa", hardware: str = "demo-board") -> Device:
    return Device("dev-1", hardware, "pem", fingerprint, status, 1)


@pytest.mark.parametrize(
    ("present", "preauthorised", "action", "status"),
    [
        (None, None, Action.ADD, Status.PENDING),
        (None, "aa", Action.ADD, Status.ACCEPTED),
        (None, "bb", Action.CONFLICT, None),
        (known(Status.PENDING), None, Action.KEEP, Status.PENDING),
        (known(Status.ACCEPTED), None, Action.KEEP, Status.ACCEPTED),
        (known(Status.REJECTED), None, Action.KEEP, Status.REJECTED),
        (known(fingerprint="bb"), None, Action.CONFLICT, None),
        (known(hardware="other"), None, Action.CONFLICT, None),
        (known(fingerprint="bb"), "aa", Action.REPLACE, Status.ACCEPTED),
        (known(Status.REJECTED), "aa", Action.REPLACE, Status.ACCEPTED),
        (known(fingerprint="aa"), "bb", Action.CONFLICT, None),
    ],
)
def test_the_table_of_decisions(
    present: Device | None, preauthorised: str | None, action: Action, status: Status | None
) -> None:
    verdict = decide(present, preauthorised, APPLICANT)
    assert verdict.action is action
    assert action is Action.CONFLICT or verdict == Verdict(action, status or Status.PENDING)


def listed(server: Server, device_id: str = "dev-1") -> dict[str, Any]:
    answer = server.operator("GET", f"/devices/{device_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_new_device_waits_for_the_operator(server: Server) -> None:
    device = FakeDevice(server, "dev-1")
    answer = device.enrol()
    assert (answer.status_code, answer.json()) == (200, {"status": "pending"})
    assert code_of(device.open_session(device.challenge())) == "enrolment-pending"
    assert listed(server)["status"] == "pending"


def test_enrolling_again_changes_nothing(server: Server) -> None:
    device = server.device()
    before = listed(server)
    server.clock.advance(60)
    assert device.enrol().json() == {"status": "accepted"}
    after = listed(server)
    assert {key: after[key] for key in ("status", "enrolled", "fingerprint")} == {
        key: before[key] for key in ("status", "enrolled", "fingerprint")
    }


def test_a_rejected_device_stays_rejected_until_the_operator_accepts_it(server: Server) -> None:
    device = server.device(accepted=False)
    server.operator("POST", "/devices/dev-1/reject")
    assert device.enrol().json() == {"status": "rejected"}
    answer = device.open_session(device.challenge())
    assert (answer.status_code, code_of(answer)) == (403, "enrolment-rejected")
    server.operator("POST", "/devices/dev-1/accept")
    assert device.enrol().json() == {"status": "accepted"}


def test_a_preauthorised_key_is_accepted_at_once_and_only_once(server: Server) -> None:
    device = FakeDevice(server, "dev-1")
    body = {"device_id": "dev-1", "fingerprint": DevicePublicKey(device.key.public_pem).fingerprint}
    assert server.operator("POST", "/devices/preauthorise", json=body).status_code == 200
    assert device.enrol().json() == {"status": "accepted"}
    server.operator("POST", "/devices/dev-1/reject")
    assert device.enrol().json() == {"status": "rejected"}


def test_preauthorising_the_key_of_a_waiting_device_accepts_it(server: Server) -> None:
    device = server.device(accepted=False)
    body = {"device_id": "dev-1", "fingerprint": DevicePublicKey(device.key.public_pem).fingerprint}
    assert server.operator("POST", "/devices/preauthorise", json=body).json()["status"] == "accepted"
    device.log_in()
    assert device.poll().status_code == 200


def test_the_same_id_with_another_key_is_refused_and_noted(server: Server) -> None:
    device = server.device()
    before = listed(server)
    clone = FakeDevice(server, "dev-1")
    for _ in range(2):
        answer = clone.enrol()
        assert (answer.status_code, code_of(answer)) == (403, "enrolment-conflict")
    after = listed(server)
    (noted,) = after.pop("attack_indicators")
    assert (noted["kind"], noted["count"]) == ("enrolment-conflict", 2)
    assert noted["key"] == DevicePublicKey(clone.key.public_pem).fingerprint
    assert after.pop("indicators") == 1
    assert {key: before[key] for key in after} == after
    assert device.poll().status_code == 200


def test_the_same_id_as_other_hardware_is_refused(server: Server) -> None:
    device = server.device()
    device.hardware = "other-board"
    assert code_of(device.enrol()) == "enrolment-conflict"
    assert listed(server)["hardware"] == "demo-board"


def test_what_is_noted_of_a_device_is_bounded(server: Server) -> None:
    server.device()
    with server.database.write() as transaction:
        for number in range(INDICATORS_PER_DEVICE_MAX + 5):
            transaction.devices.note("dev-1", "report-conflict", str(number), "", 1)
    with server.database.read() as transaction:
        assert len(transaction.devices.indicators("dev-1")) == INDICATORS_PER_DEVICE_MAX


def test_a_proof_by_another_key_is_refused(server: Server) -> None:
    device = FakeDevice(server, "dev-1")
    signed = enrolment_bytes("dev-1", device.hardware, device.key.public_pem)
    answer = device.enrol(proof=DeviceKey(generate()).sign(signed))
    assert (answer.status_code, code_of(answer)) == (422, "signature-invalid")
    assert code_of(server.operator("GET", "/devices/dev-1")) == "not-found"


def test_a_proof_for_another_id_or_hardware_is_refused(server: Server) -> None:
    device = FakeDevice(server, "dev-1")
    assert code_of(device.enrol(device_id="dev-2")) == "signature-invalid"
    assert code_of(device.enrol(hardware="other-board")) == "signature-invalid"


@pytest.mark.parametrize("device_id", ["", "../x", "a/b", "a" * 65, "a\nb", "-a", "a..b", "\N{SNOWMAN}"])
def test_an_id_that_is_no_name_is_refused(server: Server, device_id: str) -> None:
    answer = FakeDevice(server, device_id).enrol()
    assert (answer.status_code, code_of(answer)) == (400, "input-invalid")


@pytest.mark.parametrize(
    "public_key",
    ["", "none", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "A" * 2000],
)
def test_a_text_that_is_no_key_is_refused(server: Server, public_key: str) -> None:
    assert code_of(FakeDevice(server, "dev-1").enrol(public_key=public_key)) == "input-invalid"


def test_a_private_key_is_not_taken_for_a_public_one(server: Server) -> None:
    private = generate().decode("ascii")
    assert code_of(FakeDevice(server, "dev-1").enrol(public_key=private)) == "input-invalid"


def test_an_enrolment_token_that_nobody_gave_is_refused(server: Server) -> None:
    answer = FakeDevice(server, "dev-1").enrol(token="")
    assert (answer.status_code, code_of(answer)) == (401, "unauthorised")


def test_the_number_of_waiting_devices_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PENDING_DEVICES_MAX", 2)
    server.device("dev-1", accepted=False)
    server.device("dev-2", accepted=False)
    answer = FakeDevice(server, "dev-3").enrol()
    assert (answer.status_code, code_of(answer)) == (503, "server-busy")
    server.operator("POST", "/devices/dev-1/accept")
    assert FakeDevice(server, "dev-3").enrol().status_code == 200


def test_the_key_is_kept_in_its_usual_form(server: Server) -> None:
    """Text around a PEM block is signed by the device too, but is nothing that the server keeps."""
    device = FakeDevice(server, "dev-1")
    decorated = "comment\n" + device.key.public_pem
    proof = device.key.sign(enrolment_bytes("dev-1", device.hardware, decorated))
    assert device.enrol(public_key=decorated, proof=proof).status_code == 200
    with server.database.read() as transaction:
        kept = transaction.devices.get("dev-1")
    assert kept is not None
    assert kept.public_key == device.key.public_pem


def test_enrolments_and_decisions_are_in_the_audit_log(server: Server) -> None:
    server.device()
    server.operator("POST", "/devices/dev-1/reject")
    entries = server.operator("GET", "/audit").json()["entries"]
    assert [(one["actor"], one["action"], one["subject"]) for one in entries[1:]] == [
        ("device", "device-enrolled", "dev-1"),
        ("operator", "device-accepted", "dev-1"),
        ("operator", "device-rejected", "dev-1"),
    ]
