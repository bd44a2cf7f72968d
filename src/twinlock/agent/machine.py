"""All decisions of the agent, without any I/O: `step(state, event)` gives the next state and the effects.

    idle -> installing -> verified -> armed -> (reboot) -> trial -> committed -> idle
                                                             \\-> rolling_back -> (reboot) -> idle

`run` saves the state durably *before* it performs the effects, and performs them in order. Every effect may
be repeated: after a crash the agent starts with `Started`, which compares the boot record, what booted and
the state, and issues again whatever may not have happened. The boot record decides, the journal only
explains: without a journal the same rules end in the same slot, with less to report.

Never: an install into the default or the booted slot, or while a trial is pending; an arm of a slot that was
not read back whole in this very run (`verified` is not believed after a restart).

In recovery the same rules hold: the slot that is not the default is written first. Only when its medium does
not take the release, and the default did not load in some more boots, is that given up and written instead.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from twinlock.agent import effects as do
from twinlock.agent import events as on
from twinlock.agent.plan import Job, unknown_job
from twinlock.agent.states import Phase, State, Verdict
from twinlock.agent.system import LastEnd
from twinlock.core.bootrecord import BootRecord, other
from twinlock.core.errors import CATALOGUE, EXIT_CODES, Kind
from twinlock.core.names import RECOVERY, SLOTS
from twinlock.core.protocol import ReportState

REBOOT_WANTED: Final = 10  # exit code
BEFORE_INSTALL: Final = ("pre-download", "pre-install")
BEFORE_REBOOT: Final = ("pre-reboot",)
LEAVE_REBOOTS_MAX: Final = 3
REARMS_MAX: Final = 3  # how often a trial that the boot record lost is armed again
# Failures of the device itself that another run may not meet again.
PASSING: Final = frozenset(
    {
        "slot-busy",
        "disk-full",
        "agent-busy",
        "permission-denied",
        "boot-control",
        "boot-refused",  # the bootloader went to the other slot for once
        "journal-corrupt",
    }
)
_ENDS: Final = {
    "panic": "the kernel panicked; its last words are among the evidence",
    "watchdog": "it hung, and the watchdog reset the device",
    "cut": "its journal ends without a shutdown (a hang that was reset, a crash, or a loss of power)",
}
# Failures of a slot's medium or place: in recovery the other slot is worth a try.
OF_THE_SLOT: Final = frozenset({"io-error", "slot-readback", "slot-unusable"})
_NOTHING_WHOLE: Final = "the boot record was lost, and no slot is known to hold its release whole"
_STARTED_OVER: Final = "the journal was damaged; went on from the boot record"

Step = tuple[State, tuple[do.Effect, ...]]


def step(state: State, event: on.Event) -> Step:
    """What to remember and what to do next. Never raises for any state and event."""
    match event:
        case on.Started():
            return _started(state, event)
        case on.EffectFailed():
            return _effect_failed(state, event)
        case on.RecordWritten():
            return _record_written(state, event.record)
        case on.Judged():
            return _judged(state, event)
        case on.HooksAnswered():
            return _hooks_answered(state, event)
        case on.Installed():
            return _installed(state, event.trial_id)
        case on.InstallFailed():
            return _install_failed(state, event)
        case on.Settled():
            return _settled(state)
        case on.CheckFailed():
            return _check_failed(state, event)
        case on.Planned() | on.NothingToDo() | on.RunsAlready() | on.Refused():
            return _checked(state, event)


def inactive_slot(state: State) -> str | None:
    """Where a release may go now: the slot that neither booted, nor is the default, nor is on trial."""
    record = state.record
    if record is None or record.trying is not None:
        return None
    slot = other(record.default)
    return None if slot == state.booted else slot


def kind_of(code: str) -> Kind:
    """The kind of a failure; a code that this version does not know is `internal`."""
    spec = CATALOGUE.get(code)
    return Kind.INTERNAL if spec is None else spec.kind


def _finish(code: str, what: str) -> do.Finish:
    return do.Finish(EXIT_CODES[kind_of(code)], code, what)


def _unexpected(state: State, what: str) -> Step:
    return state, (_finish("internal", f"{what} while {state.phase}"),)


def _tell(job: Job | None, told: do.Tell) -> do.Tell:
    """`told` with the fields that say which job it is about."""
    if job is None:
        return told
    return do.Tell(
        state=told.state,
        assignment_id=job.assignment_id,
        product=job.product,
        version=job.version,
        slot=job.slot,
        image_sha256=job.image_sha256 or None,
        code=told.code,
        detail=told.detail,
    )


# --- a run begins -----------------------------------------------------------------------------------------


def _started(state: State, event: on.Started) -> Step:
    record = event.record
    before = state.boot_id
    job = _job_of(record.trial_id, state.job, event.planned)
    state = replace(state, record=record, booted=event.booted, boot_id=event.boot_id)
    if event.restored and record.default not in record.failed:
        return _restored(state, record)
    if record.trying is not None:
        if state.job is None or state.job.trial_id != record.trial_id:
            job = job or unknown_job(record.trying, record.trial_id)
            state = replace(state, phase=Phase.ARMED, job=job, verdict=None, armed_boot_id="", fallbacks=0)
        elif not state.armed_boot_id:
            state = replace(state, armed_boot_id=before)  # the power went between record and journal
        after, effects = _pending(state, record, event.ended)
    elif job is not None and state.phase is not Phase.INSTALLING:
        after, effects = _ended(replace(state, job=job), record, job)
    elif state.phase in (Phase.IDLE, Phase.INSTALLING, Phase.VERIFIED):
        after, effects = _look(state)
    elif state.phase in (Phase.ARMED, Phase.TRIAL) and state.rearms < REARMS_MAX:
        # The medium lost the copy that armed it, and the other is from before: the slot is still whole.
        after, effects = _look(
            State(
                phase=Phase.INSTALLING,
                job=state.job,
                record=record,
                booted=state.booted,
                boot_id=state.boot_id,
                started_s=state.started_s,
                rearms=state.rearms + 1,
            )
        )
    else:
        lost = do.Tell("failed", code="boot-record", detail="the boot record no longer knows this trial")
        after, effects = state, (_tell(state.job, lost), do.DropPlan(), do.Settle())
    if event.restored:
        effects = (do.Tell("idle", code="boot-record", detail=_NOTHING_WHOLE), *effects)
    if event.damaged:
        effects = (do.Tell("idle", code="journal-corrupt", detail=_STARTED_OVER), *effects)
    return after, effects


def _restored(state: State, record: BootRecord) -> Step:
    """The boot record was lost, and a slot was found that holds its release whole: run that."""
    what = f"the boot record was lost; slot {record.default} holds its release whole and boots again"
    told = do.Tell("idle", slot=record.default, code="boot-record", detail=what)
    return state, (told, do.Flush(), do.Reboot(what))


def _job_of(trial_id: str, *jobs: Job | None) -> Job | None:
    return next((job for job in jobs if job is not None and job.trial_id == trial_id), None)


def _look(state: State) -> Step:
    """Nothing is pending: ask the server. What was verified before this run counts as not verified."""
    record = state.record
    assert record is not None
    if state.booted in record.failed and record.default not in record.failed:
        return _leave(state)
    phase = Phase.INSTALLING if state.phase is Phase.VERIFIED else state.phase
    recoveries = state.recoveries if state.booted == RECOVERY else 0
    return replace(state, phase=phase, fallbacks=0, recoveries=recoveries), (do.Check(inactive_slot(state)),)


def _leave(state: State) -> Step:
    """Reboot out of a slot that must not run; a bootloader that does not follow is left alone in the end."""
    what = f"slot {state.booted} was rolled back but runs"
    if state.fallbacks < LEAVE_REBOOTS_MAX:
        return replace(state, fallbacks=state.fallbacks + 1), (do.Reboot(what),)
    told = _tell(state.job, do.Tell("idle", slot=state.booted, code="boot-control", detail=what))
    return _told_once(state, told, (do.Flush(), _finish("boot-control", what)))


def _pending(state: State, record: BootRecord, ended: LastEnd) -> Step:
    """A trial is in the boot record: run it, go on with it, or end it."""
    if state.phase is Phase.ROLLING_BACK:
        return _roll_back(state, state.verdict)
    if state.booted == record.trying:
        told = _tell(state.job, do.Tell("trial"))
        return replace(state, phase=Phase.TRIAL), (told, do.Judge(record.trial_id))
    if state.armed_boot_id == state.boot_id:
        # Also with no try left: where the agent counts, the last one is taken off before the reboot.
        return replace(state, phase=Phase.ARMED), (do.Flush(), do.AskHooks(BEFORE_REBOOT))
    if record.tries_left == 0:
        return _roll_back(state, Verdict(code="trial-exhausted", detail=_exhausted(state, record, ended)))
    tries = state.tries or record.tries_left
    fallbacks = state.fallbacks + 1
    if fallbacks > tries:
        detail = f"the bootloader went to {state.booted} {fallbacks} times instead of slot {record.trying}"
        return _roll_back(state, Verdict(code="trial-exhausted", detail=detail))
    armed = replace(
        state,
        phase=Phase.ARMED,
        tries=tries,
        fallbacks=fallbacks,
        armed_boot_id=state.boot_id,
    )
    return armed, (do.AskHooks(BEFORE_REBOOT),)


def _exhausted(state: State, record: BootRecord, ended: LastEnd) -> str:
    how = "never came up"
    if state.phase is Phase.TRIAL:
        how = "came up but did not get as far as a verdict"
    why = _ENDS.get(ended)
    return f"slot {record.trying} {how}{f': {why}' if why else ''}"


def _ended(state: State, record: BootRecord, job: Job) -> Step:
    """The boot record shows how the job's trial ended; what follows from that may not be done yet."""
    if record.default == job.slot:
        return _committed(state)
    if state.booted == job.slot:
        return _leave(state)
    return _rolled_back(replace(state, verdict=state.verdict or _verdict_in(record)))


def _verdict_in(record: BootRecord) -> Verdict:
    """What the boot record's reason, `CODE: DETAIL`, still tells when the journal does not."""
    code, _, detail = record.reason.partition(": ")
    if code not in CATALOGUE:
        return Verdict(code="trial-exhausted", detail=record.reason or "rolled back")
    return Verdict(code=code, detail=detail, condemns=kind_of(code) is Kind.HEALTH)


# --- the check --------------------------------------------------------------------------------------------

_Answer = on.Planned | on.NothingToDo | on.RunsAlready | on.Refused


def _checked(state: State, event: _Answer) -> Step:
    """The server was reached: a release that could not reach it from its own slot was at fault."""
    if state.phase not in (Phase.IDLE, Phase.INSTALLING):
        return _unexpected(state, "an assignment was looked for")
    if state.acquit is None:
        return _answered(state, event)
    at_fault = state.acquit
    condemn = do.Condemn(at_fault.assignment_id, at_fault.manifest_sha256, "server-unreachable")
    state = replace(state, acquit=None)
    if isinstance(event, on.Planned) and event.job.manifest_sha256 == at_fault.manifest_sha256:
        return state, (condemn, do.DropPlan(), do.Check(inactive_slot(state)))
    state, effects = _answered(state, event)
    return state, (condemn, *effects)


def _answered(state: State, event: _Answer) -> Step:
    idle = replace(state, phase=Phase.IDLE, job=None, verdict=None)
    match event:
        case on.Planned(job, time_s):
            if job.slot != inactive_slot(state) or job.slot not in SLOTS:
                return _unexpected(idle, f"a plan for slot {job.slot} was made")
            started_s = state.started_s if state.job == job else time_s
            planned = replace(idle, phase=Phase.INSTALLING, job=job, started_s=started_s)
            return planned, (do.AskHooks(BEFORE_INSTALL),)
        case on.NothingToDo():
            return replace(idle, last_told=""), (do.DropPlan(), do.Finish())
        case on.RunsAlready(assignment_id, product, version):
            told = do.Tell("succeeded", assignment_id, product, version, slot=state.booted)
            return idle, (told, do.DropPlan(), do.Flush(), do.Finish())
        case on.Refused():
            return _refused(idle, event)


def _refused(idle: State, event: on.Refused) -> Step:
    """What may pass (expired metadata, a full disk) does not end the assignment; anything else does."""
    passes = event.code == "metadata-expired" or event.code in PASSING
    told = do.Tell(
        "idle" if passes else "failed",
        event.assignment_id,
        event.product,
        event.version,
        code=event.code,
        detail=event.what,
    )
    rest = (do.DropPlan(), do.Flush(), _finish(event.code, event.what))
    if passes:
        return _told_once(idle, told, rest)
    return idle, (told, do.Condemn(event.assignment_id, None, event.code), *rest)


def _check_failed(state: State, event: on.CheckFailed) -> Step:
    finish = _finish(event.code, event.what)
    if state.phase not in (Phase.IDLE, Phase.INSTALLING):
        return state, (finish,)
    if kind_of(event.code) is Kind.TRANSPORT:
        return replace(state, acquit=None), (finish,)  # the old slot does not reach the server either
    if kind_of(event.code) is Kind.POLICY:
        return state, (finish,)
    told = _tell(state.job, do.Tell("idle", code=event.code, detail=event.what))
    return _told_once(state, told, (do.Flush(), finish))


def _told_once(state: State, told: do.Tell, rest: tuple[do.Effect, ...]) -> Step:
    """Reports a failure that may come again at every run only when it is another than the last one."""
    key = f"{told.assignment_id} {told.state} {told.code}"
    if key == state.last_told:
        return state, rest
    return replace(state, last_told=key), (told, *rest)


# --- install and arm --------------------------------------------------------------------------------------


def _hooks_answered(state: State, event: on.HooksAnswered) -> Step:
    if event.postponed:
        rest = (do.Flush(), do.Finish(what=event.what))
        if not event.failed:
            return state, rest
        phase: ReportState = "armed" if state.phase is Phase.ARMED else "downloading"
        return _told_once(state, _tell(state.job, do.Tell(phase, detail=event.what)), rest)
    if state.phase is Phase.INSTALLING and state.job is not None and state.job.slot == inactive_slot(state):
        return state, (do.Install(state.job),)
    if state.phase is Phase.ARMED:
        return state, (do.Reboot("to try the new release"),)
    return _unexpected(state, "hooks were asked")


def _installed(state: State, trial_id: str) -> Step:
    job = state.job
    if state.phase is not Phase.INSTALLING or job is None or job.trial_id != trial_id:
        return _unexpected(state, "an install ended")
    if job.slot != inactive_slot(state):
        return _unexpected(state, f"slot {job.slot} was verified")
    return replace(state, phase=Phase.VERIFIED), (do.Arm(job.slot, job.trial_id),)


def _install_failed(state: State, event: on.InstallFailed) -> Step:
    job = state.job
    if state.phase is not Phase.INSTALLING or job is None:
        return _unexpected(state, "an install failed")
    kind, finish = kind_of(event.code), _finish(event.code, event.what)
    if kind in (Kind.TRANSPORT, Kind.POLICY) or event.code in PASSING:
        told = _tell(job, do.Tell("downloading", code=event.code, detail=event.what))
        return _told_once(state, told, (do.Flush(), finish))
    record = state.record
    assert record is not None
    if state.booted == RECOVERY and event.code in OF_THE_SLOT and state.recoveries <= LEAVE_REBOOTS_MAX:
        return _other_slot(state, record, event)
    told = _tell(job, do.Tell("failed", code=event.code, detail=event.what))
    condemn = do.Condemn(job.assignment_id, None, event.code)
    # The journal keeps the job until the report is queued; `Settled` then ends the run with this failure.
    state = replace(state, verdict=Verdict(code=event.code, detail=event.what))
    return state, (told, condemn, do.DropPlan(), do.Settle())


def _other_slot(state: State, record: BootRecord, event: on.InstallFailed) -> Step:
    """In recovery, and the free slot takes nothing. The default may load after all: it is given up last."""
    told = _tell(state.job, do.Tell("downloading", code=event.code, detail=event.what))
    if record.default not in record.failed and state.recoveries < LEAVE_REBOOTS_MAX:
        what = f"slot {record.default} may load after all: {event.what}"
        return replace(state, recoveries=state.recoveries + 1), (told, do.Flush(), do.Reboot(what))
    return state, (told, do.DropPlan(), do.Abandon(record.default))


def _record_written(state: State, record: BootRecord) -> Step:
    """Boot control did as asked; what it read back decides how it goes on."""
    job = state.job
    state = replace(state, record=record)
    match state.phase:
        case Phase.INSTALLING if state.booted == RECOVERY and record.default in record.failed:
            return replace(state, recoveries=LEAVE_REBOOTS_MAX + 1), (do.Check(inactive_slot(state)),)
        case Phase.VERIFIED if job is not None and record.trying == job.slot:
            state = replace(
                state,
                phase=Phase.ARMED,
                armed_boot_id=state.boot_id,
                tries=record.tries_left,
                fallbacks=0,
                last_told="",
            )
            return state, (_tell(job, do.Tell("armed")), do.Flush(), do.AskHooks(BEFORE_REBOOT))
        case Phase.TRIAL if job is not None and record.trying is None and record.default == state.booted:
            return _committed(state)
        case Phase.ROLLING_BACK if record.trying is None and job is not None:
            if state.booted == job.slot:
                return _leave(replace(state, fallbacks=0))
            return _rolled_back(replace(state, verdict=state.verdict or _verdict_in(record)))
    return _unexpected(state, "the boot record was written")


# --- the trial --------------------------------------------------------------------------------------------


def _judged(state: State, event: on.Judged) -> Step:
    record = state.record
    if state.phase is not Phase.TRIAL or record is None or record.trying != state.booted:
        return _unexpected(state, "a trial was judged")
    if event.verdict is not None:
        return _roll_back(state, event.verdict)
    return replace(state, remarks=event.remarks), (do.Commit(record.trial_id),)


def _roll_back(state: State, verdict: Verdict | None) -> Step:
    record = state.record
    assert record is not None
    why = verdict or Verdict(code="trial-exhausted", detail="the reason was lost")
    reason = f"{why.code}: {why.detail}"
    return replace(state, phase=Phase.ROLLING_BACK, verdict=why), (do.RollBack(record.trial_id, reason),)


def _committed(state: State) -> Step:
    """The boot record is the commit; the rest follows from it and can be done again."""
    job = state.job
    assert job is not None
    told = do.Tell("succeeded", detail=state.remarks)
    if not job.known:
        told = do.Tell("idle", code="journal-corrupt", detail="committed a release that the journal lost")
    state = replace(state, phase=Phase.COMMITTED, verdict=None)
    return state, (do.NoteCommitted(job), _tell(job, told), do.DropPlan(), do.Settle())


def _rolled_back(state: State) -> Step:
    """In the old slot again: say why, and never try that release again if it was at fault."""
    job, verdict = state.job, state.verdict
    assert verdict is not None
    state = replace(state, phase=Phase.ROLLING_BACK)
    told = _tell(job, do.Tell("rolled_back", code=verdict.code, detail=verdict.detail))
    condemn: tuple[do.Effect, ...] = ()
    if job is not None and job.known:
        guilty = job.manifest_sha256 if verdict.condemns else None
        condemn = (do.Condemn(job.assignment_id, guilty, verdict.code),)
    return state, (told, *condemn, do.DropPlan(), do.Settle())


def _settled(state: State) -> Step:
    job, verdict = state.job, state.verdict
    idle = State(record=state.record, booted=state.booted, boot_id=state.boot_id, acquit=state.acquit)
    if state.phase is Phase.INSTALLING and verdict is not None:
        return idle, (do.Flush(), _finish(verdict.code, verdict.detail))
    if state.phase is Phase.ROLLING_BACK and verdict is not None and not verdict.condemns:
        was_outage = kind_of(verdict.code) in (Kind.TRANSPORT, Kind.TRUST, Kind.POLICY)
        idle = replace(idle, acquit=job if was_outage and not verdict.excused else None)
    return idle, (do.Check(inactive_slot(idle)),)


# --- failures of effects ----------------------------------------------------------------------------------


def _effect_failed(state: State, event: on.EffectFailed) -> Step:
    """A trial that cannot be settled goes back by itself; everything else waits for the next run."""
    finish = _finish(event.code, event.what)
    record = state.record
    if state.phase is Phase.TRIAL and record is not None and record.trying is not None:
        verdict = Verdict(code=event.code, detail=event.what, condemns=event.effect == "Commit")
        return _roll_back(state, verdict)
    if state.phase is Phase.ROLLING_BACK and record is not None and record.trying == state.booted:
        return state, (do.Reboot("the trial's tries will run out"),)
    if state.phase is Phase.VERIFIED:
        told = _tell(state.job, do.Tell("downloading", code=event.code, detail=event.what))
        return _told_once(state, told, (do.Flush(), finish))
    return state, (finish,)
