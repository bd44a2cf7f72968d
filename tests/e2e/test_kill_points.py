"""No state in which a half-written slot can boot: the real agent, killed with SIGKILL at seeded points.

A real server, real agent processes, real images. First one update is recorded, call by call; then points are
chosen by the seed, evenly over its phases, and each is tried on a device of its own. `TWINLOCK_SEED` repeats
a run, point by point; `TWINLOCK_LONG=1` tries a thousand.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest

from tests.e2e import kill_world
from tests.e2e.kill_world import BAD, GOOD, World
from twinlock.lab import ledger
from twinlock.lab.killable import PROGRAM
from twinlock.lab.killrun import Outcome, Run, Wanted
from twinlock.lab.ledger import Point
from twinlock.lab.virtual import VirtualDevice

SEED = int(os.environ.get("TWINLOCK_SEED", "0"))
GOOD_POINTS, BAD_POINTS, PAIRS = 104, 30, 10
CHUNKS, BAD_CHUNKS = 8, 3
LONG_CHUNKS, LONG_POINTS = 40, 1000
WANTED = {
    GOOD: Wanted("b", GOOD, "succeeded"),
    BAD: Wanted("a", "1.0", "rolled_back", "health-failed"),
}
NEEDED_PHASES = {
    GOOD: {ledger.DOWNLOAD, ledger.INSTALL, ledger.ARM, ledger.COMMIT, ledger.REPORT},
    BAD: {ledger.INSTALL, ledger.ARM, ledger.ROLL_BACK, ledger.REPORT},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = kill_world.build(tmp_path_factory.mktemp("world"))
    with made.life:
        yield made


@pytest.fixture(scope="module")
def traces(world: World) -> dict[str, list[str]]:
    """The calls of an update that nobody disturbs."""
    found = {}
    for version in (GOOD, BAD):
        outcome = attempt(world, f"trace-{version}", version, ())
        assert outcome.violations == []
        found[version] = outcome.calls
    return found


@dataclass
class Attempt:
    """One device, one update, killed at these points; all but what the server sees running is judged."""

    name: str
    device: VirtualDevice
    run: Run

    def end(self, world: World) -> Outcome:
        """The whole judgement. The device stays if there is something to look at."""
        outcome = self.run.judge_running(world.operator, self.name)
        if not outcome.violations:
            shutil.rmtree(self.device.folder)
        return outcome


def begin(
    world: World, name: str, version: str, kills: tuple[Point, ...], program: Sequence[str] = PROGRAM
) -> Attempt:
    device, rollout = world.device(name, version)
    calls = world.folder / f"{name}.calls"
    run = Run(device, world.known, calls, kills=kills, seed=SEED, program=program)
    rng = random.Random(f"{SEED}:{[point.argument for point in kills]}")
    run.go(rng)
    run.judge(world.operator, name, rollout, WANTED[version])
    return Attempt(name, device, run)


def attempt(
    world: World, name: str, version: str, kills: tuple[Point, ...], program: Sequence[str] = PROGRAM
) -> Outcome:
    return begin(world, name, version, kills, program).end(world)


def attempt_all(world: World, name: str, version: str, chosen: list[tuple[Point, ...]]) -> None:
    """Tries every entry; all that went wrong is told together."""
    begun = [begin(world, f"{name}-{number}", version, kills) for number, kills in enumerate(chosen)]
    failed = {}
    for kills, one in zip(chosen, begun, strict=True):
        outcome = one.end(world)
        if outcome.kills == 0 or (len(kills) == 1 and outcome.kills != 1):
            outcome.violations.append(f"killed {outcome.kills} times")
        if outcome.violations:
            failed[" and ".join(map(str, kills))] = outcome
    assert failed == {}


def summary(what: str, chosen: list[tuple[Point, ...]]) -> str:
    counts = Counter(point.phase for kills in chosen for point in kills)
    phases = ", ".join(f"{phase} {count}" for phase, count in sorted(counts.items()))
    return f"kill points, {what}: seed {SEED}, {len(chosen)} runs: {phases}"


def singles(trace: list[str], count: int, version: str) -> list[tuple[Point, ...]]:
    chosen = ledger.choose(trace, count, random.Random(f"{SEED}:{version}"))
    assert NEEDED_PHASES[version] <= {point.phase for point in chosen}
    return [(point,) for point in chosen]


def pairs(trace: list[str], count: int, version: str) -> list[tuple[Point, ...]]:
    """Two points: the second comes after the first, in what is left to do."""
    rng = random.Random(f"{SEED}:{version}:pairs")
    every = ledger.points(trace)
    found: list[tuple[Point, ...]] = []
    while len(found) < count:
        first, second = sorted(rng.sample(every, 2), key=lambda point: point.number)
        found.append(
            (first, second if second.number > first.number else replace(second, number=first.number + 1))
        )
    return found


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_an_update_survives_being_killed_anywhere(
    world: World, traces: dict[str, list[str]], chunk: int, show: Callable[[str], None]
) -> None:
    chosen = singles(traces[GOOD], GOOD_POINTS, GOOD)
    assert len(chosen) >= 100
    if chunk == 0:
        show(summary("a good release", chosen))
    attempt_all(world, f"good-{chunk}", GOOD, chosen[chunk::CHUNKS])


@pytest.mark.parametrize("chunk", range(BAD_CHUNKS))
def test_a_rollback_survives_being_killed_anywhere(
    world: World, traces: dict[str, list[str]], chunk: int, show: Callable[[str], None]
) -> None:
    chosen = singles(traces[BAD], BAD_POINTS, BAD)
    if chunk == 0:
        show(summary("a release that fails its health check", chosen))
    attempt_all(world, f"bad-{chunk}", BAD, chosen[chunk::BAD_CHUNKS])


def test_an_update_survives_being_killed_twice(
    world: World, traces: dict[str, list[str]], show: Callable[[str], None]
) -> None:
    chosen = pairs(traces[GOOD], PAIRS, GOOD)
    show(summary("a good release, killed twice", chosen))
    attempt_all(world, "twice", GOOD, chosen)


@pytest.mark.long
@pytest.mark.parametrize("chunk", range(LONG_CHUNKS))
def test_an_update_survives_a_thousand_kills(
    world: World, traces: dict[str, list[str]], chunk: int, show: Callable[[str], None]
) -> None:
    chosen = singles(traces[GOOD], LONG_POINTS, GOOD)
    chosen += pairs(traces[GOOD], LONG_POINTS - len(chosen), GOOD)
    assert len(chosen) == LONG_POINTS
    if chunk == 0:
        show(summary("a good release, long", chosen))
    attempt_all(world, f"long-{chunk}", GOOD, chosen[chunk::LONG_CHUNKS])


def test_the_same_seed_repeats_a_run_call_by_call(world: World, traces: dict[str, list[str]]) -> None:
    again = attempt(world, "again", GOOD, ())
    assert again.calls == traces[GOOD]
    chosen = singles(traces[GOOD], GOOD_POINTS, GOOD)
    assert chosen == singles(again.calls, GOOD_POINTS, GOOD)
    for number, kills in enumerate(chosen[:4]):
        first = attempt(world, f"first-{number}", GOOD, kills)
        assert attempt(world, f"second-{number}", GOOD, kills) == first
        assert first.kills == 1


@pytest.mark.parametrize(
    ("guard", "version", "call", "says"),
    [
        ("Installer._invalidate = lambda *_: None", GOOD, "slot.write", "slot b may boot, and does not hold"),
        ("Gate._required_hooks = lambda *_: []", BAD, "", "slot a should be committed"),
    ],
    ids=["a slot is marked bad before it is written", "a trial has to pass its health check"],
)
def test_a_guard_that_is_taken_out_is_missed(
    world: World, traces: dict[str, list[str]], guard: str, version: str, call: str, says: str
) -> None:
    sabotaged = (
        "import sys\n"
        "from twinlock.agent.health import Gate\n"
        "from twinlock.agent.install import Installer\n"
        "from twinlock.lab import killable\n"
        f"{guard}\n"
        "sys.exit(killable.main())"
    )
    torn = [point for point in ledger.points(traces[version]) if point.mode == ledger.TORN]
    kills = tuple(point for point in torn if point.label == call)[:1]
    outcome = attempt(world, f"sabotaged-{version}", version, kills, (sys.executable, "-c", sabotaged))
    assert [one for one in outcome.violations if says in one], outcome
