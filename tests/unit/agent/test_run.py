"""Whole runs on a device in memory: what is done in which order, and what a person and the server see."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.agent.fakes import (
    Device,
    MemoryBoot,
    config_for,
    device_with,
    hook,
    image_of,
    job_for,
    memory_slots,
    pack,
    plan_for,
)
from twinlock.agent import journal, memory
from twinlock.agent import plan as plans
from twinlock.agent.gate import baseline
from twinlock.agent.outbox import Outbox
from twinlock.agent.plan import CheckAnswer, CheckRequest, Running
from twinlock.agent.run import run_once
from twinlock.agent.states import Phase, State
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import TwinlockError, error
from twinlock.core.protocol import Report

PACKED = pack(image_of("a0"))
JOB = job_for(PACKED)
WORK = CheckAnswer(job=JOB, assignment_id="r1", product="demo", version="1.1", wait_s=77)


def device() -> Device:
    made = device_with(PACKED, slots=memory_slots(b"", size_bytes=3 << 20))
    made.checker.answers = [WORK]
    return made


def run(made: Device) -> int:
    return run_once(made.ports, config_for())


def fails(made: Device, code: str) -> TwinlockError:
    with pytest.raises(TwinlockError) as caught:
        run(made)
    assert caught.value.code == code
    return caught.value


def told(made: Device) -> list[tuple[str, str]]:
    return [(one.state, one.code) for one in Outbox(made.store).waiting()]


def modes(made: Device) -> list[str]:
    return [request.mode for request in made.checker.requests]


def phase(made: Device) -> Phase:
    return journal.load(made.store)[0].phase


def test_nothing_to_do() -> None:
    made = Device()
    assert run(made) == 0
    assert modes(made) == ["poll"]
    assert made.boot.changes == []
    assert made.display.notes == ["nothing to do; slot a runs"]
    assert "journal.json" in made.store.files


def test_from_assignment_to_commit() -> None:
    made = device()
    assert run(made) == 10
    assert made.power.reboots == ["to try the new release"]
    assert made.boot.changes == ["invalidate b", "arm b"]
    assert made.hooks.asked == ["pre-download", "pre-install", "pre-reboot"]
    assert phase(made) is Phase.ARMED
    assert modes(made) == ["poll", "flush"]
    made.boot.reboot()
    made.hooks.wanted = [hook("led", 1, "off")]
    assert run(made) == 0
    assert made.boot.record.default == "b"
    assert memory.running(made.store, made.boot.record).version == "1.1"
    assert phase(made) is Phase.IDLE
    assert plans.load(made.store) is None
    assert told(made) == [("armed", ""), ("trial", ""), ("succeeded", "")]
    last = Outbox(made.store).waiting()[-1]
    assert (last.assignment_id, last.version, last.slot) == ("r1", "1.1", "b")
    assert last.bytes_fetched == len(PACKED.payload)
    assert last.detail == "led ended with 1: off"
    assert last.time_s == int(made.clock.now_s())


def test_running_again_before_the_reboot_only_asks_for_it_again() -> None:
    made = device()
    run(made)
    changes = list(made.boot.changes)
    assert run(made) == 10
    assert made.boot.changes == changes
    assert modes(made)[2:] == ["flush"]


def test_a_failing_hook_rolls_back_and_the_old_slot_tells_why() -> None:
    made = device()
    run(made)
    made.boot.reboot()
    made.hooks.required = [hook("app", 1, "no database")]
    assert run(made) == 10
    assert made.boot.record.trying is None
    assert made.boot.record.reason.startswith("health-failed: app ended with 1: no database")
    made.boot.reboot()
    assert made.boot.slot == "a"
    made.checker.answers = []
    assert run(made) == 0
    last = Outbox(made.store).waiting()[-1]
    assert (last.state, last.code, last.detail) == (
        "rolled_back",
        "health-failed",
        "app ended with 1: no database",
    )
    (failed,) = memory.failures(made.store)
    assert failed.manifest_sha256 == JOB.manifest_sha256


def test_no_network_is_needed_to_roll_back() -> None:
    made = device()
    run(made)
    made.boot.reboot()
    made.hooks.required = [hook("app", 1)]
    down = error("server-unreachable", "down")
    made.checker.answers = [down] * 50
    assert run(made) == 10
    made.boot.reboot()
    fails(made, "server-unreachable")
    assert told(made)[-1] == ("rolled_back", "health-failed")
    assert phase(made) is Phase.IDLE


def outage(made: Device) -> None:
    """Installs, and rolls back since the server cannot be reached from the new slot."""
    run(made)
    made.boot.reboot()
    made.checker.answers = [error("server-unreachable", "down")] * 100
    assert run(made) == 10
    made.boot.reboot()


def test_an_outage_does_not_condemn_a_release() -> None:
    made = device()
    outage(made)
    fails(made, "server-unreachable")  # the old slot does not reach it either
    assert [one.manifest_sha256 for one in memory.failures(made.store)] == [None]
    made.checker.answers = [CheckAnswer()]
    assert run(made) == 0
    assert [one.manifest_sha256 for one in memory.failures(made.store)] == [None]


def test_a_release_that_alone_does_not_reach_the_server_is_condemned() -> None:
    made = device()
    outage(made)
    made.checker.answers = [CheckAnswer()]
    assert run(made) == 0
    assert JOB.manifest_sha256 in [one.manifest_sha256 for one in memory.failures(made.store)]


def test_a_server_that_was_away_before_the_reboot_excuses_for_good() -> None:
    """That the old slot reaches it later then says nothing about the release."""
    made = device()
    run(made)
    baseline.take(made.ports, made.boot.record.trial_id, False)
    made.boot.reboot()
    made.checker.answers = [error("server-unreachable", "down")] * 100
    assert run(made) == 10
    made.boot.reboot()
    made.checker.answers = [CheckAnswer()]
    assert run(made) == 0
    assert [one.manifest_sha256 for one in memory.failures(made.store)] == [None]


def test_a_slot_that_never_comes_up() -> None:
    made = device()
    run(made)
    for _ in range(3):
        made.boot.reboot()
    made.boot.reboot()
    assert made.boot.slot == "a"
    made.checker.answers = []
    assert run(made) == 0
    assert told(made)[-1] == ("rolled_back", "trial-exhausted")


@pytest.mark.parametrize("point", ["pre-download", "pre-install", "pre-reboot"])
def test_hooks_postpone(point: str) -> None:
    made = device()
    made.hooks.points = {point: [hook("user", 75, "in use")]}
    assert run(made) == 0
    assert made.display.notes[-1] == f"postponed by a {point} hook: user ended with 75: in use"
    assert (made.network.requests == []) == (point != "pre-reboot")
    assert made.power.reboots == []
    before = told(made)
    made.hooks.points = {}
    made.checker.answers = [WORK]
    assert run(made) == 10
    assert not [one for one in before if one[0] == "downloading"]


def test_a_hook_that_breaks_postpones_and_is_reported_once() -> None:
    made = device()
    made.hooks.points = {"pre-download": [hook("user", 1, "bug")]}
    assert run(made) == 0
    made.checker.answers = [WORK]
    assert run(made) == 0
    (report,) = Outbox(made.store).waiting()
    assert report.state == "downloading"
    assert "user ended with 1: bug" in report.detail


def test_a_refused_assignment_is_told_and_shown() -> None:
    made = Device()
    made.checker.answers = [
        CheckAnswer(assignment_id="r1", product="demo", version="1.1", code="metadata-signature", what="x")
    ]
    assert fails(made, "metadata-signature").exit_code == 4
    assert told(made) == [("failed", "metadata-signature")]
    assert made.boot.changes == []
    assert memory.failures(made.store)[0].assignment_id == "r1"


def test_a_payload_that_was_changed_ends_the_assignment_and_not_the_release() -> None:
    made = device()
    sha256 = PACKED.offer.sha256.hex()
    made.network.payloads[sha256] = b"x" + made.network.payloads[sha256][1:]
    fails(made, "payload-part-hash")
    assert told(made) == [("failed", "payload-part-hash")]
    assert phase(made) is Phase.IDLE
    assert made.boot.changes == []
    (failed,) = memory.failures(made.store)
    assert (failed.assignment_id, failed.manifest_sha256) == ("r1", None)
    report = Outbox(made.store).waiting()[0]
    assert report.bytes_fetched > report.bytes_again > 0


def test_a_lost_link_is_told_once_and_goes_on() -> None:
    made = device()
    lost = error("connection-lost", "cut")
    made.network.faults = [lost] * 4
    fails(made, "connection-lost")
    assert phase(made) is Phase.INSTALLING
    assert told(made) == [("downloading", "connection-lost")]
    Outbox(made.store).sent([1])
    made.checker.answers = [WORK]
    made.network.faults = [lost] * 4
    fails(made, "connection-lost")
    assert told(made) == []
    made.checker.answers = [WORK]
    assert run(made) == 10


def test_an_assignment_that_was_taken_back_is_let_go() -> None:
    made = device()
    made.network.faults = [error("connection-lost", "cut")] * 4
    fails(made, "connection-lost")
    made.checker.answers = [CheckAnswer()]
    assert run(made) == 0
    assert phase(made) is Phase.IDLE
    assert plans.load(made.store) is None


def test_what_runs_already_is_told() -> None:
    made = Device()
    made.checker.answers = [CheckAnswer(assignment_id="r1", product="demo", version="1.1", runs_already=True)]
    assert run(made) == 0
    assert told(made) == [("succeeded", "")]


# --- damage


def test_a_damaged_journal_is_told_and_nothing_else_happens() -> None:
    made = Device()
    made.store.write(journal.JOURNAL, b"\x00" * 30)
    assert run(made) == 0
    assert told(made) == [("idle", "journal-corrupt")]


def test_a_trial_is_settled_without_journal_and_plan() -> None:
    made = device()
    run(made)
    made.boot.reboot()
    for name in (journal.JOURNAL, plans.PLAN):
        made.store.remove(name)
    made.checker.answers = []
    assert run(made) == 0
    assert made.boot.record.default == "b"
    assert memory.running(made.store, made.boot.record).version == ""
    assert told(made)[-1] == ("idle", "journal-corrupt")


def test_a_trial_is_settled_by_the_plan_when_the_journal_is_lost() -> None:
    made = device()
    run(made)
    made.boot.reboot()
    made.store.remove(journal.JOURNAL)
    made.checker.answers = []
    assert run(made) == 0
    assert Outbox(made.store).waiting()[-1].assignment_id == "r1"
    assert told(made)[-1] == ("succeeded", "")


class LostBoot(MemoryBoot):
    """Both copies of the record are gone."""

    def read(self) -> BootRecord:
        raise error("boot-record", "no copy of the boot record is valid")


def test_without_a_boot_record_nothing_is_done_and_the_server_is_told_once() -> None:
    made = device()
    made.boot = LostBoot()
    for _ in range(3):
        fails(made, "boot-record")
    assert told(made) == [("idle", "boot-record")]
    assert set(modes(made)) == {"flush"}


def test_a_full_disk_stops_before_anything_is_done() -> None:
    made = device()
    made.store.full = True
    fails(made, "disk-full")
    assert made.checker.requests == []
    assert made.boot.changes == []


def test_a_full_disk_during_a_trial_goes_back() -> None:
    made = device()
    run(made)
    made.boot.reboot()
    made.store.full = True
    assert run(made) == 10
    assert made.boot.record.trying is None
    assert "disk-full" in made.boot.record.reason
    made.boot.reboot()
    made.store.full = False
    made.checker.answers = []
    assert run(made) == 0
    assert made.boot.slot == made.boot.record.default == "a"
    assert told(made)[-1] == ("rolled_back", "disk-full")
    assert [one.manifest_sha256 for one in memory.failures(made.store)] == [None]


def test_a_fault_of_ours_during_a_trial_goes_back() -> None:
    made = device()
    run(made)
    made.boot.reboot()

    def broken(request: CheckRequest) -> CheckAnswer:
        raise ZeroDivisionError("oops")

    made.checker.on_check = broken
    assert run(made) == 10
    assert made.boot.record.reason.startswith("internal: ZeroDivisionError: oops")


def test_a_record_that_cannot_be_committed_goes_back_by_its_tries() -> None:
    made = device()
    run(made)
    made.boot.reboot()
    made.boot.broken = True
    assert run(made) == 10
    assert made.boot.record.trying == "b"
    made.boot.broken = False
    while made.boot.slot == "b":
        made.boot.reboot()
    made.checker.answers = []
    assert run(made) == 0
    assert told(made)[-1] == ("rolled_back", "boot-control")


def test_arming_that_fails_is_tried_again_by_the_next_run() -> None:
    made = device()
    real = made.boot.arm

    def broken(slot: str, tries: int, trial_id: str) -> BootRecord:
        raise error("boot-control", "stuck")

    made.boot.arm = broken  # type: ignore[method-assign]
    fails(made, "boot-control")
    assert told(made) == [("downloading", "boot-control")]
    made.boot.arm = real  # type: ignore[method-assign]
    made.checker.answers = [WORK]
    asked = len(made.network.requests)
    assert run(made) == 10
    assert len(made.network.requests) == asked, "nothing is fetched again"


def test_a_plan_changed_under_our_hands_is_not_installed() -> None:
    made = device()
    plan = plans.load(made.store)
    assert plan is not None
    made.store.write(plans.PLAN, msgspec.json.encode(plan)[:-5])
    fails(made, "journal-corrupt")
    assert made.network.requests == []
    assert made.boot.changes == []


def test_a_check_that_dies_is_a_failure_of_this_run_only() -> None:
    made = device()
    made.checker.answers = [error("internal", "killed by signal 9")]
    assert fails(made, "internal").exit_code == 70
    assert phase(made) is Phase.IDLE
    assert told(made) == [("idle", "internal")]


def test_the_last_run_is_noted() -> None:
    made = device()
    made.network.faults = [error("connection-lost", "cut")] * 4
    fails(made, "connection-lost")
    last = msgspec.json.decode(made.store.files["last.json"])
    assert (last["code"], last["exit_code"], last["phase"], last["wait_s"]) == (
        "connection-lost",
        3,
        "installing",
        77,
    )


def test_reports_hold_no_more_than_the_protocol_allows() -> None:
    made = Device()
    made.checker.answers = [
        CheckAnswer(assignment_id="r1", product="demo", version="1", code="internal", what="\x00" * 100_000)
    ]
    fails(made, "internal")
    (report,) = Outbox(made.store).waiting()
    assert isinstance(report, Report)
    assert len(report.detail) <= 4096


def test_a_state_is_a_state() -> None:
    assert journal.load(Device().store) == (State(), False)


# --- recovery


def in_recovery(*, whole: str) -> Device:
    """Both copies of the boot record are lost; `whole` are the slots that still hold their release."""
    old = pack(image_of("zz", seed=9), "1.0")
    made = Device(slots=memory_slots(old.image, PACKED.image, size_bytes=4 << 20))
    made.network.serve(PACKED)
    made.boot.lost, made.boot.slot = True, "recovery"
    known = {}
    for slot, one in (("a", old), ("b", PACKED)):
        known[slot] = Running(
            product="demo", image_sha256=one.manifest.image_sha256, image_size_bytes=len(one.image)
        )
        if slot not in whole:
            made.slots.devices[slot].data[5] ^= 1
    made.store.write(memory.SLOTS_FILE, msgspec.json.encode(known))
    return made


@pytest.mark.parametrize(
    ("whole", "default", "failed"), [("a", "a", "b"), ("b", "b", "a"), ("ab", "b", ""), ("", "b", "ab")]
)
def test_recovery_makes_a_lost_boot_record_of_what_the_slots_hold(
    whole: str, default: str, failed: str
) -> None:
    made = in_recovery(whole=whole)
    journal.save(made.store, State(record=BootRecord(seq=3, default="b")))
    assert run(made) == (10 if whole else 0)
    assert (made.boot.record.default, made.boot.record.failed) == (default, frozenset(failed))
    assert told(made) == [("idle", "boot-record")]
    assert len(made.power.reboots) == bool(whole)


def test_what_is_not_remembered_or_not_readable_is_not_whole() -> None:
    made = in_recovery(whole="ab")
    made.slots.devices["a"].unreadable = {1}
    known = {"b": Running(image_sha256=PACKED.manifest.image_sha256, image_size_bytes=5 << 20)}
    known["a"] = memory.slots(made.store)["a"]
    made.store.write(memory.SLOTS_FILE, msgspec.json.encode(known))
    assert run(made) == 0
    assert made.boot.record.failed == frozenset("ab")
    made = in_recovery(whole="ab")
    made.store.write(memory.SLOTS_FILE, b"{}")
    assert run(made) == 0
    assert made.boot.record.failed == frozenset("ab")
    assert all(one.closed for one in made.slots.devices.values())


def test_outside_of_recovery_a_lost_record_is_an_error() -> None:
    made = in_recovery(whole="ab")
    made.boot.slot = "b"
    fails(made, "boot-record")
    assert made.boot.lost


def test_recovery_speaks_of_the_release_that_should_run_but_of_no_image() -> None:
    made = in_recovery(whole="")
    run(made)
    (request,) = made.checker.requests[-1:]
    assert (request.slot, request.running.product, request.running.image_sha256) == ("recovery", "demo", None)
    assert (request.inactive, request.is_committed) == ("b", False)


def test_from_recovery_a_slot_that_takes_nothing_gives_way_to_the_other() -> None:
    """The whole way: slot b keeps nothing, a is given up, written, tried, and stays although b is lame."""
    made = in_recovery(whole="")
    made.slots.devices["b"].rotten = frozenset({0, 1, 2, 3})

    def answer(request: CheckRequest) -> CheckAnswer:
        if request.mode != "poll" or request.running.version:
            return CheckAnswer()
        assert request.inactive is not None
        made.plan(plan_for(PACKED, slot=request.inactive))
        job = job_for(PACKED, slot=request.inactive)
        return CheckAnswer(job=job, assignment_id="r1", product="demo", version="1.1")

    made.checker.on_check = answer
    assert run(made) == 10
    assert made.boot.changes == ["restore", "abandon a", "arm a"]
    made.boot.reboot()
    assert made.boot.slot == "a"
    assert run(made) == 0
    assert (made.boot.record.default, made.boot.record.failed) == ("a", frozenset("b"))
    final = [report for report in Outbox(made.store).waiting() if report.state == "succeeded"]
    assert "only one slot is left" in final[0].detail
