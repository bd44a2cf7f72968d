"""Real processes that end: each in a process group of its own, ended by its id with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OUTPUT_SIZE_BYTES_MAX: Final = 1 << 20
STOP_WAIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Finished:
    """How a process ended. `exit_code` is minus the signal's number when a signal ended it."""

    exit_code: int
    stdout: str
    stderr: str


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 120.0) -> Finished:
    """Runs a process to its end; whatever it left behind in its group is ended too.

    Raises InputError or DeviceError when it cannot be started, InternalError `internal` when it does not end
    within `timeout_s`.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(argv, env=env, stdout=out, stderr=err)
        try:
            exit_code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as problem:
            what = f"`{' '.join(argv[:6])}` did not end within {timeout_s:g} s: {_text(err)[-500:]}"
            raise error("internal", what) from problem
        finally:
            end_group(process)
        return Finished(exit_code, _text(out), _text(err))


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Starts a process in a group of its own; see to `end_group` on every way out."""
    with os_errors(argv[0]):
        return subprocess.Popen(
            list(argv),
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends at once what is left of a process and of what it started."""
    with contextlib.suppress(ProcessLookupError):  # the whole group has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stop(process: subprocess.Popen[bytes], wait_s: float = STOP_WAIT_S) -> int:
    """Asks a process to end (SIGTERM) and gives its exit code; after `wait_s` it is ended at once."""
    with contextlib.suppress(ProcessLookupError):  # it has ended
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):  # then at once
        process.wait(wait_s)
    end_group(process)
    return process.returncode


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(OUTPUT_SIZE_BYTES_MAX).decode("utf-8", "replace")
