"""The metadata process: session, reports, poll, trust and the decision, against a server in memory."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conformance.repository import Repository
from tests.unit.agent.fake_server import NOW_S, FakeServer
from tests.unit.agent.fakes import (
    Device,
    FakeResponse,
    Packed,
    config_for,
    image_of,
    job_for,
    pack,
)
from tests.unit.agent.test_processes import device
from twinlock.agent import enrol as enrolment
from twinlock.agent import evidence, identity, memory, session
from twinlock.agent import plan as plans
from twinlock.agent.check import Check
from twinlock.agent.main import main
from twinlock.agent.outbox import Outbox
from twinlock.agent.plan import CheckAnswer, CheckRequest, Running
from twinlock.agent.store import FolderStore
from twinlock.core import device_key, limits, protocol
from twinlock.core.errors import TwinlockError, error
from twinlock.core.payload.libraries import shared
from twinlock.core.protocol import Report

PACKED = pack(image_of("ab"))
REQUEST = CheckRequest(
    mode="poll", nonce="n", slot="a", is_committed=True, inactive="b", inactive_size_bytes=16 << 20
)


class Rig:
    """An enrolled, accepted device and a server that assigns `PACKED`."""

    def __init__(self, packed: Packed = PACKED) -> None:
        self.server = FakeServer()
        self.device = Device()
        self.config = config_for()
        self.ports = dataclasses.replace(self.device.ports, network=self.server)
        self.server.publish(packed)
        self.server.assign(packed)
        self.device.store.write("root.json", self.server.root)
        self.enrol()
        self.server.calls.clear()

    def enrol(self) -> protocol.EnrolAnswer:
        ports = self.ports
        return enrolment.enrol(ports.network, ports.store, ports.clock, ports.random, self.config, None)[1]

    def check(self, **changes: Any) -> CheckAnswer:
        request = msgspec.structs.replace(REQUEST, **changes)
        answer = Check(self.ports, self.config, request).answer()
        assert answer.nonce == request.nonce
        return answer

    def refused(self, code: str, **changes: Any) -> CheckAnswer:
        self.device.store.remove(plans.PLAN)
        answer = self.check(**changes)
        assert (answer.code, answer.job) == (code, None), answer.what
        assert plans.load(self.device.store) is None
        return answer


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_an_assignment_becomes_a_plan(rig: Rig) -> None:
    answer = rig.check()
    assert answer.code == ""
    assert answer.job == job_for(PACKED)
    plan = plans.load(rig.device.store)
    assert plan is not None
    assert plan.job == answer.job
    assert plan.payloads == (PACKED.offer,)
    assert plan.token == rig.server.token
    assert answer.wait_s == 600
    poll = rig.server.polls[0]
    assert (poll.hardware, poll.slot) == ("board", "a")
    assert poll.abilities == ("full", "delta", *shared())
    assert [one.state for one in rig.server.reports.values()] == ["downloading"]


def test_the_same_plan_again_is_not_told_again(rig: Rig) -> None:
    rig.check()
    before = len(rig.server.reports)
    assert rig.check().job is not None
    assert len(rig.server.reports) == before


def test_nothing_assigned_fetches_no_metadata(rig: Rig) -> None:
    rig.server.assignment = None
    answer = rig.check()
    assert (answer.code, answer.job, answer.runs_already) == ("", None, False)
    assert rig.server.calls == ["challenge", "session", "poll"]


def test_a_session_is_used_until_it_is_over(rig: Rig) -> None:
    rig.server.assignment = None
    rig.check()
    rig.check()
    assert rig.server.sessions == 1
    rig.device.clock.passed_s += 4000
    rig.check()
    assert rig.server.sessions == 2
    rig.server.token = "revoked"
    assert rig.check().code == ""
    assert rig.server.sessions == 3


def test_waits_are_bounded(rig: Rig) -> None:
    for said, kept in ((0, limits.POLL_WAIT_S_MIN), (1 << 40, limits.POLL_WAIT_S_MAX)):
        answer = protocol.PollAnswer(wait_s=said)
        rig.server.fail["poll"] = FakeResponse(200, {}, protocol.encode(answer))
        assert rig.check().wait_s == kept


# --- trust


def test_a_release_that_nobody_signed(rig: Rig) -> None:
    rig.server.assign(pack(image_of("zz"), version="6.6"))
    answer = rig.refused("release-unknown")
    assert answer.assignment_id == "r1"


def test_metadata_of_a_stranger(rig: Rig) -> None:
    stranger = FakeServer(Repository(datetime.fromtimestamp(NOW_S, UTC), kind="ecdsa"))
    stranger.publish(PACKED)
    rig.server.repository.files.update(
        {
            name: data
            for name, data in stranger.repository.files.items()
            if not name.startswith("metadata/1.root")
        }
    )
    answer = rig.refused("metadata-signature")
    assert (answer.assignment_id, answer.version) == ("r1", "1.1")


def test_a_manifest_that_was_changed(rig: Rig) -> None:
    (path,) = [name for name in rig.server.repository.files if name.startswith("targets/")]
    data = rig.server.repository.files[path]
    rig.server.repository.files[path] = data.replace(b'"counter":1', b'"counter":2')
    rig.refused("manifest-hash")


def test_claims_that_are_not_the_manifests(rig: Rig) -> None:
    entry = rig.server.repository.targets.targets["demo/1.1.manifest"]
    entry.unrecognized_fields["custom"]["twinlock"]["counter"] = 99
    rig.server.repository.publish("targets", "snapshot", "timestamp")
    rig.refused("metadata-mismatch")


def test_expired_metadata(rig: Rig) -> None:
    rig.device.clock.passed_s += 60 * 24 * 3600
    rig.refused("metadata-expired")


def test_a_clock_of_1970_does_not_make_expired_metadata_fresh(rig: Rig) -> None:
    assert rig.check().code == ""  # the device has been in that time
    rig.device.clock.passed_s += 29 * 24 * 3600
    assert rig.check().code == ""
    old_timestamp = rig.server.repository.files["metadata/timestamp.json"]
    rig.device.clock.wall_s = rig.device.clock.passed_s = 0.0
    assert rig.check().code == "", "a wrong clock alone must not lock a device out"
    rig.device.store.remove("metadata/timestamp.json")
    memory.note_time(rig.device.store, memory.trusted_s(rig.device.store, rig.device.clock) + 2 * 86400 * 2)
    assert rig.server.repository.files["metadata/timestamp.json"] == old_timestamp
    rig.refused("metadata-expired")


def test_an_older_state_is_refused_though_every_role_file_is_gone(rig: Rig) -> None:
    old = dict(rig.server.repository.files)
    rig.server.publish(pack(image_of("cd"), version="1.2"))
    assert rig.check().code == ""
    rig.server.repository.files = {**rig.server.repository.files, **old}
    for name in [name for name in rig.device.store.files if name.startswith("metadata/")]:
        rig.device.store.remove(name)
    rig.refused("metadata-rollback")


def test_a_floor_file_that_somebody_changed(rig: Rig) -> None:
    rig.check()
    rig.device.store.files["trust.json"] = b"{}}"
    rig.refused("metadata-malformed")


def test_a_device_without_its_root(rig: Rig) -> None:
    rig.device.store.remove("root.json")
    assert "root.json" in rig.refused("metadata-missing").what


def test_a_device_whose_image_holds_its_root(rig: Rig, tmp_path: Path) -> None:
    rig.device.store.remove("root.json")
    path = tmp_path / "root.json"
    rig.config = msgspec.structs.replace(rig.config, root=path)
    assert str(path) in rig.refused("metadata-missing").what
    path.write_bytes(rig.server.root)
    assert rig.check().job is not None


def test_the_state_folders_root_counts_more_than_the_images(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "root.json"
    path.write_bytes(b"{}")
    rig.config = msgspec.structs.replace(rig.config, root=path)
    assert rig.check().job is not None


# --- decisions


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"hardware": ("other",)}, "hardware-mismatch"),
        ({"product": "toaster"}, "product-mismatch"),
        ({"counter": 4}, "release-older"),
    ],
)
def test_a_release_for_somebody_else_is_refused_before_its_manifest(
    changes: dict[str, Any], code: str
) -> None:
    packed = dataclasses.replace(PACKED, manifest=msgspec.structs.replace(PACKED.manifest, **changes))
    rig = Rig(packed)
    rig.refused(code, floor=5)
    assert not [call for call in rig.server.calls if call.startswith("targets/")]


def test_a_counter_at_the_floor_is_taken() -> None:
    packed = dataclasses.replace(PACKED, manifest=msgspec.structs.replace(PACKED.manifest, counter=5))
    assert Rig(packed).check(floor=5).code == ""


def test_an_image_larger_than_the_slot(rig: Rig) -> None:
    rig.refused("image-too-large", inactive_size_bytes=len(PACKED.image) - 512)
    assert rig.check(inactive_size_bytes=len(PACKED.image)).code == ""


def test_no_free_slot(rig: Rig) -> None:
    rig.refused("boot-refused", inactive=None)


def test_what_failed_is_not_tried_again(rig: Rig) -> None:
    store = rig.device.store
    memory.condemn(store, memory.Failed("r1", None, "payload-part-hash"))
    assert "payload-part-hash" in rig.refused("release-failed-before").what
    rig.server.assign(PACKED, "r2")
    assert rig.check().code == "", "another assignment of the release is another matter"
    memory.condemn(store, memory.Failed("r3", job_for(PACKED).manifest_sha256, "health-failed"))
    rig.refused("release-failed-before")


def test_what_runs_is_not_installed_again(rig: Rig) -> None:
    running = Running(product="demo", version="1.1", counter=1, image_sha256=PACKED.manifest.image_sha256)
    answer = rig.check(running=running)
    assert (answer.code, answer.runs_already, answer.job) == ("", True, None)
    assert rig.check(running=running, inactive=None).runs_already
    assert rig.check(running=running, is_committed=False).job is not None
    other = msgspec.structs.replace(running, image_sha256=b"x" * 32)
    assert rig.check(running=other).job is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "x" * 129},
        {"id": "a\nb"},
        {"product": "../etc"},
        {"version": ""},
        {"payloads": ()},
        {"payloads": (PACKED.offer,) * 9},
        {"payloads": (msgspec.structs.replace(PACKED.offer, sha256=b"x"),)},
        {"payloads": (msgspec.structs.replace(PACKED.offer, size_bytes=1 << 50),)},
        {"payloads": (msgspec.structs.replace(PACKED.offer, index_size_bytes=0),)},
    ],
)
def test_assignments_out_of_bounds(rig: Rig, changes: dict[str, Any]) -> None:
    assert rig.server.assignment is not None
    rig.server.assignment = msgspec.structs.replace(rig.server.assignment, **changes)
    rig.refused("answer-malformed")


# --- reports


def queue(rig: Rig, count: int) -> Outbox:
    outbox = Outbox(rig.device.store)
    for number in range(count):
        outbox.add(Report(device_id="", seq=0, nonce="n", state="failed", assignment_id=f"old-{number}"))
    return outbox


def test_reports_go_out_signed_in_order_before_the_poll(rig: Rig) -> None:
    outbox = queue(rig, limits.REPORTS_PER_BATCH_MAX + 3)
    rig.server.assignment = None
    assert rig.check().code == ""
    assert list(rig.server.reports) == list(range(1, limits.REPORTS_PER_BATCH_MAX + 4))
    assert rig.server.calls == ["challenge", "session", "reports", "reports", "poll"]
    assert outbox.waiting() == []
    device_id = identity.load(rig.device.store, rig.config).device_id
    assert {one.device_id for one in rig.server.reports.values()} == {device_id}


def test_what_the_server_did_not_keep_stays(rig: Rig) -> None:
    outbox = queue(rig, 2)
    rig.server.keeps = False
    assert rig.check(mode="flush").code == "server-busy"
    assert len(outbox.waiting()) == 2
    rig.server.keeps = True
    assert rig.check(mode="flush").code == ""
    assert outbox.waiting() == []


def test_an_answer_lost_on_the_way_repeats_the_report_and_harms_nothing(rig: Rig) -> None:
    outbox = queue(rig, 1)
    open_session = rig.server.open

    def lose(request: Any) -> FakeResponse:
        del rig.server.fail["reports"]
        open_session(request)
        raise error("connection-lost", "after it was taken")

    rig.server.fail["reports"] = lose
    assert rig.check(mode="flush").code == ""
    assert outbox.waiting() == []
    assert list(rig.server.reports) == [1]


def test_a_report_that_is_never_taken_does_not_stop_the_others(rig: Rig) -> None:
    queue(rig, 3)
    rig.server.refused = {"old-1"}
    assert rig.check(mode="flush").code == ""
    assert list(rig.server.reports) == [1, 3]
    assert rig.device.store.names("refused") == ["0000000002.json"]


# --- evidence


def test_evidence_goes_after_the_reports_and_leaves_when_it_is_held(rig: Rig) -> None:
    queue(rig, 1)
    for text in ("first", "second"):
        assert evidence.keep(rig.ports, "pstore", text, None)
        rig.device.clock.passed_s += 1
    assert rig.check(mode="flush").code == ""
    assert rig.server.calls == ["challenge", "session", "reports", "evidence", "evidence"]
    assert [one.device_id for one in rig.server.evidence] == [
        identity.load(rig.device.store, rig.config).device_id
    ] * 2
    assert evidence.waiting(rig.device.store) == []


@pytest.mark.parametrize(
    "failure",
    [
        FakeResponse(404, {}, b'{"error":{"code":"not-found","what":"no such call"}}'),
        FakeResponse(200, {}, b'{"durable":"another"}'),
        error("server-unreachable", "gone"),
    ],
)
def test_evidence_that_is_not_held_stays_and_holds_up_nothing(
    rig: Rig, failure: FakeResponse | TwinlockError
) -> None:
    evidence.keep(rig.ports, "journal", "x", None)
    rig.server.fail["evidence"] = failure
    answer = rig.check()
    assert (answer.code, answer.job is not None) == ("", True)
    assert len(evidence.waiting(rig.device.store)) == 1


def test_evidence_that_can_never_be_taken_goes(rig: Rig) -> None:
    evidence.keep(rig.ports, "journal", "x", None)
    rig.server.fail["evidence"] = FakeResponse(
        400, {}, b'{"error":{"code":"request-malformed","what":"never"}}'
    )
    assert rig.check(mode="flush").code == ""
    assert evidence.waiting(rig.device.store) == []


def test_the_gate_notices_a_key_that_does_not_sign(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.server.fail["challenge"] = error("server-unreachable", "gone")
    monkeypatch.setattr(device_key.DeviceKey, "sign", lambda key, text: b"rubbish")
    answer = rig.check(mode="gate")
    assert (answer.code, "does not sign" in answer.what) == ("identity-missing", True)


def test_flush_does_not_poll(rig: Rig) -> None:
    assert rig.check(mode="flush").code == ""
    assert "poll" not in rig.server.calls


def test_session_only_opens_one(rig: Rig) -> None:
    rig.check(mode="session")
    rig.check(mode="session")
    assert rig.server.sessions == 2
    assert session.load(rig.device.store, rig.device.clock.now_s()) is not None


# --- the gate


def test_the_gate_proves_metadata_and_a_manifest(rig: Rig) -> None:
    running = Running(product="demo", version="1.1")
    assert rig.check(mode="gate", running=running).code == ""
    assert [call for call in rig.server.calls if call.startswith("targets/")]
    assert "poll" not in rig.server.calls


def test_the_gate_passes_for_a_release_that_was_withdrawn(rig: Rig) -> None:
    assert rig.check(mode="gate", running=Running(product="demo", version="7")).code == ""
    assert rig.check(mode="gate").code == ""


def test_the_gate_notices_a_repository_that_cannot_be_trusted(rig: Rig) -> None:
    rig.server.repository.files["metadata/timestamp.json"] = b"{}"
    assert rig.check(mode="gate").code == "metadata-malformed"


# --- failures on the way


def test_a_device_without_a_key(rig: Rig) -> None:
    rig.device.store.remove(identity.KEY)
    rig.refused("identity-missing")
    rig.device.store.write(identity.KEY, b"rubbish")
    rig.refused("identity-missing")


@pytest.mark.parametrize(
    ("path", "problem", "code"),
    [
        ("poll", error("server-unreachable", "down"), "server-unreachable"),
        ("challenge", FakeResponse(500, {}, b""), "server-error"),
        ("poll", FakeResponse(302, {}, b""), "redirect-refused"),
        ("metadata/timestamp.json", FakeResponse(404, {}, b""), "metadata-missing"),
        ("metadata/timestamp.json", FakeResponse(302, {}, b""), "redirect-refused"),
        ("metadata/timestamp.json", FakeResponse(200, {}, b"x" * 20_000), "transfer-oversized"),
        ("metadata/2.root.json", FakeResponse(503, {}, b""), "server-error"),
    ],
)
def test_failures_have_their_code_and_leave_no_plan(
    rig: Rig, path: str, problem: TwinlockError | FakeResponse, code: str
) -> None:
    rig.server.fail[path] = problem
    rig.refused(code)


def test_a_full_disk_leaves_no_plan(rig: Rig) -> None:
    def full(name: str) -> None:
        if name == plans.PLAN:
            raise error("disk-full", "no space")

    rig.device.store.before = full
    rig.refused("disk-full")


def test_pending_devices_are_told_to_wait(rig: Rig) -> None:
    rig.server.status = "pending"
    assert rig.refused("enrolment-pending").assignment_id == ""


# --- enrolment


def test_enrolment_makes_one_key_and_keeps_it(rig: Rig) -> None:
    key = rig.device.store.files[identity.KEY]
    assert rig.enrol().status == "accepted"
    assert rig.device.store.files[identity.KEY] == key
    card = memory.card(rig.device.store)
    assert card is not None
    assert card.device_id == f"d-{card.fingerprint[:24]}"


def test_a_damaged_key_is_never_replaced(rig: Rig) -> None:
    rig.device.store.write(identity.KEY, b"rubbish")
    with pytest.raises(TwinlockError) as caught:
        rig.enrol()
    assert caught.value.code == "identity-missing"
    assert rig.device.store.files[identity.KEY] == b"rubbish"


@pytest.mark.parametrize("status", ["pending", "accepted", "rejected"])
def test_the_command_says_who_it_is_and_how_it_stands(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FakeServer(status=status)
    monkeypatch.setattr(enrolment, "HttpNetwork", lambda clock, bounds: server)
    config = device(tmp_path, "http://127.0.0.1:1")
    for options in ((), ("--json",)):
        code = main(["--config", str(config), "enrol", *options])
        out, err = capsys.readouterr()
        if status == "rejected":
            assert code == 8
            assert "enrolment-rejected" in err
            continue
        assert (code, err) == (0, "")
        card = memory.card(FolderStore(tmp_path / "state"))
        assert card is not None
        if options:
            assert json.loads(out) == {
                "version": 1,
                "device_id": card.device_id,
                "fingerprint": card.fingerprint,
                "status": status,
            }
        else:
            assert f"device {card.device_id}: {status}" in out
            assert ("twinlock device accept" in out) == (status == "pending")


def test_a_configured_id_is_used(tmp_path: Path) -> None:
    rig = Rig()
    rig.config = config_for(device_id="pump-7")
    rig.enrol()
    assert rig.check().code == ""
    assert {one.device_id for one in rig.server.reports.values()} == {"pump-7"}
