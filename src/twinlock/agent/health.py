"""The gate of a trial: is this system one from which the next release can be taken?

Proven by doing, by the new system itself, cheapest first:

 1. it is the slot on trial, and the boot record can be written and read again in both copies;
 2. the other slot opens, is large enough, and keeps what is written outside of its image;
 3. the state folder can be written and has room, the device's key signs;
 4. the running slot reads back as the image of its signed manifest;
 5. no critical unit has failed, the next poll is scheduled, the device's required hooks pass;
 6. fresh metadata is fetched and verified through the normal code, and a part of a payload after it.

The verdict is pass, fail, or inconclusive when only the server is out of reach: then it is asked again until
the deadline, and after that the configuration decides. An outage does not condemn a release; neither does
what was so before the reboot (see `gate.baseline`), nor a medium that fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.agent import memory
from twinlock.agent import plan as plans
from twinlock.agent import request as requests
from twinlock.agent.gate import baseline, download, image, slot, units
from twinlock.agent.hooks import POSTPONE
from twinlock.agent.plan import answer_error
from twinlock.agent.states import Verdict
from twinlock.core import manifest
from twinlock.core.bootrecord import other
from twinlock.core.errors import Kind, TwinlockError, error

if TYPE_CHECKING:
    from twinlock.agent.config import Config
    from twinlock.agent.plan import Job, Plan
    from twinlock.agent.ports import HookResult, Ports
    from twinlock.core.bootrecord import BootRecord
    from twinlock.core.manifest import Manifest

PROBE: Final = "probe"
WAIT_S_MIN: Final = 2.0
WAIT_S_MAX: Final = 30.0
CLOCK_BEHIND_S_MAX: Final = 3600.0
# The server, or the link to it: these say nothing about the release that runs here.
_ELSEWHERE: Final = frozenset({Kind.TRANSPORT, Kind.TRUST, Kind.POLICY, Kind.INPUT})
# The medium, not the release: what fails to keep bytes does so for every release.
_OF_THE_MEDIUM: Final = frozenset({"disk-full", "io-error", "slot-readback"})
# A token may show itself late after a start; one that stays away may lack what the release should bring.
_MAY_COME: Final = frozenset({"pkcs11-missing", "pkcs11-failed"})


class Gate:
    """Judges the running trial of `job`."""

    def __init__(self, ports: Ports, config: Config, job: Job) -> None:
        self._ports = ports
        self._config = config
        self._health = config.health
        self._job = job
        self._until_s = ports.clock.monotonic_s() + config.health.deadline_s
        self._before = baseline.load(ports, job.trial_id)
        self._remarks: list[str] = []

    def judge(self) -> tuple[Verdict | None, str]:
        """No verdict when the trial passed, else why not; and what does not decide but is worth telling."""
        plan, signed = self._plan()
        try:
            self._check_device()
            self._check_image(signed)
            self._remarks += units.check(
                self._ports.system, self._ports.clock, self._health, self._before, self._until_s
            )
            required = self._required_hooks()
        except TwinlockError as problem:
            condemns = problem.code not in _OF_THE_MEDIUM
            return Verdict(code=problem.code, detail=problem.what, condemns=condemns), self._said()
        wanted = self._ports.hooks.health(True)
        self._remarks += [_describe(one) for one in wanted if one.exit_code]
        verdict = self._reach_server(plan, signed, hooks_decided=bool(required))
        return verdict, self._said()

    def _said(self) -> str:
        return "\n".join(self._remarks)

    def _plan(self) -> tuple[Plan | None, Manifest | None]:
        """The plan of this trial with its signed manifest, if it is still there."""
        plan = plans.load(self._ports.store)
        if plan is None or plan.job != self._job:
            self._remarks.append("the plan of this trial is lost: its image and a download were not proven")
            return None, None
        return plan, manifest.decode(plan.manifest)

    # --- the device

    def _check_device(self) -> None:
        """Raises TwinlockError when something is missing that the next install will need."""
        ports, job = self._ports, self._job
        record, booted = ports.boot.read(), ports.boot.booted()
        if record.trying != booted.slot or record.trial_id != job.trial_id:
            raise error("boot-control", f"slot {booted.slot} runs, which is not the slot on trial")
        ports.boot.self_test()
        self._check_other(other(booted.slot), record)
        ports.store.write(PROBE, b"")
        ports.store.remove(PROBE)
        self._check_space()
        late_s = memory.trusted_s(ports.store, ports.clock) - ports.clock.now_s()
        if late_s > CLOCK_BEHIND_S_MAX:  # devices without a clock of their own live with that
            self._remarks.append(f"the clock is at least {late_s / 3600:.0f} hours behind")

    def _check_other(self, second: str, record: BootRecord) -> None:
        if second == self._before.lame_slot:
            self._remarks.append(
                f"slot {second} could not be written before the reboot: only one slot is left"
            )
            return
        ports = self._ports
        held = memory.slots(ports.store).get(second)
        slot.probe(
            ports.slots,
            second,
            image_size_bytes=self._job.image_size_bytes,
            held_size_bytes=0 if held is None or second in record.failed else held.image_size_bytes,
            token=ports.random.token(),
        )

    def _check_space(self) -> None:
        free, least = self._ports.system.free_bytes(), self._health.free_bytes_min
        if free is None or free >= least:
            return
        before = self._before.free_bytes
        what = f"{free} bytes are left for the agent's state, {least} are needed"
        if before is None or before >= least:
            raise error("disk-full", what)
        self._remarks.append(f"{what}; before the reboot {before} were left")

    def _check_image(self, signed: Manifest | None) -> None:
        """The slot that runs is what was signed; one that is mounted read-write has changed by that alone."""
        how, running = self._health.verify_image, self._job.slot
        if signed is None or how == "never":
            return
        if how == "auto" and self._ports.system.is_written(running):
            self._remarks.append(f"slot {running} is mounted read-write: its image was not verified")
            return
        image.verify(self._ports.slots, running, signed, self._ports.display)

    def _required_hooks(self) -> list[HookResult]:
        results = self._ports.hooks.health(False)
        for one in results:
            if one.timed_out:
                raise error("health-timeout", _describe(one))
            if one.exit_code:
                raise error("health-failed", _describe(one))
        return results

    # --- the server

    def _reach_server(
        self, plan: Plan | None, signed: Manifest | None, *, hooks_decided: bool
    ) -> Verdict | None:
        wait_s = WAIT_S_MIN
        while True:
            problem = self._ask_server(plan, signed)
            if problem is None:
                return None
            if problem.kind not in _ELSEWHERE and problem.code not in _MAY_COME:
                return Verdict(
                    code=problem.code, detail=problem.what, condemns=problem.code not in _OF_THE_MEDIUM
                )
            left_s = self._until_s - self._ports.clock.monotonic_s()
            if left_s <= 0:
                break
            away = "the token" if problem.code in _MAY_COME else "the server"
            self._ports.display.note(f"{away} is out of reach, asking again: {problem.what}")
            self._ports.clock.sleep(min(left_s, wait_s * (0.5 + self._ports.random.fraction() / 2)))
            wait_s = min(WAIT_S_MAX, wait_s * 2)
        if problem.code in _MAY_COME:
            return Verdict(code=problem.code, detail=problem.what, condemns=True)
        excused = self._before.reached is False
        what = f"no fresh metadata and probe within {self._health.deadline_s:g} s: {problem.what}"
        if excused:
            what += " (the server was out of reach before the reboot, too)"
        if hooks_decided and self._health.unreachable == "hooks":
            self._remarks.append(what)
            return None
        return Verdict(code=problem.code, detail=what, condemns=False, excused=excused)

    def _ask_server(self, plan: Plan | None, signed: Manifest | None) -> TwinlockError | None:
        try:
            answer = self._ports.checker.check(requests.gate(self._job, self._ports.boot.booted().slot))
            problem = answer_error(answer)
            if problem is None and plan is not None and signed is not None:
                download.probe(self._ports, self._config, plan, signed)
        except TwinlockError as failed:
            return failed
        return problem


def _describe(result: HookResult) -> str:
    if result.timed_out:
        how = "did not end in time"
    elif result.exit_code < 0:
        how = f"was ended by signal {-result.exit_code}"
    else:
        how = f"ended with {result.exit_code}"
    said = f": {result.output}" if result.output else ""
    return f"{result.name} {how}{said}"


def answer_of(results: list[HookResult]) -> tuple[bool, bool, str]:
    """(postponed, failed, why) for the answers of hooks that may postpone."""
    for one in results:
        if one.exit_code:
            return True, one.exit_code != POSTPONE, _describe(one)
    return False, False, ""
