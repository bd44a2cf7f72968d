"""Cuts and scenarios on a device that is played: what they ask of it, and what they hold against it."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from twinlock.agent.api import RETRIES_MAX
from twinlock.core.errors import error
from twinlock.lab.qemu import cuts, scenarios
from twinlock.lab.qemu.build import PANIC
from twinlock.lab.qemu.service import Gap
from twinlock.lab.qemu.stage import Stage, Updated
from twinlock.lab.qemu.volatile import CutPlan, Loss


class Device:
    """A device under cuts: `life` says of each power-on whether the cut comes, and what the server knows."""

    def __init__(self, life: list[tuple[bool, str, str]], holds: Callable[[int], str | None]) -> None:
        self.life = life
        self.holds = holds
        self.ons = 0
        self.released: list[str] = []
        self.plans: list[CutPlan | None] = []
        self.said: list[str] = []
        self.settings = SimpleNamespace(device_id="d")
        self.note = self.said.append
        self.rig = SimpleNamespace(
            roll_out=lambda version, device_id: f"r-{version}", assignment=lambda rollout: self._assignment()
        )
        self.device = SimpleNamespace(ride=self._ride, volatile=SimpleNamespace(loss=Loss(8, 3, 0)))

    def _assignment(self) -> dict[str, Any]:
        _, state, code = self.life[self.ons - 1]
        return {"state": state, "code": code, "detail": ""}

    def _ride(self, holds: Callable[[], bool], what: str, cpu_s_max: float) -> bool:
        cut = self.life[self.ons - 1][0]
        assert cut or holds()
        return cut

    def release(self, version: str) -> None:
        self.released.append(version)

    def power_on(self, plan: CutPlan | None = None) -> None:
        self.ons += 1
        self.plans.append(plan)

    def power_off(self, seed: int) -> None:
        """Nothing to do."""

    def boots(self) -> tuple[str, ...]:
        return ("a",)

    def check_medium(self) -> tuple[str, str]:
        version = self.holds(self.ons)
        if version is None:
            raise error("internal", "the loader would boot slot b, which holds no whole release")
        return "b", version


def ride(device: Device, count: int) -> cuts.Cuts:
    return cuts.run(cast("Stage", device), 3, count)


def test_cuts_go_on_until_all_are_used_up_and_the_last_update_ends() -> None:
    life = [(True, "downloading", ""), (True, "trial", ""), (False, "succeeded", "")]
    device = Device(life, lambda ons: "1.0" if ons < 3 else "2.1")
    done = ride(device, 2)
    assert [(one.number, one.phase, one.next_version) for one in done.cuts] == [
        (1, "downloading", "1.0"),
        (2, "trial", "1.0"),
    ]
    assert (done.outcomes, done.violations) == ((("2.1", "succeeded", ""),), ())
    assert [plan is None for plan in device.plans] == [False, False, True]
    again = Device(life, device.holds)
    ride(again, 2)
    assert again.plans == device.plans


def test_an_update_that_ends_before_its_cut_is_followed_by_another() -> None:
    device = Device(
        [(False, "succeeded", ""), (True, "armed", ""), (False, "succeeded", "")],
        lambda ons: f"2.{min(ons, 2)}",
    )
    done = ride(device, 1)
    assert device.released == ["2.1", "2.2"]
    assert [state for _, state, _ in done.outcomes] == ["succeeded", "succeeded"]


def test_a_medium_that_would_not_boot_a_whole_release_ends_it() -> None:
    device = Device([(True, "downloading", "")] * 3, lambda ons: None if ons == 2 else "1.0")
    done = ride(device, 3)
    assert len(done.cuts) == 1
    assert len(done.violations) == 1
    assert "cut 2" in done.violations[0]


@pytest.mark.parametrize(
    ("state", "code", "held", "wrong"),
    [
        ("rolled_back", "trial-exhausted", "1.0", False),
        ("rolled_back", "health-failed", "1.0", True),
        ("failed", "image-hash", "1.0", True),
        ("succeeded", "", "1.0", True),
    ],
)
def test_what_an_outcome_must_be(state: str, code: str, held: str, wrong: bool) -> None:
    device = Device([(True, "downloading", ""), (False, state, code)], lambda ons: held)
    assert bool(ride(device, 1).violations) is wrong


# --- scenarios


class Link:
    """A link that breaks when told so."""

    def __init__(self) -> None:
        self.down = False
        self.refused = 0
        self.faults: list[object] = []
        self.passed = 0
        self.add = self.faults.append

    def counts(self) -> SimpleNamespace:
        return SimpleNamespace(payload_bytes=self.passed)


class Played:
    """A stage on which every update ends as it is told to."""

    def __init__(self, *outcomes: tuple[str, str]) -> None:
        self.outcomes = list(outcomes)
        self.rig = SimpleNamespace(packed={}, proxy=Link())
        self.service = "1.0 a"
        self.said: list[str] = []
        self.note = self.said.append
        self.flaws: list[object] = []
        self.seen: tuple[str, ...] = ()
        self.device = SimpleNamespace(
            machine=SimpleNamespace(console=SimpleNamespace(position=lambda: 0)),
            wait=lambda holds, what: None,
        )

    def release(self, version: str, flaw: object = None) -> None:
        self.rig.packed[version] = SimpleNamespace(payload_size_bytes=3 << 20)
        self.flaws.append(flaw)

    def boots(self, since: int = 0) -> tuple[str, ...]:
        return self.seen

    def update(self, version: str, meanwhile: Callable[[dict[str, Any]], None]) -> Updated:
        state, code = self.outcomes.pop(0)
        for phase in ("assigned", "downloading", "armed", state):
            meanwhile({"state": phase})
            if phase == "armed":
                self.seen = ("b", "a")
                while state == "rolled_back" and self.rig.proxy.down:  # the old slot asks in vain
                    self.rig.proxy.refused += 1
                    meanwhile({"state": phase})
        now = time.monotonic()
        away = (Gap(now - 40, now - 9, self.service, f"{version} b"),)
        if state == "succeeded":
            self.service = f"{version} b"
        boots = ("b",) if state == "succeeded" else ("b", "a")
        return Updated(version, state, code, "why", 10, 0, 60.0, 50.0, boots, away)


def play(name: str, stage: Played) -> Any:
    (result,) = scenarios.run(cast("Stage", stage), [scenarios.BY_NAME[name]])
    return result


def test_a_good_release_is_away_once() -> None:
    result = play("update", Played(("succeeded", "")))
    assert result.problems == []
    assert result.figures["service away, s"] == 31.0
    assert [bool(span.label) for span in result.spans] == [True, False, True]
    bad = play("update", Played(("rolled_back", "health-failed")))
    assert any("outcome" in problem for problem in bad.problems)


@pytest.mark.parametrize(
    ("name", "code"),
    [("bad-release", "health-failed"), ("panic", "trial-exhausted"), ("hang", "trial-exhausted")],
)
def test_a_bad_release_must_go_and_say_why(name: str, code: str) -> None:
    stage = Played(("rolled_back", code))
    assert play(name, stage).problems == []
    assert stage.flaws[0] is not None
    assert play(name, Played(("succeeded", ""))).problems
    assert play(name, Played(("rolled_back", "internal"))).problems


def test_a_lost_network_must_have_been_lost_and_fetches_nothing_twice() -> None:
    stage = Played(("succeeded", ""))
    assert play("network-lost", stage).problems == ["the link did not break"]
    assert len(stage.rig.proxy.faults) == 2
    stage = Played(("succeeded", ""))
    stage.rig.proxy.down = True
    stage.rig.proxy.counts = iter(
        [SimpleNamespace(payload_bytes=0), SimpleNamespace(payload_bytes=9 << 20)]
    ).__next__
    assert any("crossed the link again" in problem for problem in play("network-lost", stage).problems)


def test_an_outage_condemns_no_release() -> None:
    stage = Played(("rolled_back", "server-unreachable"), ("succeeded", ""))
    result = play("server-down", stage)
    assert result.problems == []
    assert stage.rig.proxy.down is False
    assert any("went back" in step.text for step in result.steps)
    assert stage.rig.proxy.refused > RETRIES_MAX, "the old slot's run has ended before the server is back"
    again = Played(("rolled_back", "server-unreachable"), ("failed", "release-failed-before"))
    assert any("second attempt" in problem for problem in play("server-down", again).problems)
    assert play("server-down", Played(("succeeded", ""))).problems == []


def test_a_panic_comes_from_a_unit_of_its_own() -> None:
    assert any("sysrq" in text for text in PANIC.files.values())
