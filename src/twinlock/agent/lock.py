"""One agent at a time: a lock on a file of the state folder, held for as long as the process lives.

The kernel drops the lock when the last process that has the file open ends, however it ends. The metadata
process inherits it from `run`, so a run that is killed does not let the next one in while its child still
works; that child ends with its parent, which is what the short wait is for.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from twinlock.agent.ports import Clock

LOCK: Final = "lock"
WAIT_S: Final = 5.0
STEP_S: Final = 0.05


def take(folder: Path, clock: Clock, wait_s: float = WAIT_S) -> int:
    """The open lock file; closing it gives the lock up.

    Raises DeviceError `agent-busy` after `wait_s`, `permission-denied` for a folder that is not the agent's
    alone.
    """
    with os_errors(f"state folder {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(folder)
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = clock.monotonic_s() + wait_s
    while not _try(fd):
        if clock.monotonic_s() >= until:
            os.close(fd)
            raise error("agent-busy", f"another run of the agent works in {folder}")
        clock.sleep(STEP_S)
    return fd


def check_private(folder: Path) -> None:
    """Raises DeviceError `permission-denied` when anybody but this user and root may write to `folder`.

    Who may could replace the pinned root of trust, the device's key or a verified plan.
    """
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise error(
            "permission-denied",
            f"the state folder {folder} may be written to by others (owner {found.st_uid}, "
            f"mode {stat.S_IMODE(found.st_mode):o})",
            hint="find out who wrote there, then give the folder to the agent's user with mode 700",
        )


@contextmanager
def held(folder: Path, clock: Clock) -> Iterator[int]:
    """The lock for as long as the block lasts; gives its file, for a child to hold it too."""
    fd = take(folder, clock)
    try:
        yield fd
    finally:
        os.close(fd)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
