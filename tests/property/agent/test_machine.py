"""Laws of the machine under any sequence of cuts, losses and failures.

The model asserts, at every effect, that no live slot is written, no unverified slot armed and no slot booted
that is not whole; here are the laws about how it ends.
"""

from __future__ import annotations

import random

import pytest

from tests.property.agent.machine_world import Image, World, job_for
from twinlock.core.protocol import FINAL_STATES

HEALTHS = ("good", "bad", "cut off", "dead")
WORLDS = 1500
RUNS_MAX = 30
CALM_RUNS_MAX = 40


def settle(world: World) -> None:
    """Boots and runs without any fault until the device says that there is nothing to do."""
    world.calm = True
    world.boot()
    for _ in range(CALM_RUNS_MAX):
        if world.run() == "done" and world.record.trying is None and world.plan is None:
            return
    raise AssertionError(f"the device does not settle: {world.journal}")


def live(world: World, rng: random.Random) -> None:
    """A few releases in a row, each over many troubled runs; the laws hold after each."""
    before = world.slots["a"]
    for number in range(1, 1 + rng.randint(1, 3)):
        image = Image(number, rng.choice(HEALTHS))
        world.images[image.sha256] = image
        world.assigned = job_for(f"assignment-{number}", image, "b")
        world.trace.append(f"assigned {image}")
        for _ in range(rng.randint(1, RUNS_MAX)):
            world.run()
        settle(world)
        world.calm = False

        assert world.booted == world.record.default, "a slot runs that is not committed"
        running = world.slots[world.booted]
        assert running is not None, "a half-written slot runs"
        assert running.health == "good", "a release that is not healthy was committed"
        assert running in (before, image), "it runs neither the old release nor the new one"
        finals = [
            told
            for told in world.told
            if told.assignment_id == f"assignment-{number}" and told.state in FINAL_STATES
        ]
        assert finals or world.losses, "the server never learns how it ended"
        for told in finals:
            assert (told.state == "succeeded") == (running == image), f"the server was told {told}"
        before = running


def test_a_device_always_ends_whole_and_honest(seed: int) -> None:
    for number in range(WORLDS):
        rng = random.Random(f"{seed}:{number}")
        world = World(rng.randrange)
        try:
            live(world, rng)
        except AssertionError as problem:
            raise AssertionError("\n".join([f"world {seed}:{number}: {problem}", *world.trace])) from problem


class StubbornLoader(World):
    """A loader that starts this slot, whatever the record says, and saves nothing."""

    starts = "a"

    def boot(self) -> None:
        self.booted = self.starts
        self.boots += 1


def assign(world: World, health: str) -> None:
    image = Image(1, health)
    world.images[image.sha256] = image
    world.assigned = job_for("one", image, "b")


def test_a_bootloader_that_never_starts_the_new_slot_is_not_asked_for_ever() -> None:
    world = StubbornLoader(lambda below: 0, calm=True)
    assign(world, "good")
    ends = [world.run() for _ in range(10)]
    assert ends[:4] == ["reboot"] * 4
    assert ends[4:] == ["done"] * 6
    assert [(told.state, told.code) for told in world.told if told.state in FINAL_STATES] == [
        ("rolled_back", "trial-exhausted")
    ]


def test_a_bootloader_that_keeps_a_bad_slot_is_left_alone_in_the_end() -> None:
    world = StubbornLoader(lambda below: 0, calm=True)
    assign(world, "bad")
    assert world.run() == "reboot"
    world.booted = world.starts = "b"
    ends = [world.run() for _ in range(10)]
    assert "reboot" not in ends[5:]
    assert [told.code for told in world.told][-1] == "boot-control"


@pytest.mark.parametrize(
    ("health", "code"),
    [("bad", "health-failed"), ("cut off", "server-unreachable"), ("dead", "trial-exhausted")],
)
def test_a_bad_release_is_rolled_back_and_the_reason_told(health: str, code: str) -> None:
    world = World(lambda below: 0, calm=True)
    assign(world, health)
    settle(world)
    assert [(told.state, told.code) for told in world.told if told.state in FINAL_STATES] == [
        ("rolled_back", code)
    ]
    assert world.booted == "a"
