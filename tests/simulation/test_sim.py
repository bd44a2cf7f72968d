"""Thousands of simulated updates, each with its own troubles: nothing half-written boots, the server knows
the truth, and every device comes to rest. A seed replays a world; it is in the message of a failure."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from twinlock.agent import outbox as outboxes
from twinlock.agent.install import Installer
from twinlock.lab.sim.fate import Troubles
from twinlock.lab.sim.storage import SimDevice, SimStore
from twinlock.lab.sim.world import Kind, World, replay

SEED = int(os.environ.get("TWINLOCK_SEED", "0"))
RUNS, LONG_RUNS = 70, 3000
TROUBLES = {
    "calm": Troubles(cuts_max=0),
    "cuts": Troubles(cuts_max=2),
    "many cuts": Troubles(cuts_max=6),
    "link": Troubles(cuts_max=2, network=0.08),
    "bad link": Troubles(cuts_max=2, network=0.3),
    "medium": Troubles(cuts_max=2, rot=0.1),
    "everything": Troubles(
        4, network=0.05, disk_full=0.01, loader=0.2, rot=0.05, postponements_max=2, clock=True
    ),
}
KINDS: tuple[Kind, ...] = ("good", "bad", "dead")


def worlds(name: str, kind: Kind, first: int, count: int) -> Counter[str]:
    """Runs that many worlds; the outcomes. Every violation fails, with all that happened in that world."""
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        seed = f"{SEED}:{name}:{kind}:{number}"
        world = World(seed, TROUBLES[name], kind)
        violations = world.run()
        assert violations == [], f"World({seed!r}, TROUBLES[{name!r}], {kind!r}):\n" + "\n".join(world.log)
        outcomes[world.server.outcomes[0].state] += 1
    return outcomes


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TROUBLES)
def test_every_world_comes_to_rest_with_a_complete_release(name: str, kind: Kind) -> None:
    outcomes = worlds(name, kind, 0, RUNS)
    if kind == "good":
        assert outcomes["succeeded"] >= 0.8 * RUNS, outcomes  # the others have a reason, see `World`
    else:
        assert outcomes["succeeded"] == 0


@pytest.mark.parametrize("name", TROUBLES)
def test_a_device_with_two_bad_slots_comes_back_from_recovery(name: str) -> None:
    outcomes: Counter[str] = Counter()
    for number in range(RUNS):
        seed = f"{SEED}:ruined:{name}:{number}"
        world = World(seed, TROUBLES[name], ruined=True)
        violations = world.run()
        assert violations == [], f"World({seed!r}, TROUBLES[{name!r}], ruined=True):\n" + "\n".join(world.log)
        assert "slot recovery" in "\n".join(world.log[:5])
        outcomes[world.server.outcomes[0].state] += 1
    assert outcomes["succeeded"] >= 0.8 * RUNS, outcomes


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TROUBLES)
def test_every_world_comes_to_rest_long(name: str, kind: Kind) -> None:
    worlds(name, kind, RUNS, LONG_RUNS)


def test_a_seed_repeats_a_world() -> None:
    troubles = TROUBLES["everything"]
    for number in range(10):
        first = replay(number, troubles, "good")
        assert replay(number, troubles, "good") == first
    assert replay(1, troubles, "good")[0] != replay(2, troubles, "good")[0]


def test_the_troubles_strike() -> None:
    """What is not met is not tested."""
    log = []
    for number in range(100):
        world = World(f"{SEED}:{number}", TROUBLES["everything"])
        world.run()
        log += world.log
    text = "\n".join(log)
    for trouble in ("kill before", "kill torn", "kill after", "power before", "power torn", "power after"):
        assert trouble in text
    for trouble in ("unreachable at", "busy at", "answer lost at", "cut at", "stall at", "flip at payloads"):
        assert trouble in text
    for trouble in ("disk full", "could not save the try", "kept wrong", "postponed"):
        assert trouble in text


def found(troubles: Troubles, kind: Kind = "good", runs: int = 150) -> list[str]:
    """What goes wrong first in so many worlds; stops at the first world where anything does."""
    for number in range(runs):
        violations = World(f"{SEED}:{number}", troubles, kind).run()
        if violations:
            return violations
    return []


def nothing(*args: object, **kwargs: object) -> None:
    """A guard that is taken out."""


@pytest.mark.parametrize(
    ("troubles", "take_out", "says"),
    [
        (
            Troubles(cuts_max=2),
            lambda patch: patch.setattr(Installer, "_invalidate", nothing),
            "may boot and is not complete",
        ),
        (
            Troubles(cuts_max=0, rot=0.5),
            lambda patch: patch.setattr(Installer, "_read_back", lambda *_: True),
            "may boot and is not complete",
        ),
        (
            Troubles(cuts_max=3),
            lambda patch: patch.setattr(SimDevice, "sync", nothing),
            "not complete",
        ),
        (
            Troubles(cuts_max=0, network=0.2),
            lambda patch: patch.setattr(outboxes.Outbox, "_raise_counter", nothing),
            "was used for two reports",
        ),
        (
            Troubles(cuts_max=3),
            lambda patch: patch.setattr(SimStore, "write", SimStore.write_volatile),
            "",
        ),
    ],
    ids=["invalidate", "read back", "flush the slot", "count reports", "flush the journal"],
)
def test_a_guard_that_is_taken_out_is_missed(
    monkeypatch: pytest.MonkeyPatch,
    troubles: Troubles,
    take_out: Callable[[pytest.MonkeyPatch], None],
    says: str,
) -> None:
    assert found(troubles, runs=50) == []
    take_out(monkeypatch)
    violations = found(troubles)
    assert violations
    assert any(says in one for one in violations), violations
