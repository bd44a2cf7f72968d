"""One writer per folder: a lock on the folder itself, so that no lock file is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinlock.core.durable import os_error
from twinlock.core.errors import error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds `folder` for one writer until the block ends or the process dies, whichever is first.

    Raises PolicyError `conflict` at once when another process holds it.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise os_error(problem, f"folder {folder}") from problem
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            if problem.errno not in (errno.EAGAIN, errno.EACCES):
                raise os_error(problem, f"folder {folder}") from problem
            raise error(
                "conflict",
                f"another command is writing to {folder}",
                hint="wait until it has ended, then run this one again",
            ) from problem
        yield
    finally:
        os.close(fd)
