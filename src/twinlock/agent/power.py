"""The reboot, as configured. Is a `ports.Power`."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error

if TYPE_CHECKING:
    from twinlock.agent.config import RebootConfig

TIMEOUT_S: Final = 60.0


class ConfiguredPower:
    """Runs the command, or leaves it to whoever sees the exit code."""

    def __init__(self, config: RebootConfig) -> None:
        self._config = config

    def reboot(self, reason: str, *, trial: bool = False) -> bool:
        """True when the caller has to see to it. Raises DeviceError `boot-control` when the command fails."""
        del reason
        if self._config.mode == "exit":
            return True
        argv = list(self._config.trial_command if trial else self._config.command)
        hint = "correct [reboot] in the agent's configuration"
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise error("boot-control", f"the reboot command {argv[0]}: {problem}", hint=hint) from problem
        if done.returncode:
            what = f"the reboot command {argv[0]} ended with {done.returncode}"
            raise error("boot-control", what, hint=hint)
        return False
