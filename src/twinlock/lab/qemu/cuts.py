"""Real cuts on a real boot: the power goes at random writes of an update, again and again.

Each ride switches the device on with a cut planned at a random write. When it has happened, the medium is
looked at as the loader will see it: the record is readable, and what it points at is a whole release. Then
the device is switched on again. Updates follow one another until all cuts are used up; the last one runs to
its end without a cut, and the device must serve it.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from twinlock.core.errors import TwinlockError, error
from twinlock.lab.qemu.rig import FINAL_STATES
from twinlock.lab.qemu.volatile import CutPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.lab.qemu.stage import Stage

# A boot writes some 35 times, asking the server 50, an install 80 and more, arming and the reboot 110, the
# trial 70: what one ride does not reach, later ones do.
AT_WRITE_MAX: Final = 360
# A trial has 110 left: some of its cuts do not happen, so that downloads get theirs, too.
TRIAL_AT_WRITE_MAX: Final = 180
UPDATES_MAX: Final = 50
_RIDE_CPU_S_MAX: Final = 600.0


@dataclass(frozen=True, slots=True)
class CutDone:
    """One cut: what the server knew (`phase`), where the loader went before, and what boots next."""

    number: int
    at_write: int
    seed: int
    version: str
    phase: str
    boots: tuple[str, ...]
    unflushed: int
    kept: int
    next_slot: str
    next_version: str


@dataclass(frozen=True, slots=True)
class Cuts:
    """All cuts, and how each update under them ended, as (version, state, code)."""

    seed: int
    cuts: tuple[CutDone, ...]
    outcomes: tuple[tuple[str, str, str], ...]
    violations: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Ride:
    def __init__(self, stage: Stage, seed: int, count: int, prefix: str) -> None:
        self._stage = stage
        self._seed = seed
        self._rng = random.Random(seed)
        self._count = count
        self._versions = _versions(prefix)
        self.cuts: list[CutDone] = []
        self.outcomes: list[tuple[str, str, str]] = []
        self.violations: list[str] = []

    def run(self) -> None:
        while len(self.cuts) < self._count and len(self.outcomes) < UPDATES_MAX and not self.violations:
            self._update()

    def _update(self) -> None:
        """One update, under cuts for as long as there are any left."""
        stage = self._stage
        version = next(self._versions)
        stage.release(version)
        rollout = stage.rig.roll_out(version, stage.settings.device_id)
        while True:
            plan = None
            if len(self.cuts) < self._count:
                plan = self._plan(stage.rig.assignment(rollout)["state"])
            stage.power_on(plan)
            try:
                was_cut = stage.device.ride(
                    lambda: stage.rig.assignment(rollout)["state"] in FINAL_STATES,
                    f"the end of {version}",
                    cpu_s_max=_RIDE_CPU_S_MAX,
                )
            finally:
                found = stage.rig.assignment(rollout)
                boots = stage.boots()
                loss = stage.device.volatile.loss
                stage.power_off(self._rng.randrange(2**32))
            if not self._look(version):
                return
            if was_cut:
                assert plan is not None
                assert loss is not None
                self._note_cut(plan, version, found["state"], boots, loss.unflushed, loss.kept)
            if found["state"] in FINAL_STATES:
                break
        self._note_outcome(version, found)

    def _plan(self, state: str) -> CutPlan:
        """A cut anywhere in what an update in this state has still to do."""
        left = TRIAL_AT_WRITE_MAX if state in ("armed", "trial") else AT_WRITE_MAX
        return CutPlan(1 + int(self._rng.random() * left), self._rng.randrange(2**32))

    def _look(self, version: str) -> bool:
        try:
            self._stage.check_medium()
        except TwinlockError as problem:
            self.violations.append(f"update to {version}, after cut {len(self.cuts) + 1}: {problem.what}")
            return False
        return True

    def _note_cut(
        self, plan: CutPlan, version: str, phase: str, boots: tuple[str, ...], unflushed: int, kept: int
    ) -> None:
        slot, held = self._stage.check_medium()
        number = len(self.cuts) + 1
        done = CutDone(number, plan.at_write, plan.seed, version, phase, boots, unflushed, kept, slot, held)
        self.cuts.append(done)
        self._stage.note(
            f"cut {number}/{self._count} at write {plan.at_write}, {phase}: "
            f"{kept} of {unflushed} unflushed sectors survived; next boot: slot {slot}, {held}"
        )

    def _note_outcome(self, version: str, found: dict[str, Any]) -> None:
        """A release without a flaw must succeed, unless the cuts used up all tries of its trial."""
        self.outcomes.append((version, found["state"], found["code"]))
        self._stage.note(f"{version}: {found['state']} {found['code']}".rstrip())
        slot, held = self._stage.check_medium()
        if found["state"] == "succeeded" and held != version:
            self.violations.append(f"{version} was reported as succeeded, but {held} in slot {slot} boots")
        elif found["state"] != "succeeded" and found["code"] != "trial-exhausted":
            self.violations.append(f"{version} ended as {found['state']}: {found['code']} {found['detail']}")


def _versions(prefix: str) -> Iterator[str]:
    for number in range(1, UPDATES_MAX + 1):
        yield f"{prefix}{number}"


def run(stage: Stage, seed: int, count: int, prefix: str = "2.") -> Cuts:
    """`count` cuts on a stage that has begun and whose power is off. The same seed draws the same
    cuts, as shares of what an update has still to do.

    Its releases are called `prefix` and a number. The power is off again in the end.

    Raises InternalError `internal` when that takes more than `UPDATES_MAX` updates.
    """
    ride = _Ride(stage, seed, count, prefix)
    ride.run()
    if len(ride.cuts) < count and not ride.violations:
        raise error("internal", f"only {len(ride.cuts)} of {count} cuts in {UPDATES_MAX} updates")
    return Cuts(seed, tuple(ride.cuts), tuple(ride.outcomes), tuple(ride.violations))
