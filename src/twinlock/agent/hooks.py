"""The device's own programs: each within its time, its output bounded, its process group ended with it.

Exit code 0 is good; 75 (EX_TEMPFAIL of sysexits.h) asks to postpone where that is possible. What a program
writes is kept to its last `OUTPUT_SIZE_BYTES_MAX` bytes: that is where the reason stands.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from twinlock.agent.ports import HookResult
from twinlock.core.durable import os_errors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from twinlock.agent.config import HealthConfig, HooksConfig
    from twinlock.agent.ports import Clock

POSTPONE: Final = 75
OUTPUT_SIZE_BYTES_MAX: Final = 4096
HOOKS_MAX: Final = 64  # per folder
DID_NOT_START: Final = 126
_STEP_S: Final = 0.05
_READ_SIZE_BYTES: Final = 4096


class FolderHooks:
    """The executables of the configured folders. Is a `ports.Hooks`."""

    def __init__(self, health: HealthConfig, hooks: HooksConfig, clock: Clock) -> None:
        self._health = health
        self._hooks = hooks
        self._clock = clock

    def health(self, wanted: bool) -> list[HookResult]:
        folders = self._health.wanted if wanted else self._health.required
        until_s = self._clock.monotonic_s() + self._health.deadline_s
        return self._run(programs(folders), self._health.timeout_s, until_s, go_on=wanted)

    def ask(self, point: str) -> list[HookResult]:
        folder = self._hooks.folder / f"{point}.d"
        return self._run(programs([folder]), self._hooks.timeout_s, math.inf, go_on=False)

    def _run(
        self, paths: Iterable[Path], timeout_s: float, until_s: float, *, go_on: bool
    ) -> list[HookResult]:
        results = []
        for path in paths:
            left_s = until_s - self._clock.monotonic_s()
            if left_s > 0:
                results.append(run_one(path, min(timeout_s, left_s), self._clock))
            else:
                results.append(HookResult(path.name, DID_NOT_START, True, "the others took all of the time"))
            if results[-1].exit_code and not go_on:
                break
        return results


def programs(folders: Iterable[Path]) -> list[Path]:
    """The executable files of the folders, folder by folder in the order of their names.

    A folder that is not there has none. Raises DeviceError `permission-denied`, `io-error`.
    """
    found: list[Path] = []
    for folder in folders:
        with os_errors(f"hooks in {folder}"):
            if folder.is_dir():
                names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
                found += [path for path in names if path.is_file() and os.access(path, os.X_OK)][:HOOKS_MAX]
    return found


def run_one(path: Path, timeout_s: float, clock: Clock) -> HookResult:
    """Runs one program to its end, or ends it and its whole process group when its time is over."""
    return run_bounded([str(path)], path.name, timeout_s, clock, OUTPUT_SIZE_BYTES_MAX)


def run_bounded(
    argv: list[str], name: str, timeout_s: float, clock: Clock, size_bytes_max: int
) -> HookResult:
    """As `run_one`, with arguments; the last `size_bytes_max` bytes of what it writes are kept."""
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
    except OSError as problem:
        return HookResult(name, DID_NOT_START, False, f"does not start: {problem.strerror}")
    assert child.stdout is not None
    try:
        output, timed_out = _watch(child, clock.monotonic_s() + timeout_s, clock, size_bytes_max)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what it left behind, too
        child.wait()
        child.stdout.close()
    return HookResult(name, child.returncode, timed_out, output.decode("utf-8", "replace").strip())


def _watch(
    child: subprocess.Popen[bytes], until_s: float, clock: Clock, size_bytes_max: int
) -> tuple[bytes, bool]:
    """The end of what it wrote, and whether its time ran out. Ends with the program, not with its output:
    a process that it left in the background may hold the pipe open for ever."""
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            ended = child.poll() is not None
            left_s = until_s - clock.monotonic_s()
            if not ended and left_s > 0:
                selector.select(min(_STEP_S, left_s))
            while chunk := _read(child.stdout.fileno()):
                output = (output + chunk)[-size_bytes_max:]
                if not ended and clock.monotonic_s() >= until_s:
                    break
            if ended or left_s <= 0:
                return output, not ended


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_SIZE_BYTES)
    except BlockingIOError:
        return b""
