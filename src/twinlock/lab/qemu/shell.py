"""The root shell on the console of the lab's own systems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error

if TYPE_CHECKING:
    from twinlock.lab.qemu.machine import Machine


class Shell:
    """Types commands and reads what they print. One at a time: there is one console."""

    def __init__(self, machine: Machine) -> None:
        self._machine: Final = machine
        self._count = 0

    def run(self, command: str) -> str:
        """What the command printed on both outputs.

        Raises InternalError `internal` when its exit status is not 0, DeviceError `lab-timeout`, `lab-ended`.
        """
        self._count += 1
        since = self._machine.console.position()
        # The marks are split, so that the console's echo of the command is not taken for its end.
        self._machine.send(f"echo be''gin{self._count}; {command}; echo en''d{self._count} $?\n")
        match = self._machine.wait_for(rf"begin{self._count}\n((?s:.*?))end{self._count} (\d+)", since=since)
        if match[2] != "0":
            raise error("internal", f"{command} ended with {match[2]} on the device:\n{match[1]}")
        return match[1].strip()
