"""A model of a device for the machine: boot record, slots, journal, server, and cuts at every point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from twinlock.agent import effects as do
from twinlock.agent import events as on
from twinlock.agent import machine
from twinlock.agent.plan import Job, trial_id
from twinlock.agent.states import Phase, State, Verdict
from twinlock.core import bootrecord
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import EXIT_CODES, Kind, TwinlockError
from twinlock.core.names import RECOVERY
from twinlock.core.protocol import FINAL_STATES

TRIES = 3
EFFECTS_MAX = 400  # in one run; more means that the machine does not come to an end


class CutError(Exception):
    """The process ends here: killed, or the power is gone."""


@dataclass(frozen=True)
class Image:
    """What a slot can hold; `health` is what its trial will find."""

    number: int
    health: str  # "good", "bad", "cut off", "dead" (never comes up)

    @property
    def sha256(self) -> bytes:
        return self.number.to_bytes(32, "big")


@dataclass
class World:
    """`choose(n)` draws a number below n; 0 is always the calm choice."""

    choose: Callable[[int], int]
    record: BootRecord = field(default_factory=bootrecord.initial)
    slots: dict[str, Image | None] = field(default_factory=lambda: {"a": Image(0, "good"), "b": None})
    booted: str = "a"
    boots: int = 0
    journal: State | None = None
    damaged: bool = False
    plan: Job | None = None
    losses: int = 0
    images: dict[bytes, Image] = field(default_factory=dict)
    assigned: Job | None = None
    done: dict[str, str] = field(default_factory=dict)  # by the server, on final reports
    condemned: set[str] = field(default_factory=set)
    told: list[do.Tell] = field(default_factory=list)
    delivered: int = 0
    verified_this_run: set[str] = field(default_factory=set)
    calm: bool = False
    lame: set[str] = field(default_factory=set)  # slots that keep nothing
    trace: list[str] = field(default_factory=list)

    def chance(self, one_in: int) -> bool:
        return not self.calm and self.choose(one_in) == one_in - 1

    def maybe_cut(self) -> None:
        if self.chance(12):
            raise CutError

    # --- the loader and the power

    def boot(self) -> None:
        """What a bootloader does, now and then without being able to save or to load."""
        slot, record = bootrecord.next_boot(self.record)
        if record is not self.record and self.chance(8):
            slot = bootrecord.fallback(self.record)  # it could not save
        else:
            self.record = record
        image = None if slot == RECOVERY else self.slots[slot]
        if slot != RECOVERY and (image is None or image.health == "dead"):
            assert slot == self.record.trying, "a slot that is not whole is booted without a trial"
            assert image is not None, "a trial boots a slot that is not whole"
            slot = bootrecord.next_when_unbootable(self.record, slot)
        elif slot == self.record.default and self.chance(10):
            slot = bootrecord.next_when_unbootable(self.record, slot)  # it does not load this time
            assert slot == RECOVERY or self.slots[slot] is not None, "falls back to a slot that is not whole"
        self.booted = slot
        self.boots += 1
        self.trace.append(f"boot {slot}: {self.record}")

    # --- one run of the agent

    def run(self) -> str:
        """One run to its end: "done", "reboot" or "cut"."""
        self.verified_this_run = set()
        try:
            return self._run()
        except CutError:
            if self.chance(4):
                self.journal, self.damaged = None, bool(self.choose(2))
                self.losses += 1
                if self.choose(2):
                    self.plan = None
            self.trace.append(
                f"cut; journal {self.journal and self.journal.phase}, plan {self.plan is not None}"
            )
            if self.choose(2):
                self.boot()
            return "cut"

    def _run(self) -> str:
        state = self.journal or State()
        event: on.Event | None = on.Started(
            self.record, self.booted, f"boot-{self.boots}", self.plan, self.damaged
        )
        self.damaged = False
        for _ in range(EFFECTS_MAX):
            assert event is not None, "a step ended without an event or an end"
            state, effects = machine.step(state, event)
            self.trace.append(f"{event} -> {state.phase}: {effects}")
            assert effects, f"no effects in {state.phase} for {event}"
            self.maybe_cut()
            self.journal = state
            event = None
            for effect in effects:
                assert event is None, f"an effect follows the one that brings an event: {effects}"
                self.maybe_cut()
                if isinstance(effect, do.Finish):
                    assert effect.exit_code != EXIT_CODES[Kind.INTERNAL], effect
                    return "done"
                if isinstance(effect, do.Reboot):
                    self.boot()
                    return "reboot"
                event = self.perform(effect, state)
        raise AssertionError("the run does not come to an end")

    def perform(self, effect: do.Effect, state: State) -> on.Event | None:
        match effect:
            case do.Tell():
                if effect not in self.told[self.delivered :]:
                    self.told.append(effect)
            case do.Flush():
                if not self.chance(3):
                    self.deliver()
            case do.NoteCommitted():
                return None
            case do.Condemn():
                self.condemned.add(effect.assignment_id)
                if effect.manifest_sha256 is not None:
                    self.condemned.add(effect.manifest_sha256.hex())
            case do.DropPlan():
                self.plan = None
            case do.Settle():
                return on.Settled()
            case do.Check():
                return self.check(effect)
            case do.AskHooks():
                return on.HooksAnswered(postponed=self.chance(6))
            case do.Install():
                return self.install(effect.job)
            case do.Judge():
                return self.judge()
            case _:
                return self.write_record(effect)
        return None

    def write_record(self, effect: do.Effect) -> on.Event:
        """One durable write; a cut comes before or after it, never between."""
        if self.chance(15):
            return on.EffectFailed(type(effect).__name__, "boot-control", "simulated")
        try:
            match effect:
                case do.Arm(slot, trial):
                    assert slot in self.verified_this_run, "armed a slot that was not verified"
                    assert slot not in (self.booted, self.record.default)
                    self.record = bootrecord.arm(self.record, slot, TRIES, trial)
                case do.Commit(trial):
                    assert self.booted == self.record.trying, "committed a slot that does not run"
                    self.record = bootrecord.commit(self.record, trial)
                case do.RollBack(trial, reason):
                    self.record = bootrecord.roll_back(self.record, trial, reason)
                case do.Abandon(slot):
                    assert self.booted == RECOVERY, "gave up a slot outside of recovery"
                    self.record = bootrecord.abandon(self.record, slot)
        except TwinlockError as problem:
            raise AssertionError(f"boot control refused {effect}: {problem}") from problem
        self.maybe_cut()
        return on.RecordWritten(self.record)

    # --- the server, the slot, the gate

    def check(self, effect: do.Check) -> on.Event:
        if self.chance(6):
            return on.CheckFailed(*self.pick(("server-unreachable", "x"), ("metadata-signature", "x")))
        self.deliver()
        job = self.assigned
        if job is None or job.assignment_id in self.done:
            return on.NothingToDo()
        running = self.slots[self.booted] if self.booted == self.record.default else None
        if job.assignment_id in self.condemned or job.manifest_sha256.hex() in self.condemned:
            return self.refuse(job, "release-failed-before")
        if running is not None and running.sha256 == job.image_sha256:
            return on.RunsAlready(job.assignment_id, job.product, job.version)
        if effect.inactive is None:
            return self.refuse(job, "boot-refused")
        job = job_for(job.assignment_id, self.images[job.image_sha256], effect.inactive)
        if self.chance(10):
            return self.refuse(job, *self.pick(("metadata-expired",), ("manifest-hash",)))
        self.plan = job
        self.maybe_cut()
        return on.Planned(job)

    def deliver(self) -> None:
        for told in self.told[self.delivered :]:
            if told.state in FINAL_STATES:
                self.done[told.assignment_id] = told.state
        self.delivered = len(self.told)

    def refuse(self, job: Job, code: str) -> on.Refused:
        return on.Refused(job.assignment_id, job.product, job.version, code, "simulated")

    def pick(self, *options: tuple[str, ...]) -> tuple[str, ...]:
        return options[self.choose(len(options))]

    def install(self, job: Job) -> on.Event:
        assert job.slot not in (self.booted, self.record.default, self.record.trying), "writes a live slot"
        self.record = bootrecord.invalidate(self.record, job.slot)
        self.maybe_cut()
        if self.slots[job.slot] != self.images[job.image_sha256]:
            self.slots[job.slot] = None
        if job.slot in self.lame:
            return on.InstallFailed("slot-readback", "simulated")
        if self.chance(5):
            codes = (("connection-lost",), ("payload-part-hash",), ("slot-busy",), ("slot-readback",))
            return on.InstallFailed(self.pick(*codes)[0], "simulated")
        self.maybe_cut()
        self.slots[job.slot] = self.images[job.image_sha256]
        self.verified_this_run.add(job.slot)
        return on.Installed(job.trial_id)

    def judge(self) -> on.Event:
        assert self.booted == self.record.trying
        image = self.slots[self.booted]
        assert image is not None
        if self.chance(8):
            return on.EffectFailed("Judge", "disk-full", "simulated")
        verdicts = {
            "good": None,
            "bad": Verdict(code="health-failed", detail="simulated"),
            "cut off": Verdict(code="server-unreachable", detail="simulated", condemns=False),
        }
        return on.Judged(verdicts[image.health])


def job_for(assignment_id: str, image: Image, slot: str) -> Job:
    manifest = bytes(reversed(image.sha256))
    return Job(
        assignment_id=assignment_id,
        product="demo",
        version=f"1.{image.number}",
        counter=image.number,
        slot=slot,
        trial_id=trial_id(assignment_id, manifest, slot),
        manifest_sha256=manifest,
        image_sha256=image.sha256,
        image_size_bytes=512,
    )


def is_quiet(world: World) -> bool:
    state = world.journal
    return state is not None and state.phase in (Phase.IDLE, Phase.INSTALLING)
