"""One update with the agent killed on the way, and what must hold whatever happens.

`Run` lets a virtual device go through an update under `killable`; each time that the agent is killed it looks
at the disk as the loader would, and then goes on: with a reset, as after a power cut, or in the same boot, as
after a crash. Everything that is not as it must be is collected as a sentence; there should be none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from twinlock.core import bootrecord
from twinlock.core.errors import TwinlockError
from twinlock.core.names import RECOVERY, SLOTS
from twinlock.core.protocol import FINAL_STATES
from twinlock.lab import ledger
from twinlock.lab.killable import PROGRAM
from twinlock.lab.virtual import REBOOT_WANTED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from random import Random

    from twinlock.lab.ledger import Point
    from twinlock.lab.virtual import Release, VirtualDevice
    from twinlock.publish.upload import Operator

KILLED: Final = -9
RUNS_MAX: Final = 24
SEEN_WAIT_S: Final = 20.0
_STEP_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the update has to end: the committed slot, the outcome at the server, and its code."""

    slot: str
    version: str
    outcome: str
    code: str = ""


@dataclass(slots=True)
class Outcome:
    """How a run went. Two runs with the same points and generator give equal ones."""

    kills: int = 0
    exit_codes: list[int] = field(default_factory=list)
    boots: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    reports: list[tuple[int, str, str]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def unbootable(device: VirtualDevice, known: Sequence[Release]) -> list[str]:
    """What is wrong with what the loader could start now: nothing that may boot is less than a release."""
    try:
        record = device.disk.record()
    except TwinlockError as problem:
        return [f"the boot record is lost: {problem.what}"]
    wrong = []
    choices = {bootrecord.next_boot(record)[0], bootrecord.fallback(record)}
    if RECOVERY in choices:
        wrong.append(f"nothing but recovery would boot: {record}")
    for slot in SLOTS:
        may_boot = slot in choices or slot not in record.failed
        if may_boot and device.release_in(slot, known) is None:
            wrong.append(f"slot {slot} may boot, and does not hold a complete release: {record}")
    return wrong


class Run:
    """One device's way through one update. `path` is where the calls are noted; it must not exist."""

    def __init__(
        self,
        device: VirtualDevice,
        known: Sequence[Release],
        path: Path,
        *,
        kills: Sequence[Point] = (),
        seed: int = 0,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._device = device
        self._known = known
        self._path = path
        self._program = [*program, "--ledger", str(path), "--seed", str(seed)]
        for point in kills:
            self._program += ["--kill", point.argument]
        self._program.append("--")
        self.outcome: Final = Outcome()
        self._holds: tuple[str, str, str] | None = None

    def go(self, rng: Random) -> Outcome:
        """From a reset to rest; `rng` decides whether a killed agent starts again with or without a reset."""
        self._boot()
        for _ in range(RUNS_MAX):
            done = self._device.run_agent(program=self._program)
            self.outcome.exit_codes.append(done.exit_code)
            self.outcome.violations += unbootable(self._device, self._known)
            if done.exit_code == 0:
                break
            if done.exit_code == KILLED:
                self.outcome.kills += 1
                if rng.random() < 0.5:
                    continue
            elif done.exit_code != REBOOT_WANTED:
                self._wrong(f"the agent ended with {done.exit_code}: {done.stderr[-500:]}")
                break
            self._boot()
        else:
            self._wrong(f"the device did not come to rest in {RUNS_MAX} runs")
        self.outcome.calls = ledger.read(self._path)
        return self.outcome

    def _boot(self) -> None:
        boot = self._device.boot()
        self.outcome.boots.append(boot.slot)
        if boot.slot == RECOVERY or self._device.release_in(boot.slot, self._known) is None:
            self._wrong(f"the loader started {boot.slot}, which holds no complete release")

    def _wrong(self, what: str) -> None:
        self.outcome.violations.append(what)

    # --- in the end -----------------------------------------------------------------------------------------

    def judge(self, operator: Operator, device_id: str, rollout_id: str, wanted: Wanted) -> Outcome:
        """Adds what is wrong with how it ended, on the device and at the server; then `judge_running`."""
        device, record = self._device, self._device.disk.record()
        if (record.default, record.trying) != (wanted.slot, None):
            self._wrong(f"slot {wanted.slot} should be committed: {record}")
        held = device.release_in(wanted.slot, self._known)
        if held is None or held.version != wanted.version:
            self._wrong(f"slot {wanted.slot} should hold {wanted.version}, it holds {held}")
        self._judge_reports(operator, device_id)
        rows: list[dict[str, Any]] = operator.get(f"/rollouts/{rollout_id}")["assignments"]
        found = [(row["state"], row["code"]) for row in rows if row["device_id"] == device_id]
        if found != [(wanted.outcome, wanted.code)]:
            self._wrong(f"the server should know {wanted.outcome} {wanted.code}, it has {found}")
        if held is not None:
            self._holds = (held.version, held.sha256, wanted.slot)
        return self.outcome

    def _judge_reports(self, operator: Operator, device_id: str) -> None:
        reports: list[dict[str, Any]] = operator.get(f"/devices/{device_id}/reports")["reports"]
        told = sorted((one["seq"], one["state"], one["code"]) for one in reports)
        self.outcome.reports = told
        numbers = [seq for seq, _, _ in told]
        if numbers != list(range(1, len(numbers) + 1)):
            self._wrong(f"reports are lost or doubled: {numbers}")
        outcomes = [state for _, state, _ in told if state in FINAL_STATES]
        if len(outcomes) != 1:
            self._wrong(f"one outcome should be reported, these were: {outcomes}")
        strange = [one for one in told if one[2] in ("journal-corrupt", "internal", "boot-record")]
        if strange:
            self._wrong(f"the agent lost its memory: {strange}")

    def judge_running(self, operator: Operator, device_id: str) -> Outcome:
        """The server comes to know what runs. It writes that down in batches: judge many runs, then ask."""
        until = time.monotonic() + SEEN_WAIT_S
        wanted = self._holds
        while wanted is not None:
            said = operator.get(f"/devices/{device_id}")["running"] or {}
            found = (said.get("version"), said.get("image_sha256"), said.get("slot"))
            if found == wanted:
                break
            if time.monotonic() > until:
                self._wrong(f"the server should see {wanted} running, it sees {found}")
                break
            time.sleep(_STEP_S)
        return self.outcome
