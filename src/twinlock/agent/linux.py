"""The system around the agent on Linux, with systemd where it runs. Is a `ports.System`.

Sources: systemctl(1) `show`, `list-units`, `is-system-running`; proc_pid_mountinfo(5); statvfs(3).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.agent import aftermath
from twinlock.agent.clock import SystemClock
from twinlock.agent.system import Unit
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.agent.config import Config
    from twinlock.agent.system import LastEnd, UnitState

TIMEOUT_S: Final = 20.0
FAILED_UNITS_MAX: Final = 64
UNIT_NAME_LENGTH_MAX: Final = 256
_OUTPUT_SIZE_BYTES_MAX: Final = 256 * 1024
_MOUNTINFO_SIZE_BYTES_MAX: Final = 4 * 1024 * 1024
_PROPERTIES: Final = (
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "Job",
    "ConditionResult",
    "ConditionTimestampMonotonic",
    "InactiveEnterTimestampMonotonic",
)
_NONE: Final = ("", "0")


class LinuxSystem:
    """`root` is where /run, /proc and the like are: another folder in tests, as the programs are others."""

    def __init__(
        self,
        config: Config,
        root: Path = Path("/"),
        systemctl: str = "systemctl",
        journalctl: str = "journalctl",
    ) -> None:
        self._clock = SystemClock()
        self._is_ours = config.health.manager == "auto"
        self._journalctl = journalctl
        self._slots = config.slots
        self._state = config.state
        self._root = root
        self._systemctl = systemctl

    @property
    def has_units(self) -> bool:
        return self._is_ours and (self._root / "run/systemd/system").is_dir()  # sd_booted(3)

    def in_maintenance(self) -> bool:
        return self._ask("is-system-running").strip() == "maintenance"

    def failed_units(self) -> tuple[str, ...]:
        lines = self._ask("list-units", "--state=failed", "--plain", "--no-legend", "--full").splitlines()
        names = (line.split()[0] for line in lines if line.strip())
        return tuple(name[:UNIT_NAME_LENGTH_MAX] for name in names)[:FAILED_UNITS_MAX]

    def unit(self, name: str) -> Unit:
        lines = self._ask("show", "--property=" + ",".join(_PROPERTIES), "--", name).splitlines()
        found = dict(line.split("=", 1) for line in lines if "=" in line)
        state, what = _judge(found)
        return Unit(name, state, what)

    def free_bytes(self) -> int | None:
        try:
            found = os.statvfs(self._state)
        except OSError:
            return None  # the state's own writes say more than this could
        return found.f_bavail * found.f_frsize

    def is_written(self, slot: str) -> bool:
        """Looks for a read-write mount of the slot's block device; a file is nobody's mount."""
        where = self._slots.get(slot)
        if where is None:
            return False
        try:
            device = where.path.stat().st_rdev
            with (self._root / "proc/self/mountinfo").open("rb") as file:
                lines = file.read(_MOUNTINFO_SIZE_BYTES_MAX).decode("utf-8", "replace").splitlines()
        except OSError:
            return False
        number = f"{os.major(device)}:{os.minor(device)}"
        return bool(device) and any(_is_writable(line, number) for line in lines)

    def last_end(self) -> LastEnd:
        return aftermath.last_end(self._root, self._journalctl, self._clock) if self._is_ours else ""

    def journal(self, *, last: bool) -> str:
        return aftermath.journal(self._journalctl, self._clock, last=last) if self._is_ours else ""

    def panics(self) -> dict[str, str]:
        return aftermath.panics(self._root) if self._is_ours else {}

    def forget(self, name: str) -> None:
        aftermath.forget(self._root, name)

    def _ask(self, *args: str) -> str:
        """What systemctl prints, at most so much of it. Its exit code says how units are, not how it went."""
        argv = [self._systemctl, "--no-pager", *args]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise error("health-failed", f"the service manager does not answer: {problem}") from problem
        text = done.stdout[:_OUTPUT_SIZE_BYTES_MAX].decode("utf-8", "replace")
        if done.returncode and not text.strip() and args[0] != "list-units":
            said = done.stderr[:200].decode("utf-8", "replace").strip()
            raise error("health-failed", f"the service manager does not answer: {said}")
        return text


def _is_writable(line: str, number: str) -> bool:
    """Whether a line of mountinfo is a mount of the device whose file system itself is read-write.

    The options after the separator are the file system's: a read-only bind mount of a file system that is
    read-write elsewhere has `ro` only before it.
    """
    words = line.split()
    if len(words) < 7 or words[2] != number or "-" not in words:
        return False
    options = words[words.index("-") + 3 :]
    return bool(options) and "rw" in options[0].split(",")


def _judge(found: Mapping[str, str]) -> tuple[UnitState, str]:
    """How a unit is, from its properties."""
    load, active, result = (found.get(name, "") for name in ("LoadState", "ActiveState", "Result"))
    shown = f"{active or 'unknown'} ({found.get('SubState', '')}, result {result})"
    if load != "loaded":
        return "bad", f"is {load or 'unknown'}, not installed"
    if active in ("active", "reloading", "refreshing"):
        return "good", shown
    if active in ("activating", "deactivating", "maintenance"):
        return "starting", shown
    if active != "inactive" or result != "success":
        return "bad", shown
    if found.get("Job", "") not in _NONE:
        return "starting", "waits to be started"
    skipped = (
        found.get("ConditionResult") == "no" and found.get("ConditionTimestampMonotonic", "") not in _NONE
    )
    ended = found.get("InactiveEnterTimestampMonotonic", "") not in _NONE  # a oneshot that ran to its end
    return ("good", shown) if skipped or ended else ("bad", "was never started")
