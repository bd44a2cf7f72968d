"""State that survives a power cut: one way to write it, used by every tier.

`write_atomic` leaves, whenever the power goes:
  1. before the temporary file is written or flushed: the old file, and maybe a `.tmp` beside it;
  2. after the flush, before the rename: the old file, and a complete `.tmp`;
  3. after the rename, before the folder's flush: the old or the new file, each whole;
  4. after the folder's flush: the new file.
A `.tmp` left behind is overwritten by the next write of the same file.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from twinlock.core.errors import TwinlockError, error

if TYPE_CHECKING:
    from collections.abc import Iterator

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def os_error(problem: OSError, what: str) -> TwinlockError:
    """The TwinlockError for an OSError on the named thing: `disk-full`, `permission-denied`, `io-error`..."""
    reason = problem.strerror or str(problem)
    if problem.errno in _FULL:
        return error("disk-full", f"{what}: {reason}")
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return error("permission-denied", f"{what}: {reason}")
    if problem.errno in (errno.ENOENT, errno.ENOTDIR):
        return error("input-missing", f"{what}: {reason}")
    if problem.errno == errno.EISDIR:
        return error("input-wrong-type", f"{what}: {reason}")
    return error("io-error", f"{what}: {reason}")


@contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turns any OSError inside into the TwinlockError for `what`."""
    try:
        yield
    except OSError as problem:
        raise os_error(problem, what) from problem


def fsync_dir(folder: Path) -> None:
    """Flushes a folder's entries. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Writes every byte, however many calls it takes. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replaces the file at `path` by `data`; see the module docstring for what a power cut leaves.

    Raises OSError; wrap the call in `os_errors` where a user sees the result.
    """
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk gets its space back
        raise
    finally:
        os.close(fd)
    temporary.replace(path)
    fsync_dir(path.parent)


def remove_durably(path: Path) -> None:
    """Removes a file, and flushes the folder; a file that is already gone is no error. Raises OSError."""
    path.unlink(missing_ok=True)
    fsync_dir(path.parent)


def read_bounded(path: Path, size_bytes_max: int, what: str, *, pipes: bool = False) -> bytes:
    """The whole file, if it is at most `size_bytes_max`; raises InputError `input-too-large` otherwise.

    Reads one byte past the bound rather than trusting the size that the file system reports. A pipe, on which
    one could wait for ever, is `input-wrong-type` unless `pipes` says that a program may hand this in.
    """
    with os_errors(f"{what} {path}"):
        is_pipe = path.is_fifo()
    if is_pipe and not pipes:
        raise error("input-wrong-type", f"{what} {path} is a pipe", hint="give a file")
    with os_errors(f"{what} {path}"), path.open("rb") as file:
        data = file.read(size_bytes_max + 1)
    if len(data) > size_bytes_max:
        raise error("input-too-large", f"{what} {path} is larger than {size_bytes_max} bytes")
    return data
