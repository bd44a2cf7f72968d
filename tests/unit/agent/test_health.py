"""The gate of a trial: what it proves, and whom it blames."""

from __future__ import annotations

import pytest

from tests.unit.agent.fakes import Device, MemoryBoot, config_for, hook, image_of, job_for, memory_slots, pack
from twinlock.agent.health import Gate
from twinlock.agent.plan import CheckAnswer
from twinlock.agent.states import Verdict
from twinlock.core import bootrecord
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import error

JOB = job_for(pack(image_of("a")))
DOWN = CheckAnswer(code="server-unreachable", what="nobody there")


def on_trial() -> Device:
    record = bootrecord.arm(BootRecord(seq=1, default="a"), "b", 3, JOB.trial_id)
    boot = MemoryBoot(record=record)
    boot.reboot()
    return Device(boot=boot, slots=memory_slots(b"", size_bytes=4096))


def judge(device: Device, **health: object) -> tuple[Verdict | None, str]:
    config = config_for(health={"deadline_s": 60.0, **health})
    return Gate(device.ports, config.health, JOB).judge()


def test_a_healthy_system_passes_and_nothing_is_left_behind() -> None:
    device = on_trial()
    before = device.boot.record
    assert judge(device) == (None, "")
    assert device.boot.tests == 1
    assert device.boot.record == before
    assert device.store.files == {}
    assert all(one.closed for one in device.slots.devices.values())
    (request,) = device.checker.requests
    assert (request.mode, request.running.version, request.slot) == ("gate", "1.1", "b")


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


@pytest.mark.parametrize("code", ["internal", "identity-missing", "io-error"])
def test_an_agent_that_cannot_check_any_more_fails_at_once(code: str) -> None:
    device = on_trial()
    device.hooks.required = [hook("app")]
    device.checker.answers = [CheckAnswer(code=code, what="x")]
    assert judge(device)[0] == Verdict(code=code, detail="x")
    device.checker.answers = [error("internal", "died")]
    assert judge(device)[0] == Verdict(code="internal", detail="died")
