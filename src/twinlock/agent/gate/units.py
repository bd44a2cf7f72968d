"""The service manager's word on the new system: no critical unit has failed, and the next poll is scheduled.

Asked while the system may still be starting (the gate itself is part of its start), so a critical unit that
is neither up nor down is waited for, until the gate's deadline.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error

if TYPE_CHECKING:
    from twinlock.agent.config import HealthConfig
    from twinlock.agent.gate.baseline import Baseline
    from twinlock.agent.ports import Clock, System

WAIT_S: Final = 2.0


def check(system: System, clock: Clock, health: HealthConfig, before: Baseline, until_s: float) -> list[str]:
    """What is worth a remark. `until_s` is on the monotonic clock.

    Raises HealthError `health-failed` for the rescue mode, a critical unit or the timer, `health-timeout` for
    a critical unit that does not get up in time. What had failed before the reboot is a remark only.
    """
    if not system.has_units:
        return []
    if system.in_maintenance():
        raise error("health-failed", "the system came up in its rescue or emergency mode")
    for name in health.critical_units:
        if not _is_pattern(name) and name not in before.failed_units:
            _wait_for(system, clock, name, until_s)
    remarks = []
    for name in system.failed_units():
        if name in before.failed_units:
            remarks.append(f"unit {name} has failed, as it had before the reboot")
        elif any(fnmatchcase(name, one) for one in health.critical_units):
            raise error("health-failed", f"unit {name} has failed")
        else:
            remarks.append(f"unit {name} has failed")
    if health.timer:
        timer = system.unit(health.timer)
        if timer.state == "bad":
            raise error("health-failed", f"no next poll is scheduled: {timer.name} {timer.what}")
    return remarks


def _is_pattern(name: str) -> bool:
    return any(char in name for char in "*?[")


def _wait_for(system: System, clock: Clock, name: str, until_s: float) -> None:
    while True:
        unit = system.unit(name)
        if unit.state == "good":
            return
        if unit.state == "bad":
            raise error("health-failed", f"unit {name} {unit.what}")
        left_s = until_s - clock.monotonic_s()
        if left_s <= 0:
            raise error("health-timeout", f"unit {name} is not up in time: {unit.what}")
        clock.sleep(min(WAIT_S, left_s))
