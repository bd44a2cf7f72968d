"""Both slots bad: from recovery every device comes back by itself, over any cuts, and never bricks."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tests.property.agent.machine_world import Image, World, job_for
from twinlock.agent import effects as do
from twinlock.agent import events as on
from twinlock.agent import machine
from twinlock.agent.plan import unknown_job
from twinlock.agent.states import Phase, State
from twinlock.core import bootrecord
from twinlock.core.bootrecord import BootRecord
from twinlock.core.names import RECOVERY, SLOTS
from twinlock.core.protocol import FINAL_STATES

WORLDS = 1500
RUNS_MAX = 30
CALM_RUNS_MAX = 60


@dataclass
class Ruined(World):
    """A device whose slots hold nothing that loads; recovery always does."""

    def boot(self) -> None:
        slot, record = bootrecord.next_boot(self.record)
        if record is not self.record and self.chance(8):
            slot = bootrecord.fallback(self.record)
        else:
            self.record = record
        if slot != RECOVERY and not self.loads(slot):
            slot = bootrecord.next_when_unbootable(self.record, slot)
            if slot != RECOVERY and not self.loads(slot):
                slot = RECOVERY
        self.booted = slot
        self.boots += 1
        self.trace.append(f"boot {slot}: {self.record}")

    def loads(self, slot: str) -> bool:
        image = self.slots[slot]
        return image is not None and image.health != "dead"


def ruined(rng: random.Random) -> Ruined:
    """Any record with which a device can be in recovery, whatever its slots were before."""
    world = Ruined(rng.randrange)
    default = rng.choice(SLOTS)
    second = bootrecord.other(default)
    records = [
        BootRecord(seq=9, default=default, failed=frozenset(rng.choice(["", second, default, "ab"]))),
        BootRecord(seq=9, default=default, trying=second, tries_left=rng.randint(0, 3), trial_id="lost"),
        bootrecord.restored(default, frozenset(SLOTS)),
        bootrecord.abandon(bootrecord.initial(), "a"),
    ]
    world.record = rng.choice(records)
    world.slots = {"a": None, "b": None}
    if rng.random() < 0.4:
        world.lame = {rng.choice(SLOTS)}
    world.boot()
    return world


def assign(world: World, number: int, health: str) -> Image:
    image = Image(number, health)
    world.images[image.sha256] = image
    world.assigned = job_for(f"assignment-{number}", image, "b")
    world.trace.append(f"assigned {image}")
    return image


def settle(world: World) -> None:
    world.calm = True
    world.boot()
    for _ in range(CALM_RUNS_MAX):
        if world.run() == "done" and world.record.trying is None and world.plan is None:
            return
    raise AssertionError(f"the device does not settle: {world.journal}")


def come_back(world: Ruined, rng: random.Random) -> None:
    """Releases until a good one was tried in peace; then the device runs it."""
    assert world.booted == RECOVERY
    number = 0
    for health in [*rng.choices(("good", "bad", "dead", "cut off"), k=rng.randint(0, 2)), "good"]:
        number += 1
        assign(world, number, health)
        for _ in range(rng.randint(0, RUNS_MAX)):
            world.run()
        settle(world)
        world.calm = False
    for _ in range(
        2
    ):  # a release may have failed for reasons of the link or the medium: the next one gets it
        if world.booted == RECOVERY:
            number += 1
            assign(world, number, "good")
            settle(world)
    assert world.booted == world.record.default, "the device does not come back"
    running = world.slots[world.booted]
    assert running is not None
    assert running.health == "good"
    assert world.booted not in world.lame
    finals = [told for told in world.told if told.assignment_id == f"assignment-{number}"]
    assert world.losses or finals[-1].state in FINAL_STATES


def test_a_device_with_two_bad_slots_comes_back_by_itself(seed: int) -> None:
    swapped = 0
    for number in range(WORLDS):
        rng = random.Random(f"{seed}:recovery:{number}")
        world = ruined(rng)
        try:
            come_back(world, rng)
        except AssertionError as problem:
            raise AssertionError("\n".join([f"world {seed}:{number}: {problem}", *world.trace])) from problem
        swapped += any("Abandon" in line for line in world.trace)
    assert swapped > WORLDS / 20, "the other slot was hardly ever needed"


def test_the_default_is_given_up_only_when_the_other_slot_takes_nothing() -> None:
    world = Ruined(lambda below: 0, calm=True)
    world.slots = {"a": None, "b": None}
    world.boot()
    assign(world, 1, "good")
    settle(world)
    assert (world.booted, world.record.default) == ("b", "b")
    assert not any("Abandon" in line for line in world.trace)


def test_with_two_slots_that_take_nothing_it_ends_and_says_so() -> None:
    world = Ruined(lambda below: 0, calm=True, lame={"a", "b"})
    world.slots = {"a": None, "b": None}
    world.boot()
    assign(world, 1, "good")
    settle(world)
    assert world.booted == RECOVERY
    assert [(told.state, told.code) for told in world.told if told.state in FINAL_STATES] == [
        ("failed", "slot-readback")
    ]
    assert world.record.failed == frozenset(SLOTS)


def recovery_state(record: BootRecord) -> State:
    job = unknown_job("b", "t1")
    return State(phase=Phase.INSTALLING, job=job, record=record, booted=RECOVERY, boot_id="x")


@pytest.mark.parametrize("code", ["connection-lost", "payload-part-hash", "disk-full", "slot-busy"])
def test_only_a_slot_that_fails_is_left_for_the_other(code: str) -> None:
    _, effects = machine.step(recovery_state(bootrecord.initial()), on.InstallFailed(code, "x"))
    assert not any(isinstance(effect, do.Abandon) for effect in effects)


def test_a_default_that_may_load_after_all_is_given_a_few_boots_before_it_is_given_up() -> None:
    state, rebooted = recovery_state(bootrecord.initial()), 0
    while True:
        state, effects = machine.step(state, on.InstallFailed("io-error", "x"))
        if not isinstance(effects[-1], do.Reboot):
            break
        rebooted += 1
        state, _ = machine.step(state, on.Started(bootrecord.initial(), RECOVERY, f"boot-{rebooted}"))
    assert rebooted == machine.LEAVE_REBOOTS_MAX
    assert effects[-1] == do.Abandon("a")


def test_a_slot_that_loads_again_is_not_given_up_for_what_was_before() -> None:
    state = State(phase=Phase.INSTALLING, job=unknown_job("b", "t1"), recoveries=3)
    state, _ = machine.step(state, on.Started(bootrecord.initial(), "a", "x"))
    assert state.recoveries == 0


def test_outside_of_recovery_no_slot_is_given_up() -> None:
    record = bootrecord.initial()
    state = State(phase=Phase.INSTALLING, job=unknown_job("b", "t1"), record=record, booted="a", boot_id="x")
    _, effects = machine.step(state, on.InstallFailed("slot-readback", "x"))
    assert not any(isinstance(effect, do.Abandon) for effect in effects)


def test_a_record_that_was_restored_over_a_whole_slot_boots_it() -> None:
    record = bootrecord.restored("b", frozenset("a"))
    state, effects = machine.step(State(), on.Started(record, RECOVERY, "x", restored=True))
    assert [type(effect) for effect in effects] == [do.Tell, do.Flush, do.Reboot]
    assert state.record == record
    record = bootrecord.restored("b", frozenset("ab"))
    _, effects = machine.step(State(), on.Started(record, RECOVERY, "x", restored=True))
    assert isinstance(effects[0], do.Tell)
    assert (effects[0].code, effects[-1]) == ("boot-record", do.Check("a"))
