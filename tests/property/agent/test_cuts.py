"""One whole update, cut at every single call to the world outside: by a kill, and by a loss of power.

The first run of an update without a cut counts the calls. Then it is done again once for each of them, ending
there: before the call, after it, or in the middle of a write. What follows must be a device that boots a
complete release at every boot, ends with the new one committed, and tells the server the truth once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
import pytest

from tests.unit.agent.fakes import (
    Device,
    MemoryBoot,
    Packed,
    config_for,
    image_of,
    job_for,
    memory_slots,
    pack,
    plan_for,
)
from twinlock.agent import plan as plans
from twinlock.agent.outbox import Outbox
from twinlock.agent.plan import CheckAnswer, CheckRequest
from twinlock.agent.ports import Ports
from twinlock.agent.run import run_once
from twinlock.core.bootrecord import BootRecord
from twinlock.core.limits import MIB
from twinlock.core.protocol import FINAL_STATES, Report

OLD = pack(image_of("pq", tail_bytes=2560), "1.0", 0)
NEW = pack(image_of("ab0c", tail_bytes=4096), "1.1", 1)
BAD = pack(image_of("xy", tail_bytes=1024), "1.2", 2)
PART_BYTES_MAX = max(part.length for part in NEW.index.parts)
TAIL_BYTES = len(NEW.payload) - NEW.index.offsets()[-1]
# The gate of a trial fetches the smallest part again, and the index if that is gone.
PROBE_BYTES_MAX = TAIL_BYTES + max(
    min(part.length for part in one.index.parts if part.length) for one in (NEW, BAD)
)
RUNS_MAX = 12


class CutError(BaseException):
    """The process ends here. No `except Exception` may stop it."""


@dataclass
class Switch:
    """Ends the process at call number `at`; counts calls."""

    at: int
    rng: random.Random
    calls: int = 0

    def call(self, target: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        method = getattr(target, name)
        if self.calls != self.at:
            return method(*args, **kwargs)
        how = self.rng.choice(("before", "after", "torn"))
        if how == "torn" and name == "append":
            method(args[0], args[1][: self.rng.randint(0, len(args[1]))])
        elif how == "torn" and name == "write" and isinstance(args[0], bytes | bytearray | memoryview):
            method(args[0][: self.rng.randint(0, len(args[0]))], args[1])
        elif how == "after":
            method(*args, **kwargs)
        raise CutError


class Cuttable:
    """Any port, each call of which may be the last. What a call opens is cuttable too."""

    def __init__(self, target: Any, switch: Switch) -> None:
        self._target = target
        self._switch = switch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found) or name == "size_bytes":
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._switch.call(self._target, name, args, kwargs)
            return Cuttable(result, self._switch) if name == "open" else result

        return call


@dataclass
class Server:
    """Assigns one release until its outcome arrived. Every report is kept by its number."""

    packed: Packed
    reports: dict[int, Report] = field(default_factory=dict)

    @property
    def outcomes(self) -> list[Report]:
        return [report for report in self.reports.values() if report.state in FINAL_STATES]

    def take(self, report: Report) -> None:
        known = self.reports.setdefault(report.seq, report)
        assert known == report, "a report's number was used twice"


@dataclass
class World:
    """A device, its server, and what may happen to them."""

    seed: str
    packed: Packed = field(default_factory=lambda: NEW)
    healthy: bool = True

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.device = Device(
            slots=memory_slots(OLD.image, size_bytes=4 * MIB),
            boot=MemoryBoot(record=BootRecord(seq=1, default="a")),
        )
        self.device.network.serve(NEW, BAD)
        self.device.slots.devices["b"].data[: len(OLD.image)] = OLD.image
        self.server = Server(self.packed)
        self.config = config_for()
        self.cuts = self.power_losses = self.gates = 0

    def check(self, ports: Ports, request: CheckRequest) -> CheckAnswer:
        """What the metadata process does, through the same ports, so that it is cut as well."""
        self.gates += request.mode == "gate"
        outbox = Outbox(ports.store)
        waiting = outbox.waiting()
        for report in waiting:
            self.server.take(report)
        outbox.sent([report.seq for report in waiting])
        if request.mode != "poll" or self.server.outcomes:
            return CheckAnswer()
        job = job_for(self.packed)
        known = {"assignment_id": job.assignment_id, "product": job.product, "version": job.version}
        if request.running.image_sha256 == job.image_sha256 and request.is_committed:
            return CheckAnswer(runs_already=True, **known)  # type: ignore[arg-type]
        assert request.inactive == "b"
        ports.store.write(plans.PLAN, msgspec.json.encode(plan_for(self.packed)))
        return CheckAnswer(job=job, **known)  # type: ignore[arg-type]

    def run(self, at: int = 0) -> tuple[int | None, int]:
        """One process: its exit code (None when it was cut), and how many calls it made."""
        switch = Switch(at, self.rng)
        real = self.device.ports
        own: dict[str, Any] = {
            one.name: Cuttable(getattr(real, one.name), switch)
            for one in fields(Ports)
            if one.name in ("store", "slots", "boot", "network", "hooks")
        }
        ports = Ports(**{**{one.name: getattr(real, one.name) for one in fields(Ports)}, **own})
        self.device.checker.on_check = lambda request: self.check(ports, request)
        try:
            return run_once(ports, self.config), switch.calls
        except CutError:
            self.cuts += 1
            return None, switch.calls

    def boot(self) -> None:
        self.device.boot.reboot()
        slot = self.device.boot.slot
        held = [one for one in (OLD, self.packed) if self.device.holds(slot, one)]
        assert held, f"slot {slot} boots, which is not whole"

    def lose_power(self) -> None:
        self.power_losses += 1
        self.device.store.power_cut(self.rng)
        for slot in self.device.slots.devices.values():
            slot.power_cut(self.rng)
        self.boot()

    def update(self, at: int, after_cut: Callable[[], None]) -> int:
        """Runs and boots until nothing is to be done any more; one cut at call `at` of the whole update."""
        calls = 0
        for _ in range(RUNS_MAX):
            exit_code, made = self.run(at - calls)
            calls += made
            if exit_code is None:
                after_cut()
            elif exit_code == 10:
                self.boot()
            elif self.server.outcomes:
                return calls
        raise AssertionError(f"the device does not settle: {self.device.display.notes}")


def check_end(world: World, label: str) -> None:
    device, server = world.device, world.server
    assert device.boot.slot == device.boot.record.default, label
    assert device.boot.record.trying is None, label
    expected = world.packed if world.healthy else OLD
    assert device.holds(device.boot.slot, expected), label
    assert [one.state for one in server.outcomes] == ["succeeded" if world.healthy else "rolled_back"], label
    told = server.outcomes[0]
    again = device.network.twice()
    probes = world.gates * PROBE_BYTES_MAX
    if world.packed is NEW:
        most = world.cuts * max(PART_BYTES_MAX, TAIL_BYTES) + probes
        assert again <= most, f"{label}: {again} bytes came twice"
    # What came is noted part by part; a loss of power takes notes that were not flushed yet.
    unflushed = len(world.packed.payload) if world.power_losses else 0
    uncounted = device.network.bytes_sent - told.bytes_fetched
    assert 0 <= uncounted <= world.cuts * PART_BYTES_MAX + unflushed + probes, label
    numbers = sorted(server.reports)
    assert numbers == list(range(1, len(numbers) + 1)), f"{label}: numbers were left out: {numbers}"


def calls_of(world: World) -> int:
    calls = world.update(0, lambda: None)
    check_end(world, "without a cut")
    assert world.device.network.twice() <= PROBE_BYTES_MAX
    return calls


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
def test_an_update_cut_at_every_call(seed: int, power: bool) -> None:
    calls = calls_of(World(f"{seed}"))
    assert calls > 60, "the cuts do not reach the whole update"
    for at in range(1, calls + 1):
        label = f"{seed}:{at}:{power}"
        world = World(label)
        world.update(at, world.lose_power if power else lambda: None)
        check_end(world, label)


def test_a_bad_release_cut_at_every_call(seed: int) -> None:
    def unhealthy(label: str) -> World:
        world = World(label, BAD, healthy=False)
        from tests.unit.agent.fakes import hook

        world.device.hooks.required = [hook("10-app", 1, "does not start")]
        return world

    calls = calls_of(unhealthy(f"{seed}"))
    for at in range(1, calls + 1):
        label = f"{seed}:{at}"
        world = unhealthy(label)
        world.update(at, world.lose_power if at % 2 else lambda: None)
        check_end(world, label)
        told = world.server.outcomes[0]
        assert told.code in ("health-failed", "trial-exhausted"), label
        if told.code == "health-failed":
            assert "does not start" in told.detail, label
