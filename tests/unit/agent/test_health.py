"""The gate of a trial: what it proves, and whom it blames."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from tests.unit.agent.fakes import (
    MIB,
    Device,
    FakeResponse,
    MemoryBoot,
    config_for,
    hook,
    image_of,
    memory_slots,
    pack,
    plan_for,
)
from twinlock.agent import memory, transfer
from twinlock.agent.gate import baseline, slot
from twinlock.agent.gate.baseline import Baseline
from twinlock.agent.health import Gate
from twinlock.agent.plan import PLAN, CheckAnswer, Running
from twinlock.agent.states import Verdict
from twinlock.agent.system import Unit
from twinlock.core import bootrecord
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import error
from twinlock.core.limits import SLOT_TAIL_SIZE_BYTES
from twinlock.core.payload import container

PACKED = pack(image_of("a.0"))
FALLBACK = image_of("zz", seed=9)
PLAN_OF_IT = plan_for(PACKED)
JOB = PLAN_OF_IT.job
DOWN = CheckAnswer(code="server-unreachable", what="nobody there")


def on_trial() -> Device:
    """Slot b runs on trial and holds its release; slot a holds the one before."""
    record = bootrecord.arm(BootRecord(seq=1, default="a"), "b", 3, JOB.trial_id)
    boot = MemoryBoot(record=record)
    boot.reboot()
    device = Device(boot=boot, slots=memory_slots(FALLBACK, PACKED.image, size_bytes=4 * MIB))
    device.network.serve(PACKED)
    device.plan(PLAN_OF_IT)
    known = {"a": Running(product="demo", version="1.0", image_size_bytes=len(FALLBACK))}
    device.store.write(memory.SLOTS_FILE, msgspec.json.encode(known))
    return device


def judge(device: Device, **health: object) -> tuple[Verdict | None, str]:
    return Gate(device.ports, config_for(health={"deadline_s": 60.0, **health}), JOB).judge()


def failed(device: Device, **health: object) -> Verdict:
    """The verdict of a trial that does not pass."""
    verdict, _ = judge(device, **health)
    assert verdict is not None
    return verdict


def test_a_healthy_system_passes_and_nothing_is_left_behind() -> None:
    device = on_trial()
    before, files = device.boot.record, set(device.store.files)
    assert judge(device) == (None, "")
    assert device.boot.tests == 1
    assert device.boot.record == before
    assert set(device.store.files) == files
    assert all(one.closed for one in device.slots.devices.values())
    (request,) = device.checker.requests
    assert (request.mode, request.running.version, request.slot) == ("gate", "1.1", "b")


# --- the boot record and the other slot


def test_a_slot_that_is_not_on_trial_fails() -> None:
    device = on_trial()
    device.boot.slot = "a"
    verdict, _ = judge(device)
    assert verdict is not None
    assert verdict.code == "boot-control"


def test_another_trial_than_the_journals_fails() -> None:
    device = on_trial()
    device.boot.record = bootrecord.arm(BootRecord(seq=1, default="a"), "b", 3, "another")
    verdict, _ = judge(device)
    assert verdict is not None
    assert verdict.code == "boot-control"


def test_a_boot_record_that_cannot_be_written_fails() -> None:
    device = on_trial()
    device.boot.broken = True
    assert judge(device)[0] == Verdict(code="boot-control", detail="the boot record cannot be written")


def test_another_slot_that_cannot_be_opened_fails() -> None:
    device = on_trial()
    device.slots.busy = {"a"}
    verdict, _ = judge(device)
    assert verdict is not None
    assert (verdict.code, verdict.condemns) == ("slot-busy", True)


def test_another_slot_that_is_smaller_than_this_release_fails() -> None:
    device = on_trial()
    del device.slots.devices["a"].data[2 * MIB :]
    assert failed(device).code == "image-too-large"


def test_the_probe_of_the_other_slot_leaves_its_image_alone() -> None:
    device = on_trial()
    before = bytes(device.slots.devices["a"].data)
    assert judge(device)[0] is None
    after = bytes(device.slots.devices["a"].data)
    start = len(before) - SLOT_TAIL_SIZE_BYTES
    assert after[:start] == before[:start]
    assert after[start : start + slot.PROBE_SIZE_BYTES] != before[start : start + slot.PROBE_SIZE_BYTES]
    assert after[start + slot.PROBE_SIZE_BYTES :] == before[start + slot.PROBE_SIZE_BYTES :]
    log = device.slots.devices["a"].log
    assert log[-2:] == ["sync", "drop"], "what was written has to be read from the medium"
    assert judge(device)[0] is None
    assert bytes(device.slots.devices["a"].data) != after, "another probe writes something else"


@pytest.mark.parametrize("held_size_bytes", [0, 4 * MIB, 4 * MIB - SLOT_TAIL_SIZE_BYTES + 1])
def test_where_no_reserved_end_is_known_the_same_bytes_are_written_again(held_size_bytes: int) -> None:
    device = on_trial()
    known = {"a": Running(image_size_bytes=held_size_bytes)}
    device.store.write(memory.SLOTS_FILE, msgspec.json.encode(known))
    written: list[str] = []
    device.slots.devices["a"].before_write = lambda: written.append("a")
    before = bytes(device.slots.devices["a"].data)
    assert judge(device)[0] is None
    assert written == ["a"]
    assert bytes(device.slots.devices["a"].data) == before


def test_a_slot_that_does_not_keep_what_is_written_fails_and_condemns_nobody() -> None:
    device = on_trial()
    device.slots.devices["a"].rotten = frozenset({3})
    verdict = failed(device)
    assert (verdict.code, verdict.condemns) == ("slot-readback", False)


def test_a_write_that_is_kept_wrong_once_is_tried_again() -> None:
    device = on_trial()
    other = device.slots.devices["a"]
    other.rotten = frozenset({3})
    rounds: list[int] = []

    def mend() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            other.rotten = frozenset()

    other.before_write = mend
    assert judge(device)[0] is None
    assert len(rounds) == 2


# --- the image of the slot that runs


def test_a_running_slot_that_is_not_the_signed_image_fails_and_condemns_nobody() -> None:
    device = on_trial()
    device.slots.devices["b"].data[MIB + 5] ^= 1
    verdict = failed(device)
    assert (verdict.code, verdict.condemns) == ("slot-readback", False)
    assert "segment 1 of slot b" in verdict.detail
    assert judge(device, verify_image="never")[0] is None


def test_a_slot_that_is_mounted_read_write_is_not_verified_unless_asked() -> None:
    device = on_trial()
    device.slots.devices["b"].data[5] ^= 1
    device.system.written = {"b"}
    verdict, said = judge(device)
    assert verdict is None
    assert said == "slot b is mounted read-write: its image was not verified"
    assert failed(device, verify_image="always").code == "slot-readback"


def test_without_the_plan_nothing_is_verified_and_that_is_told() -> None:
    device = on_trial()
    device.slots.devices["b"].data[5] ^= 1
    device.store.remove(PLAN)
    verdict, said = judge(device)
    assert verdict is None
    assert said == "the plan of this trial is lost: its image and a download were not proven"
    device.plan(plan_for(PACKED, assignment_id="another"))
    assert "is lost" in judge(device)[1]


# --- units, timer, space, clock


def test_a_critical_unit_that_is_still_starting_is_waited_for() -> None:
    device = on_trial()
    starting = [Unit("app.service", "starting", "activating")] * 3
    device.system.units = {"app.service": [*starting, Unit("app.service", "good", "active")]}
    assert judge(device, critical_units=["app.service"])[0] is None
    assert 0 < device.clock.passed_s < 60


def test_a_critical_unit_that_never_gets_up_condemns() -> None:
    device = on_trial()
    device.system.units = {"app.service": [Unit("app.service", "starting", "activating (start)")]}
    verdict = failed(device, critical_units=["app.service"])
    assert verdict == Verdict(
        code="health-timeout", detail="unit app.service is not up in time: activating (start)"
    )
    assert 60 <= device.clock.passed_s <= 62


def test_a_critical_unit_that_failed_or_is_missing_condemns() -> None:
    device = on_trial()
    assert failed(device, critical_units=["app.service"]) == Verdict(
        code="health-failed", detail="unit app.service is not-found, not installed"
    )
    device.system.failed = ("db@1.service",)
    assert failed(device, critical_units=["db@*"]).detail == "unit db@1.service has failed"
    assert device.checker.requests == []


def test_another_failed_unit_is_a_remark() -> None:
    device = on_trial()
    device.system.failed = ("led.service",)
    assert judge(device, critical_units=["db@*"]) == (None, "unit led.service has failed")


def test_what_had_failed_before_the_reboot_is_not_the_releases_fault() -> None:
    device = on_trial()
    device.system.failed = ("app.service",)
    baseline.take(device.ports, JOB.trial_id, True)
    said = "unit app.service has failed, as it had before the reboot"
    assert judge(device, critical_units=["app.service", "*"]) == (None, said)
    baseline.take(device.ports, "another trial", True)
    assert failed(device, critical_units=["*"]).code == "health-failed"
    device.store.write(baseline.BASELINE, b"rubbish")
    assert failed(device, critical_units=["*"]).code == "health-failed"


def test_the_rescue_mode_fails() -> None:
    device = on_trial()
    device.system.maintenance = True
    assert failed(device).code == "health-failed"
    device.system.has_units = False
    assert judge(device)[0] is None


def test_no_next_poll_fails() -> None:
    device = on_trial()
    assert "no next poll is scheduled" in failed(device, timer="twinlock-agent.timer").detail
    device.system.units = {"twinlock-agent.timer": [Unit("twinlock-agent.timer", "good", "active")]}
    assert judge(device, timer="twinlock-agent.timer")[0] is None


def test_too_little_space_fails_unless_it_was_so_before() -> None:
    device = on_trial()
    device.system.free = 4095
    verdict = failed(device, free_bytes_min=4096)
    assert (verdict.code, verdict.condemns) == ("disk-full", False)
    baseline.take(device.ports, JOB.trial_id, None)
    passed, said = judge(device, free_bytes_min=4096)
    assert passed is None
    assert (
        said == "4095 bytes are left for the agent's state, 4096 are needed; before the reboot 4095 were left"
    )
    device.system.free = 4096
    assert judge(device, free_bytes_min=4096) == (None, "")


def test_a_clock_that_is_behind_is_a_remark() -> None:
    device = on_trial()
    memory.note_time(device.store, device.clock.now_s() + 7201)
    assert judge(device) == (None, "the clock is at least 2 hours behind")


def test_a_baseline_is_taken_whatever_fails() -> None:
    device = on_trial()
    device.system.broken = True
    baseline.take(device.ports, JOB.trial_id, False)
    assert baseline.load(device.ports, JOB.trial_id) == Baseline(trial_id=JOB.trial_id, reached=False)
    device.store.full = True
    baseline.take(device.ports, "second", None)
    assert "before the trial is not kept" in device.display.notes[-1]


# --- the probe download


def test_the_smallest_part_is_fetched_and_checked() -> None:
    device = on_trial()
    assert judge(device)[0] is None
    tail, part = device.network.seen
    assert tail[1] == len(PACKED.payload)
    number = min((0, 1), key=lambda one: PACKED.index.parts[one].length)
    assert part[1] - part[0] == PACKED.index.parts[number].length
    assert part[0] == PACKED.index.offsets()[number]


def test_the_index_that_the_install_kept_is_used() -> None:
    device = on_trial()
    tail = PACKED.payload[PACKED.index.offsets()[-1] :]
    device.store.write(transfer.INDEX_NAMES["full"], PACKED.offer.sha256 + tail)
    assert judge(device)[0] is None
    assert len(device.network.seen) == 1


def test_a_download_that_does_not_work_is_waited_for_and_condemns_nobody() -> None:
    device = on_trial()
    bad = bytearray(PACKED.payload)
    bad[3] ^= 1
    for start in range(0, PACKED.index.offsets()[-1], 97):
        bad[start] ^= 1
    device.network.payloads = dict.fromkeys(device.network.payloads, bytes(bad))
    verdict = failed(device)
    assert (verdict.code, verdict.condemns) == ("payload-part-hash", False)
    assert device.clock.passed_s >= 60
    device = on_trial()
    device.network.faults = [FakeResponse(403, {}, b"")]
    assert judge(device)[0] is None, "the second time it works"


def test_a_part_that_is_whole_but_not_what_was_signed_is_no_proof() -> None:
    evil = pack(image_of("x.0", seed=5))
    index = msgspec.structs.replace(evil.index, image_sha256=PACKED.manifest.image_sha256)
    body = evil.payload[: evil.index.offsets()[-1]]
    forged = dataclasses.replace(evil, payload=body + container.encode_tail(index), index=index)
    device = on_trial()
    device.network.serve(forged)
    device.plan(msgspec.structs.replace(PLAN_OF_IT, payloads=(forged.offer,)))
    verdict = failed(device)
    assert (verdict.code, verdict.condemns) == ("segment-hash", False)


def test_a_payload_without_anything_to_fetch_is_no_failure() -> None:
    packed = pack(image_of("00"))
    plan = plan_for(packed)
    device = on_trial()
    device.slots.devices["b"].data[: len(packed.image)] = packed.image
    device.boot.record = bootrecord.arm(BootRecord(seq=1, default="a"), "b", 3, plan.job.trial_id)
    device.network.serve(packed)
    device.plan(plan)
    assert Gate(device.ports, config_for(), plan.job).judge() == (None, "")


def test_a_server_that_was_out_of_reach_before_is_said_so_and_excuses() -> None:
    device = on_trial()
    baseline.take(device.ports, JOB.trial_id, False)
    device.checker.answers = [DOWN] * 1000
    verdict = failed(device)
    assert (verdict.condemns, verdict.excused) == (False, True)
    assert verdict.detail.endswith("(the server was out of reach before the reboot, too)")


# --- hooks and the server


def test_a_full_data_folder_fails_but_does_not_condemn() -> None:
    device = on_trial()
    device.store.full = True
    verdict, _ = judge(device)
    assert verdict is not None
    assert (verdict.code, verdict.condemns) == ("disk-full", False)


def test_a_required_hook_decides_and_its_words_are_the_reason() -> None:
    device = on_trial()
    device.hooks.required = [hook("10-app"), hook("20-db", 1, "schema 7, need 8")]
    assert judge(device)[0] == Verdict(
        code="health-failed", detail="20-db ended with 1: schema 7, need 8", condemns=True
    )
    device.hooks.required = [hook("10-app", -9, "starting", timed_out=True)]
    verdict, _ = judge(device)
    assert verdict is not None
    assert (verdict.code, verdict.detail) == ("health-timeout", "10-app did not end in time: starting")
    assert device.checker.requests == [], "a release that failed is not asked for metadata"


def test_a_wanted_hook_is_told_and_does_not_decide() -> None:
    device = on_trial()
    device.hooks.wanted = [hook("led", 1, "off"), hook("fan")]
    assert judge(device) == (None, "led ended with 1: off")


def test_a_short_outage_is_waited_out() -> None:
    device = on_trial()
    device.checker.answers = [DOWN, error("transfer-stalled", "slow"), DOWN, CheckAnswer()]
    assert judge(device)[0] is None
    assert len(device.checker.requests) == 4
    assert 0 < device.clock.passed_s < 60


@pytest.mark.parametrize(
    ("required", "unreachable", "passes"),
    [(True, "hooks", True), (False, "hooks", False), (True, "rollback", False), (False, "rollback", False)],
)
def test_a_long_outage_condemns_nobody(required: bool, unreachable: str, passes: bool) -> None:
    device = on_trial()
    device.hooks.required = [hook("app")] if required else []
    device.checker.answers = [DOWN] * 1000
    verdict, _ = judge(device, unreachable=unreachable)
    assert 55 <= device.clock.passed_s <= 70
    assert len(device.checker.requests) < 40
    if passes:
        assert verdict is None
    else:
        assert verdict is not None
        assert (verdict.code, verdict.condemns) == ("server-unreachable", False)
        assert "nobody there" in verdict.detail


@pytest.mark.parametrize("code", ["metadata-expired", "metadata-signature", "enrolment-rejected"])
def test_a_server_that_misbehaves_condemns_nobody(code: str) -> None:
    device = on_trial()
    device.checker.answers = [CheckAnswer(code=code, what="x")] * 1000
    verdict, _ = judge(device)
    assert verdict is not None
    assert (verdict.code, verdict.condemns) == (code, False)


@pytest.mark.parametrize("code", ["pkcs11-missing", "pkcs11-failed"])
def test_a_token_that_comes_late_is_waited_for(code: str) -> None:
    device = on_trial()
    late = CheckAnswer(code=code, what="not there yet")
    device.checker.answers = [late, late, late, CheckAnswer()]
    assert judge(device)[0] is None
    device = on_trial()
    device.hooks.required = [hook("app")]
    device.checker.answers = [CheckAnswer(code=code, what="no token")] * 1000
    assert judge(device)[0] == Verdict(code=code, detail="no token", condemns=True)


@pytest.mark.parametrize("code", ["internal", "identity-missing", "identity-lost", "pkcs11-pin", "io-error"])
def test_an_agent_that_cannot_check_any_more_fails_at_once(code: str) -> None:
    device = on_trial()
    device.hooks.required = [hook("app")]
    device.checker.answers = [CheckAnswer(code=code, what="x")]
    assert judge(device)[0] == Verdict(code=code, detail="x", condemns=code != "io-error")
    device.checker.answers = [error("internal", "died")]
    assert judge(device)[0] == Verdict(code="internal", detail="died")
