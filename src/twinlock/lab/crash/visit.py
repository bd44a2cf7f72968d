"""Every crash state of an update, for every loader: `Enumeration` records it, cuts everywhere, and recovers.

A *crash point* is the instant after one lasting change of a recorded run: a write, a change of names, a
flush, the loader's own write, a report that reached the server. A *state* is what a loss of power at a crash
point may leave: a choice of `choices`. States with the same bytes on every medium, and the same reports at
the server, count once.

At each state what the loader would start has to be a complete release, and the recovery has to end with the
slot and the outcome that belong to the release, and with every report delivered that the agent had been told
is queued. Of a bad and of a dead release only what comes after its first boot is visited, since what comes
before is as with a good one. A sample of the recoveries is cut again, everywhere, at a smaller bound.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from twinlock.core.errors import error
from twinlock.lab import ledger
from twinlock.lab.crash import choices
from twinlock.lab.crash.disk import Names, Sector, Size
from twinlock.lab.crash.kernel import Kernel
from twinlock.lab.crash.kinds import LOADERS
from twinlock.lab.crash.loaders import RECORD
from twinlock.lab.crash.machine import (
    LOADER_SAVES,
    REBOOT_WANTED,
    RUNS_MAX,
    Case,
    Machine,
    State,
    first_state,
    no_other_storage,
    told,
)
from twinlock.lab.crash.recover import BOOTS_MAX, Recoveries, unbootable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from twinlock.core.protocol import Report
    from twinlock.lab.crash.choices import Choice
    from twinlock.lab.crash.disk import Snapshot, Unit
    from twinlock.lab.crash.machine import Kind
    from twinlock.lab.crash.recover import Told

BOUND: Final = 32  # subsets for one crash point
BOUND_MIN: Final = 8
BOUND_MAX: Final = 65536
AGAIN: Final = 3  # recoveries of one run that are cut again
AGAIN_BOUND: Final = 8
VIOLATIONS_MAX: Final = 10_000
PROOFS: Final = 8  # recoveries of one run that are run though they need not be
KINDS: Final[tuple[Kind, ...]] = ("good", "bad", "dead")
BOOT: Final = "boot"
RECORDS: Final = frozenset({RECORD})


@dataclass(frozen=True, slots=True)
class Point:
    """One crash point: the call that was under way, in which boot (from 1) of the run, and all there was."""

    number: int
    label: str
    snapshot: Snapshot
    reports: Mapping[int, Report]
    queued: frozenset[Told]
    boot: int

    @property
    def phase(self) -> str:
        return BOOT if self.label == LOADER_SAVES else ledger.phase_of(self.label)

    def state(self, choice: Choice, epoch: int) -> State:
        """What is there when this is chosen."""
        return State(self.snapshot.after_loss(choice.kept), self.reports, epoch)


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be, in the state with this id."""

    state: str
    loader: str
    phase: str
    call: str
    what: str


@dataclass
class Result:
    """What was visited, by loader and phase.

    `exhaustive` counts the crash points all of whose subsets were visited, `recoveries` the states whose
    recovery was run, `boots` the boots in those, `proofs` the recoveries that were run once more.
    """

    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    points: int = 0
    exhaustive: int = 0
    recoveries: int = 0
    boots: int = 0
    proofs: int = 0
    violations: list[Violation] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.states.values())


@dataclass(frozen=True, slots=True)
class Settings:
    """What to visit: `bound` subsets for one crash point, `again` recoveries of each run cut again.

    `proofs` recoveries of each run that need not be run are run all the same. It ends early when there are
    `violations_max` violations.
    """

    loaders: Sequence[str] = tuple(LOADERS)
    bound: int = BOUND
    seed: int = 0
    again: int = AGAIN
    proofs: int = PROOFS
    violations_max: int = VIOLATIONS_MAX

    def __post_init__(self) -> None:
        unknown = [name for name in self.loaders if name not in LOADERS]
        if unknown:
            raise error("input-invalid", f"no loader is called {unknown[0]!r}: {', '.join(LOADERS)}")
        if not BOUND_MIN <= self.bound <= BOUND_MAX:
            raise error("input-invalid", f"the bound is from {BOUND_MIN} to {BOUND_MAX}, not {self.bound}")


def record(case: Case, state: State) -> list[Point]:
    """The crash points of a run from this state to rest."""
    points: list[Point] = []

    def happened() -> None:
        reports = dict(machine.server.reports)
        snapshot = machine.kernel.snapshot()
        if points and points[-1].snapshot == snapshot and points[-1].reports.keys() == reports.keys():
            return
        delivered = set(map(told, reports.values()))
        queued = frozenset(one for one in map(told, machine.queued) if one not in delivered)
        points.append(Point(len(points), machine.label, snapshot, reports, queued, machine.boots))

    machine = Machine(case, state, happened)
    for _ in range(BOOTS_MAX):
        machine.power_on()
        for _ in range(RUNS_MAX):
            code = machine.run_agent()
            if code == REBOOT_WANTED:
                break
            if code == 0 and machine.at_rest():
                return points
    return points


class Job(NamedTuple):
    """One crash point to visit: where it is, and how closely."""

    case: Case
    point: Point
    way: str
    bound: int
    epoch: int


class Enumeration:
    """One enumeration. `advance` is told that a crash point is done, after `total` is known."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._recoveries = Recoveries()
        self._seen: set[int] = set()
        self._spared: dict[Case, list[tuple[Job, str, State]]] = {}
        self._draw = Random(f"{settings.seed} proofs")
        self._spared_count: Counter[Case] = Counter()
        self.result: Final = Result()

    def run(self, begin: Callable[[int], Callable[[int], None]]) -> Result:
        """Visits everything. `begin` gets the number of crash points, and gives what to tell of each done."""
        with no_other_storage():
            jobs = list(self._jobs())
            advance = begin(len(jobs))
            for job in jobs:
                if len(self.result.violations) >= self._settings.violations_max:
                    break
                self._cut(job)
                advance(1)
            self._prove()
        self.result.recoveries = self._recoveries.run
        self.result.boots += self._recoveries.boots
        return self.result

    def _jobs(self) -> Iterator[Job]:
        settings = self._settings
        for case in every_case(settings.loaders):
            points = first_run(case)
            yield from (Job(case, point, case.name, settings.bound, 1) for point in points)
            yield from self._again(case, points)

    def _again(self, case: Case, points: Sequence[Point]) -> Iterator[Job]:
        """The crash points of a sample of the recoveries: two cuts in a row, torn sectors in both."""
        rng = Random(f"{self._settings.seed} again {case.name}")
        for point in rng.sample(points, min(self._settings.again, len(points))):
            found = list(choices.every(point.snapshot.pending, AGAIN_BOUND, rng, RECORDS))
            choice = rng.choice(found)
            for second in second_run(case, point, choice):
                way = f"{case.name}/{point.number}/{choice.name}"
                yield Job(case, second, way, AGAIN_BOUND, 2)

    def _cut(self, job: Job) -> None:
        """Visits the states of one crash point."""
        pending = job.point.snapshot.pending
        rng = Random(f"{self._settings.seed} {job.way} {job.point.number}")
        self.result.points += 1
        self.result.exhaustive += 1 << min(len(pending), 64) <= job.bound
        for choice in choices.every(pending, job.bound, rng, RECORDS):
            self._visit(job, choice)

    def _visit(self, job: Job, choice: Choice) -> None:
        case, point = job.case, job.point
        state = point.state(choice, job.epoch)
        key = hash((case, state.disk.key, tuple((seq, told(one)) for seq, one in state.reports.items())))
        if key in self._seen:
            return
        self._seen.add(key)
        self.result.states[case.loader, point.phase] += 1
        name = f"{job.way}/{point.number}/{choice.name}"
        before = self._recoveries.run
        found = violations_of(case, point, state, self._recoveries)
        if self._recoveries.run == before:
            self._spare(job, name, state)
        self._add(job, name, found)

    def _add(self, job: Job, name: str, found: Sequence[str]) -> None:
        point = job.point
        self.result.violations += [
            Violation(name, job.case.loader, point.phase, point.label, what) for what in found
        ]

    # --- the proof that what is not run again need not be ---------------------------------------------------

    def _spare(self, job: Job, name: str, state: State) -> None:
        """Draws which of the recoveries that are not run are run all the same in the end."""
        kept = self._spared.setdefault(job.case, [])
        self._spared_count[job.case] += 1
        if len(kept) < self._settings.proofs:
            kept.append((job, name, state))
        elif (at := self._draw.randrange(self._spared_count[job.case])) < self._settings.proofs:
            kept[at] = (job, name, state)

    def _prove(self) -> None:
        for case, kept in self._spared.items():
            for job, name, state in kept:
                alone = Recoveries()
                self.result.proofs += 1
                if alone.ending(case, state) != self._recoveries.ending(case, state):
                    self._add(job, name, ["its recovery ends otherwise than the one that it should be like"])
                self.result.boots += alone.boots


def every_case(loaders: Sequence[str]) -> Iterator[Case]:
    """What is gone through, in this order."""
    for loader in loaders:
        yield from (Case(loader, kind) for kind in KINDS)


def first_run(case: Case) -> list[Point]:
    """The crash points of an update without a cut; of a bad release those from its first boot on."""
    points = record(case, first_state(case))
    if case.kind == "good":
        return points
    return [point for point in points if point.boot > 1]


def second_run(case: Case, point: Point, choice: Choice) -> list[Point]:
    """The crash points of the recovery from a state, with what had been queued before the first cut."""
    return [with_queued(second, point.queued) for second in record(case, point.state(choice, 1))]


def with_queued(point: Point, queued: frozenset[Told]) -> Point:
    """A crash point of a recovery that owes the reports that were queued before the cut, too."""
    delivered = set(map(told, point.reports.values()))
    return replace(point, queued=point.queued | {one for one in queued if one not in delivered})


def violations_of(case: Case, point: Point, state: State, recoveries: Recoveries) -> list[str]:
    """What is wrong with one state, and with its recovery."""
    found = unbootable(case, state.disk)
    end = recoveries.ending(case, state)
    lost = [report for report in point.queued if report not in end.told]
    found += end.violations
    found += [f"a queued report was lost: {report[1]} {report[3]}".rstrip() for report in lost]
    return found


# --- one state again --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replay:
    """One state, looked at closely. `units` says of each unflushed unit what becomes of it."""

    point: Point
    units: list[tuple[str, str]]
    starts: list[str]
    log: list[str]
    reports: list[tuple[str, str]]
    violations: list[str]


def replay(name: str) -> Replay:
    """The state with this id. Raises InputError `input-invalid` for an id that no enumeration gives."""
    parts = name.split("/")
    case = next((one for one in every_case(tuple(LOADERS)) if one.name == "/".join(parts[:2])), None)
    if case is None or len(parts) not in (4, 6):
        raise error("input-invalid", f"{name[:80]!r} is no id of a state, like file/good/57/kept-3f")
    with no_other_storage():
        point, choice = _chosen(first_run(case), parts[2], parts[3])
        epoch = 1
        if len(parts) == 6:
            point, choice = _chosen(second_run(case, point, choice), parts[4], parts[5])
            epoch = 2
        state = point.state(choice, epoch)
        starts = LOADERS[case.loader].start(Kernel(state.disk))
        recoveries = Recoveries()
        violations = violations_of(case, point, state, recoveries)
        end = recoveries.ending(case, state)
    names = {file: name for name, file in point.snapshot.names.items()}
    for one in point.snapshot.pending:
        if isinstance(one.unit, Names):
            names |= {file: name for name, file in one.unit.leads_to if file is not None}
    units = [(described(one.unit, names), fate(one.unit, choice)) for one in point.snapshot.pending]
    reports = sorted((report[1], report[3]) for report in end.told)
    return Replay(point, units, starts, recoveries.log, reports, violations)


def _chosen(points: Sequence[Point], number: str, choice: str) -> tuple[Point, Choice]:
    for point in points:
        if str(point.number) == number:
            return point, choices.named(point.snapshot.pending, choice, RECORDS)
    has = f"{points[0].number} to {points[-1].number}" if points else "none"
    raise error("input-invalid", f"there is no crash point {number[:20]!r} in this run, which has {has}")


def fate(unit: Unit, choice: Choice) -> str:
    """What becomes of a unit."""
    if unit in choice.kept:
        return "survives"
    if isinstance(unit, Sector) and choice.is_torn:
        for one in choice.kept:
            if isinstance(one, Sector) and (one.where, one.number) == (unit.where, unit.number):
                return "is torn"
    return "is lost"


def described(unit: Unit, names: Mapping[int, str]) -> str:
    """A unit in words; `names` are those that files have or are about to get."""
    match unit:
        case Sector(where=str() as medium):
            return f"sector {unit.number} of {medium}"
        case Sector(where=int() as file):
            return f"sector {unit.number} of {names.get(file, '')} (file {file})"
        case Size(file=file):
            return f"size {unit.size_bytes} of {names.get(file, '')} (file {file})"
        case Names():
            changes = (
                f"{name} is removed" if file is None else f"{name} is file {file}"
                for name, file in unit.leads_to
            )
            return " and ".join(changes)
    raise error("internal", f"an unknown unit: {unit}")
