"""Reports: signed, idempotent, kept before they are acknowledged, and never believed about others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.server.rig import FakeDevice, Server, code_of, make_release
from twinlock.core import limits
from twinlock.core.device_key import DeviceKey, generate
from twinlock.core.protocol import ReportAnswer, ReportBatch, SignedReport, decode_answer
from twinlock.server.rollouts import reports as service


@pytest.fixture
def device(server: Server) -> FakeDevice:
    """A device with an assignment of release 1.1 in rollout r1."""
    server.publish(make_release("1.1"))
    made = server.device()
    server.roll_out("1.1", ["dev-1"])
    return made


def kept(server: Server, device_id: str = "dev-1") -> list[dict[str, Any]]:
    answer = server.operator("GET", f"/devices/{device_id}/reports?limit=1000").json()
    found: list[dict[str, Any]] = answer["reports"]
    return found


def noted(server: Server, device_id: str = "dev-1") -> list[tuple[str, str]]:
    found = server.operator("GET", f"/devices/{device_id}").json()["attack_indicators"]
    return [(one["kind"], one["key"]) for one in found]


def durable(answer: Any) -> tuple[int, ...]:
    assert answer.status_code == 200, answer.text
    return decode_answer(answer.content, ReportAnswer).durable


def test_a_report_moves_its_assignment_and_is_shown(server: Server, device: FakeDevice) -> None:
    report = device.report(
        "rolled_back",
        "r1-dev-1",
        product="demo",
        version="1.1",
        slot="a",
        code="health-failed",
        detail="10-network.sh: no route\nsecond line",
        bytes_fetched=70_000_000,
        bytes_again=1_000_000,
        duration_s=12.5,
        time_s=1_800_000_000,
        image_sha256=bytes(32),
    )
    assert durable(device.send_reports(report)) == (1,)
    (one,) = kept(server)
    said = msgspec.to_builtins(report)
    same = ("seq", "state", "assignment_id", "product", "version", "slot", "code", "detail")
    assert {key: one[key] for key in same} == {key: said[key] for key in same}
    numbers = ("bytes_fetched", "bytes_again", "duration_s")
    assert {key: one[key] for key in numbers} == {key: said[key] for key in numbers}
    assert one["device_time_s"] == 1_800_000_000
    assert server.states("r1") == {"dev-1": "rolled_back"}
    outcome = server.operator("GET", "/devices/dev-1").json()["last_outcome"]
    assert (outcome["state"], outcome["version"], outcome["code"]) == ("rolled_back", "1.1", "health-failed")


def test_a_report_sent_again_is_durable_again_and_kept_once(server: Server, device: FakeDevice) -> None:
    signed = device.sign(device.report("downloading", "r1-dev-1"))
    for _ in range(3):
        assert durable(device.send_reports(signed)) == (1,)
    assert durable(device.send_reports(signed, signed)) == (1, 1)
    assert len(kept(server)) == 1
    assert noted(server) == []


def test_the_same_report_signed_anew_is_the_same_report(server: Server, device: FakeDevice) -> None:
    """An ECDSA signature is another one each time; what counts is the body."""
    report = device.report("downloading", "r1-dev-1")
    assert durable(device.send_reports(device.sign(report))) == (1,)
    assert durable(device.send_reports(device.sign(report))) == (1,)


def test_another_report_with_a_known_seq_is_refused_and_noted(server: Server, device: FakeDevice) -> None:
    device.tell("downloading", "r1-dev-1")
    before = kept(server)
    fresh = device.report("armed", "r1-dev-1")
    answer = device.send_reports(fresh, device.report("succeeded", "r1-dev-1", seq=1))
    assert (answer.status_code, code_of(answer)) == (409, "conflict")
    assert kept(server) == before
    assert server.states("r1") == {"dev-1": "downloading"}
    assert noted(server) == [("report-conflict", "1")]


def test_two_reports_with_one_seq_in_one_batch_are_refused(server: Server, device: FakeDevice) -> None:
    answer = device.send_reports(
        device.report("failed", "r1-dev-1", seq=5), device.report("succeeded", "r1-dev-1", seq=5)
    )
    assert (answer.status_code, code_of(answer)) == (409, "conflict")
    assert kept(server) == []
    assert server.states("r1") == {"dev-1": "assigned"}


def test_reports_out_of_order_are_kept(server: Server, device: FakeDevice) -> None:
    for seq, state in ((3, "succeeded"), (1, "downloading"), (2, "armed")):
        assert device.tell(state, "r1-dev-1", seq=seq) == (seq,)
    assert [one["seq"] for one in kept(server)] == [3, 2, 1]
    assert server.states("r1") == {"dev-1": "succeeded"}


def test_a_batch_with_one_wrong_signature_is_refused_whole(server: Server, device: FakeDevice) -> None:
    good = device.report("downloading", "r1-dev-1")
    forged = device.sign(device.report("succeeded", "r1-dev-1"), key=DeviceKey(generate()))
    answer = device.send_reports(good, forged)
    assert (answer.status_code, code_of(answer)) == (422, "signature-invalid")
    assert kept(server) == []
    assert server.states("r1") == {"dev-1": "assigned"}


def test_a_changed_body_is_not_what_was_signed(server: Server, device: FakeDevice) -> None:
    signed = device.sign(device.report("failed", "r1-dev-1"))
    changed = SignedReport(body=signed.body.replace(b"failed", b"succeeded"), signature=signed.signature)
    assert code_of(device.send_reports(changed)) == "signature-invalid"


def test_another_devices_report_is_refused(server: Server, device: FakeDevice) -> None:
    other = server.device("dev-2")
    answer = device.send_reports(other.sign(other.report("idle")))
    assert code_of(answer) == "signature-invalid"
    answer = device.send_reports(msgspec.structs.replace(device.report("idle"), device_id="dev-2"))
    assert (answer.status_code, code_of(answer)) == (400, "request-malformed")
    assert kept(server) == kept(server, "dev-2") == []


def test_a_report_on_another_devices_assignment_changes_nothing_of_it(
    server: Server, device: FakeDevice
) -> None:
    other = server.device("dev-2")
    assert other.tell("failed", "r1-dev-1") == (1,)
    assert server.states("r1") == {"dev-1": "assigned"}
    assert noted(server, "dev-2") == [("report-of-another-assignment", "1")]
    assert noted(server) == []


def test_a_report_without_or_with_an_unknown_assignment_is_kept_as_history(
    server: Server, device: FakeDevice
) -> None:
    assert device.tell("idle") == (1,)
    assert device.tell("succeeded", "r77-dev-1") == (2,)
    assert len(kept(server)) == 2
    assert server.states("r1") == {"dev-1": "assigned"}


def test_a_second_outcome_is_kept_and_noted_and_changes_nothing(server: Server, device: FakeDevice) -> None:
    device.tell("failed", "r1-dev-1")
    device.tell("succeeded", "r1-dev-1")
    assert server.states("r1") == {"dev-1": "failed"}
    assert noted(server) == [("outcome-contradicted", "2")]


def test_a_committed_release_that_was_left_later_has_rolled_back(server: Server, device: FakeDevice) -> None:
    device.tell("succeeded", "r1-dev-1")
    device.tell("rolled_back", "r1-dev-1", code="trial-exhausted")
    (one,) = server.operator("GET", "/rollouts/r1").json()["assignments"]
    assert (one["state"], one["code"]) == ("rolled_back", "trial-exhausted")
    assert noted(server) == []


def test_what_was_acknowledged_survives_a_server_that_dies(server: Server, device: FakeDevice) -> None:
    """The application is dropped without its end being run, as a SIGKILL would."""
    device.tell("succeeded", "r1-dev-1")
    server.start()
    assert server.states("r1") == {"dev-1": "succeeded"}
    assert [one["seq"] for one in kept(server)] == [1]


def test_a_batch_holds_a_bounded_number_of_reports(server: Server, device: FakeDevice) -> None:
    many = [device.report("idle") for _ in range(limits.REPORTS_PER_BATCH_MAX + 1)]
    assert code_of(device.send_reports(*many)) == "request-malformed"
    assert code_of(device.send_reports()) == "request-malformed"
    assert len(durable(device.send_reports(*many[1:]))) == limits.REPORTS_PER_BATCH_MAX


def test_the_largest_allowed_batch_fits_the_bodys_bound(server: Server, device: FakeDevice) -> None:
    detail = "\N{SNOWMAN}" * limits.REPORT_DETAIL_LENGTH_MAX
    many = [device.report("idle", detail=detail) for _ in range(limits.REPORTS_PER_BATCH_MAX)]
    assert len(durable(device.send_reports(*many))) == limits.REPORTS_PER_BATCH_MAX


@pytest.mark.parametrize(
    "fields",
    [
        {"seq": 0},
        {"seq": -1},
        {"seq": 1 << 53},
        {"nonce": ""},
        {"nonce": "n" * 65},
        {"assignment_id": "x" * 100},
        {"product": "../x"},
        {"version": "v" * 65},
        {"slot": "c"},
        {"image_sha256": b"short"},
        {"code": "c" * 65},
        {"code": "<b>"},
        {"detail": "d" * (limits.REPORT_DETAIL_LENGTH_MAX + 1)},
        {"bytes_fetched": -1},
        {"bytes_again": 1 << 53},
        {"duration_s": -1.0},
        {"duration_s": 1e10},
        {"time_s": -1},
    ],
)
def test_a_report_out_of_bounds_is_refused(
    server: Server, device: FakeDevice, fields: dict[str, Any]
) -> None:
    report = msgspec.structs.replace(device.report("idle"), **fields)
    answer = device.send_reports(report)
    assert (answer.status_code, code_of(answer)) == (400, "request-malformed")
    assert kept(server) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"device_id":"dev-1","seq":1,"nonce":"n","state":"eaten"}',
        b'{"device_id":"dev-1","seq":1,"nonce":"n","state":"idle","extra":1}',
        b'{"device_id":"dev-1","seq":1,"nonce":"n","state":"idle","duration_s":NaN}',
        b'{"device_id":"dev-1","seq":"1","nonce":"n","state":"idle"}',
        b"[" * 4000,
    ],
)
def test_a_signed_body_that_is_no_report_is_refused(server: Server, device: FakeDevice, body: bytes) -> None:
    from twinlock.core.device_key import report_bytes

    signed = SignedReport(body=body, signature=device.key.sign(report_bytes(body)))
    assert code_of(device.send_reports(signed)) == "request-malformed"


def test_a_report_larger_than_its_bound_is_refused(server: Server, device: FakeDevice) -> None:
    from twinlock.core.device_key import report_bytes

    body = b" " * (limits.REPORT_SIZE_BYTES_MAX + 1)
    signed = SignedReport(body=body, signature=device.key.sign(report_bytes(body)))
    answer = device.send_reports(signed)
    assert (answer.status_code, code_of(answer)) == (413, "request-too-large")


def test_reports_are_pruned_and_a_pruned_one_stays_durable(
    server: Server, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "REPORTS_KEPT_PER_DEVICE", 3)
    first = device.sign(device.report("idle"))
    device.send_reports(first)
    for _ in range(5):
        device.tell("idle")
    assert [one["seq"] for one in kept(server)] == [6, 5, 4]
    assert durable(device.send_reports(first)) == (1,)
    assert [one["seq"] for one in kept(server)] == [6, 5, 4]
    assert noted(server) == []


def test_signatures_and_bodies_are_kept_as_evidence(server: Server, device: FakeDevice) -> None:
    from sqlalchemy import select

    from twinlock.server.store.tables import reports

    signed = device.sign(device.report("idle"))
    device.send_reports(signed)
    with server.database.read() as transaction:
        row = transaction.connection.execute(select(reports.c.body, reports.c.signature)).one()
    assert tuple(row) == (signed.body, signed.signature)


def test_a_batch_encodes_what_the_protocol_says(device: FakeDevice) -> None:
    batch = ReportBatch(reports=(device.sign(device.report("idle")),))
    assert set(msgspec.to_builtins(batch)["reports"][0]) == {"body", "signature"}
