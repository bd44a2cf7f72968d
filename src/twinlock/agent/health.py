"""The gate of a trial: is this system one from which the next release can be taken?

Proven by doing, by the new system itself: it is the slot on trial; the boot record can be written and read;
the other slot opens for writing; the state folder can be written; the device's required hooks pass; fresh
metadata is fetched and verified through the normal code.

The verdict is pass, fail, or inconclusive when only the server is out of reach: then it is asked again until
the deadline, and after that the configuration decides. An outage does not condemn a release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.agent import request as requests
from twinlock.agent.hooks import POSTPONE
from twinlock.agent.plan import answer_error
from twinlock.agent.states import Verdict
from twinlock.core.bootrecord import other
from twinlock.core.errors import Kind, TwinlockError, error

if TYPE_CHECKING:
    from twinlock.agent.config import HealthConfig
    from twinlock.agent.plan import Job
    from twinlock.agent.ports import HookResult, Ports

PROBE: Final = "probe"
WAIT_S_MIN: Final = 2.0
WAIT_S_MAX: Final = 30.0
# The server, or the link to it: these say nothing about the release that runs here.
_ELSEWHERE: Final = frozenset({Kind.TRANSPORT, Kind.TRUST, Kind.POLICY, Kind.INPUT})


class Gate:
    """Judges the running trial of `job`."""

    def __init__(self, ports: Ports, health: HealthConfig, job: Job) -> None:
        self._ports = ports
        self._health = health
        self._job = job
        self._until_s = ports.clock.monotonic_s() + health.deadline_s

    def judge(self) -> tuple[Verdict | None, str]:
        """No verdict when the trial passed, else why not; and what hooks that do not decide had to say."""
        try:
            self._check_device()
            required = self._required_hooks()
        except TwinlockError as problem:
            condemns = problem.code not in ("disk-full",)
            return Verdict(code=problem.code, detail=problem.what, condemns=condemns), ""
        remarks = "\n".join(_describe(one) for one in self._ports.hooks.health(True) if one.exit_code)
        return self._reach_server(hooks_decided=bool(required)), remarks

    def _check_device(self) -> None:
        """Raises TwinlockError when something is missing that the next install will need."""
        boot = self._ports.boot
        record, booted = boot.read(), boot.booted()
        if record.trying != booted.slot or record.trial_id != self._job.trial_id:
            raise error("boot-control", f"slot {booted.slot} runs, which is not the slot on trial")
        boot.self_test()
        self._ports.slots.open(other(booted.slot)).close()
        self._ports.store.write(PROBE, b"")
        self._ports.store.remove(PROBE)

    def _required_hooks(self) -> list[HookResult]:
        results = self._ports.hooks.health(False)
        for one in results:
            if one.timed_out:
                raise error("health-timeout", _describe(one))
            if one.exit_code:
                raise error("health-failed", _describe(one))
        return results

    def _reach_server(self, *, hooks_decided: bool) -> Verdict | None:
        wait_s = WAIT_S_MIN
        while True:
            problem = self._ask_server()
            if problem is None:
                return None
            if problem.kind not in _ELSEWHERE:
                return Verdict(code=problem.code, detail=problem.what)
            left_s = self._until_s - self._ports.clock.monotonic_s()
            if left_s <= 0:
                break
            self._ports.display.note(f"the server is out of reach, asking again: {problem.what}")
            self._ports.clock.sleep(min(left_s, wait_s * (0.5 + self._ports.random.fraction() / 2)))
            wait_s = min(WAIT_S_MAX, wait_s * 2)
        if hooks_decided and self._health.unreachable == "hooks":
            return None
        what = f"no fresh metadata within {self._health.deadline_s:g} s: {problem.what}"
        return Verdict(code=problem.code, detail=what, condemns=False)

    def _ask_server(self) -> TwinlockError | None:
        try:
            answer = self._ports.checker.check(requests.gate(self._job, self._ports.boot.booted().slot))
        except TwinlockError as problem:
            return problem
        return answer_error(answer)


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
