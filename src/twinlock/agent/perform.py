"""Performs the machine's effects through the ports; each method is repeatable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from twinlock.agent import effects as do
from twinlock.agent import events as on
from twinlock.agent import evidence, health, memory, noticed, progress
from twinlock.agent import plan as plans
from twinlock.agent import request as requests
from twinlock.agent.fetch import Tally
from twinlock.agent.install import Installer
from twinlock.agent.outbox import Outbox, clip_detail
from twinlock.agent.transfer import forget_indexes
from twinlock.core.errors import Kind, TwinlockError, error
from twinlock.core.protocol import Report

if TYPE_CHECKING:
    from twinlock.agent.config import Config
    from twinlock.agent.plan import CheckAnswer, CheckRequest
    from twinlock.agent.ports import Ports
    from twinlock.agent.states import State
    from twinlock.core.bootrecord import BootRecord

T = TypeVar("T")
DURATION_S_MAX: Final = 10 * 365 * 24 * 3600.0


class Performer:
    """`wait_s` is what the server last said about when to ask again, `reached` whether it last answered,
    `check_peak_bytes` the memory that the largest poll of this run needed."""

    def __init__(self, ports: Ports, config: Config) -> None:
        self._ports = ports
        self._config = config
        self._outbox = Outbox(ports.store)
        self.wait_s = 0
        self.reached: bool | None = None
        self.check_peak_bytes = 0

    def perform(self, effect: do.Effect, state: State) -> on.Event | None:
        """What the effect brings, if anything. Raises TwinlockError when it fails as a whole."""
        match effect:
            case do.Tell():
                self._tell(effect, state)
            case do.Flush():
                self._flush()
            case do.Check():
                return self._check(effect, state)
            case do.AskHooks():
                return self._ask_hooks(effect)
            case do.Install():
                return self._install(effect)
            case do.Arm():
                self._note(f"slot {effect.slot} is complete and goes on trial at the next boot")
                return on.RecordWritten(
                    self._ports.boot.arm(effect.slot, self._config.boot.tries, effect.trial_id)
                )
            case do.Judge():
                return self._judge(state)
            case do.Commit():
                return on.RecordWritten(self._ports.boot.commit(effect.trial_id))
            case do.Abandon(slot):
                self._note(f"slot {slot} does not load and is given up: it is written next")
                return on.RecordWritten(self._ports.boot.abandon(slot))
            case do.RollBack():
                self._note(f"rolling back: {effect.reason}")
                return on.RecordWritten(self._ports.boot.roll_back(effect.trial_id, effect.reason))
            case _:
                return self._remember(effect, state)
        return None

    def _remember(self, effect: do.Effect, state: State) -> on.Event | None:
        store = self._ports.store
        match effect:
            case do.NoteCommitted(job):
                self._note(f"committed slot {job.slot}: {job.product} {job.version}")
                memory.note_committed(store, _record(state), job)
            case do.Condemn(assignment_id, manifest_sha256, code):
                time_s = int(memory.trusted_s(store, self._ports.clock))
                memory.condemn(store, memory.Failed(assignment_id, manifest_sha256, code, time_s))
            case do.DropPlan():
                for name in (plans.PLAN, progress.PARTIAL):
                    store.remove(name)
                forget_indexes(store)
            case do.Settle():
                return on.Settled()
            case _:
                raise error("internal", f"nobody performs {type(effect).__name__}")
        return None

    def _note(self, text: str) -> None:
        self._ports.display.note(text)

    # --- reports

    def _tell(self, effect: do.Tell, state: State) -> None:
        ports, job = self._ports, state.job
        fetched = Tally()
        duration_s = 0.0
        if job is not None and job.known and job.assignment_id == effect.assignment_id:
            fetched = progress.tally_of(ports.store, job)
            duration_s = min(max(ports.clock.now_s() - state.started_s, 0.0), DURATION_S_MAX)
        report = Report(
            device_id="",  # the metadata process fills in who signs
            seq=0,
            nonce=ports.random.token(),
            state=effect.state,
            assignment_id=effect.assignment_id,
            product=effect.product,
            version=effect.version,
            slot=effect.slot,
            image_sha256=effect.image_sha256,
            code=effect.code,
            detail=clip_detail(effect.detail),
            bytes_fetched=fetched.fetched_bytes,
            bytes_again=fetched.again_bytes,
            duration_s=round(duration_s, 3),
            time_s=int(memory.trusted_s(ports.store, ports.clock)),
        )
        self._outbox.add(report)

    def _flush(self) -> None:
        if not self._outbox.waiting():
            return
        try:
            problem = plans.answer_error(self._ports.checker.check(plans.CheckRequest(mode="flush")))
        except TwinlockError as failed:
            problem = failed
        self.reached = problem is None or problem.kind is not Kind.TRANSPORT
        if problem is not None:
            self._note(f"reports wait for the next run: {problem}")

    # --- the check

    def _check(self, effect: do.Check, state: State) -> on.Event:
        ports = self._ports
        try:
            request = requests.made_of(
                ports,
                _record(state),
                state.booted,
                effect.inactive,
                mode="poll",
                phase=state.phase.value,
            )
            answer = ports.checker.check(request)
        except TwinlockError as problem:
            return on.CheckFailed(problem.code, problem.what)
        failed = plans.answer_error(answer)
        self.reached = failed is None or failed.kind is not Kind.TRANSPORT
        self.wait_s = answer.wait_s
        self.check_peak_bytes = max(self.check_peak_bytes, answer.peak_bytes)
        return self._answered(answer, request)

    def _answered(self, answer: CheckAnswer, request: CheckRequest) -> on.Event:
        problem = plans.answer_error(answer)
        known = (answer.assignment_id, answer.product, answer.version)
        # The link, or the session, may fail in the middle of verifying: that does not end an assignment.
        if problem is not None and (not answer.assignment_id or problem.kind in ("transport", "policy")):
            return on.CheckFailed(problem.code, problem.what)
        if problem is not None:
            return on.Refused(*known, problem.code, problem.what, answer.manifest_sha256)
        if answer.runs_already:
            return on.RunsAlready(*known)
        if answer.job is None:
            self._note(f"nothing to do; slot {request.slot} runs")
            return on.NothingToDo()
        self._note(f"assigned: {answer.product} {answer.version}, for slot {answer.job.slot}")
        return on.Planned(answer.job, self._ports.clock.now_s())

    # --- hooks, install, gate

    def _ask_hooks(self, effect: do.AskHooks) -> on.Event:
        for point in effect.points:
            postponed, failed, why = health.answer_of(self._ports.hooks.ask(point))
            if postponed:
                return on.HooksAnswered(True, f"postponed by a {point} hook: {why}", failed)
        return on.HooksAnswered(False)

    def _install(self, effect: do.Install) -> on.Event:
        plan = plans.load(self._ports.store)
        if plan is None or plan.job != effect.job:
            return on.InstallFailed("journal-corrupt", "the plan is not that of the journal any more")
        try:
            Installer(self._ports, self._config, plan).run()
        except TwinlockError as problem:
            noticed.note(self._ports.store, problem)
            return on.InstallFailed(problem.code, problem.what)
        return on.Installed(effect.job.trial_id)

    def _judge(self, state: State) -> on.Event:
        job = state.job
        if job is None:
            raise error("internal", "a trial without a job")
        self._note(f"slot {state.booted} is on trial: checking its health")
        verdict, remarks = health.Gate(self._ports, self._config, job).judge()
        if verdict is not None:
            evidence.keep_journal(self._ports, job, last=False)
        return on.Judged(verdict, clip_detail(remarks))


def _record(state: State) -> BootRecord:
    if state.record is None:
        raise error("internal", "no boot record was read")
    return state.record
