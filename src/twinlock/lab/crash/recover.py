"""From a crash state to rest: what boots, whether it is whole, and whether the agent gets to the end.

A recovery follows from what its state holds, so two states between which neither the loader nor the agent can
tell the difference have the same recovery. `observed` is what they can tell apart; a state that was observed
before, at a cut or at any later boot of a recovery, is not run again. A sample is run all the same, and has
to end alike (see `visit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent.plan import CHECKED
from twinlock.agent.run import LAST, LastRun
from twinlock.agent.store import TEMPORARY
from twinlock.core.limits import REPORT_SIZE_BYTES_MAX, SEGMENT_SIZE_BYTES
from twinlock.core.names import RECOVERY, SLOTS
from twinlock.core.protocol import Report
from twinlock.lab.crash.kernel import Kernel
from twinlock.lab.crash.kinds import LOADERS
from twinlock.lab.crash.machine import (
    REBOOT_WANTED,
    RUNS_MAX,
    SLOT_PATHS,
    STATE,
    Machine,
    held,
    release,
    told,
    whole_release,
    wrong_slot,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from twinlock.lab.crash.disk import Content, Disk
    from twinlock.lab.crash.machine import Case, State

BOOTS_MAX: Final = 16
LOG_LINES_MAX: Final = 200
RIGHT: Final = "segments that are right"
LOST_MEMORY: Final = frozenset({"journal-corrupt", "internal", "boot-record"})

Told = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a recovery went: what was wrong, and what the server was told in the end."""

    violations: tuple[str, ...]
    told: frozenset[Told]


def unbootable(case: Case, disk: Disk) -> list[str]:
    """What is wrong with what the loader would start now, or go on to when that does not load."""
    loader, kernel = LOADERS[case.loader], Kernel(disk)
    order = loader.start(kernel)
    if not order or order[0] == RECOVERY:
        return [f"nothing but {RECOVERY} would boot" if order else "nothing would boot"]
    wrong = {slot: wrong_slot(loader, kernel, slot) for slot in order if slot != RECOVERY}
    return [f"slot {slot} may boot, and {what}" for slot, what in wrong.items() if what]


# --- what can be told apart -------------------------------------------------------------------------------


def observed(case: Case, state: State) -> Hashable:
    """All of a state that its recovery can depend on, and the violations of a recovery.

    Of a slot that is the release that it holds whole, and which segments are right: the installer reads
    whole segments, compares their hashes and writes whole segments. Of the record, what its readers make of
    it. Of the files everything, but for `*.tmp`, which nobody reads, and what only measures or informs.
    """
    files = frozenset(
        (name, _observed_file(name.removeprefix(f"{STATE}/"), data))
        for name, data in state.disk.files.items()
        if not name.endswith((TEMPORARY, f"/{CHECKED}"))
    )
    slots = tuple(_observed_slot(state.disk.media[SLOT_PATHS[slot]]) for slot in SLOTS)
    record = LOADERS[case.loader].seen(state.disk)
    reports = tuple((seq, told(one)) for seq, one in sorted(state.reports.items()))
    return case, files, state.disk.folders, slots, record, reports, state.epoch, state.tokens, state.wish


def _observed_slot(content: Content) -> Hashable:
    if RIGHT not in content.known:
        image = release("1.1").image
        segments = range(0, len(image), SEGMENT_SIZE_BYTES)
        right = tuple(content.data.startswith(image[at : at + SEGMENT_SIZE_BYTES], at) for at in segments)
        content.known[RIGHT] = right
    return whole_release(content), content.known[RIGHT]


def _observed_file(name: str, data: bytes) -> Hashable:
    try:
        if name == LAST:
            return msgspec.json.decode(data, type=LastRun).code
        if name.startswith("outbox/") and len(data) <= REPORT_SIZE_BYTES_MAX:
            return told(msgspec.json.decode(data, type=Report))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return data
    return data


# --- recoveries -------------------------------------------------------------------------------------------


class Recoveries:
    """Runs recoveries, and remembers how those ended that cannot be told apart from others."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Ending] = {}
        self.run = 0  # recoveries of which at least the first boot was run
        self.boots = 0
        self.log: list[str] = []

    def ending(self, case: Case, state: State) -> Ending:
        """How the recovery from this state ends."""
        way: list[tuple[Hashable, tuple[str, ...]]] = []
        end = Ending((f"no rest in {BOOTS_MAX} boots",), frozenset())
        for _ in range(BOOTS_MAX):
            key = observed(case, state)
            if key in self._known:
                end = self._known[key]
                break
            self.run += not way
            machine = Machine(case, state)
            violations, over = self._boot(machine)
            way.append((key, violations))
            if over:
                end = Ending(judge(machine), frozenset(map(told, machine.server.reports.values())))
                break
            state = machine.state()
        for key, violations in reversed(way):
            end = Ending((*violations, *end.violations), end.told)
            self._known[key] = end
        return end

    def _boot(self, machine: Machine) -> tuple[tuple[str, ...], bool]:
        """One boot until rest or the next reboot: what was wrong, and whether it is at rest."""
        self.boots += 1
        slot = machine.power_on()
        violations = booted_wrong(machine, slot)
        code = 0
        for _ in range(RUNS_MAX):
            if violations:
                break
            code = machine.run_agent()
            violations += unbootable(machine.case, machine.kernel.disk())
            if code == REBOOT_WANTED or (code == 0 and machine.at_rest()):
                break
        else:
            violations.append(f"the agent did not come to rest: {machine.log[-1]}")
        self.log = [*self.log[-LOG_LINES_MAX:], *machine.log]
        return tuple(violations), bool(violations) or code != REBOOT_WANTED


def booted_wrong(machine: Machine, slot: str) -> list[str]:
    """What is wrong with what the loader has just started."""
    what = wrong_slot(machine.loader, machine.kernel, slot)
    if what:
        return [f"the loader started {slot or 'nothing'}, which {what}"]
    version = held(machine.kernel, slot)
    if machine.case.kind == "dead" and version == "1.1":
        return [f"the loader starts slot {slot} for ever, which never comes up"]
    return []


def judge(machine: Machine) -> tuple[str, ...]:
    """What is wrong at rest: the slot, the outcome that the server knows, the numbers of the reports."""
    good = machine.case.kind == "good"
    slot, version, outcome = ("b", "1.1", "succeeded") if good else ("a", "1.0", "rolled_back")
    record = machine.record()
    wrong = []
    if record is None or (record.default, record.trying) != (slot, None):
        wrong.append(f"slot {slot} should be committed: {record}")
    if held(machine.kernel, slot) != version:
        wrong.append(
            f"slot {slot} should hold {version}, it holds {held(machine.kernel, slot) or 'nothing whole'}"
        )
    outcomes = [(one.state, one.code) for one in machine.server.outcomes]
    if [state for state, _ in outcomes] != [outcome]:
        wrong.append(f"the server should know one outcome, {outcome}; it has {outcomes}")
    wrong += _judge_reports(machine.server.reports)
    return (*wrong, *machine.server.conflicts)


def _judge_reports(reports: Mapping[int, Report]) -> list[str]:
    wrong = []
    numbers = sorted(reports)
    if numbers != list(range(1, len(numbers) + 1)):
        wrong.append(f"report numbers were left out: {numbers}")
    strange = [(one.state, one.code) for one in reports.values() if one.code in LOST_MEMORY]
    if strange:
        wrong.append(f"the agent lost its memory: {strange}")
    return wrong
