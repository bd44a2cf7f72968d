"""EFI's global variables, through efivarfs.

A variable is a file `NAME-GUID` of four bytes of attributes, then the data. The kernel takes a variable from
one write, refuses to shorten or append, and marks files whose loss could brick firmware as immutable: that
flag is taken off for the one write or removal that is meant.

Sources: Linux, Documentation/filesystems/efivarfs.rst, fs/efivarfs/file.c, inode.c; UEFI 2.10, 8.2.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import TwinlockError, error

if TYPE_CHECKING:
    from pathlib import Path

GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SIZE_BYTES_MAX: Final = 64 * 1024
# Non-volatile, readable by boot services and at run time: what the global boot variables have to be.
ATTRIBUTES: Final = struct.pack("<I", 7)
IMMUTABLE: Final = 0x10
# _IOR('f', 1, long) and _IOW('f', 2, long), which differ with the size of a long
_LONG: Final = struct.calcsize("l")
GET_FLAGS: Final = 2 << 30 | _LONG << 16 | ord("f") << 8 | 1
SET_FLAGS: Final = 1 << 30 | _LONG << 16 | ord("f") << 8 | 2
_NO_FLAGS: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class EfiVariables:
    """The variables of the global namespace in the efivarfs at `folder`, by their names.

    Every failure is a DeviceError `boot-control`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """What there is."""
        try:
            found = [path.name for path in self._folder.iterdir()]
        except OSError as problem:
            raise error(
                "boot-control",
                f"EFI variables in {self._folder}: {problem.strerror}",
                hint="boot through EFI, and mount efivarfs",
            ) from problem
        return sorted(name.removesuffix(f"-{GLOBAL}") for name in found if name.endswith(f"-{GLOBAL}"))

    def read(self, name: str) -> bytes:
        """The data; empty for a variable that is not there."""
        try:
            fd = self._open(name, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        except OSError as problem:
            raise _failed(name, problem) from problem
        try:
            data = os.read(fd, SIZE_BYTES_MAX)
        except OSError as problem:
            raise _failed(name, problem) from problem
        finally:
            os.close(fd)
        return data[len(ATTRIBUTES) :]

    def write(self, name: str, data: bytes) -> None:
        """Sets the variable, in one write; the firmware has it when this returns."""
        try:
            self._make_mutable(name)
            fd = self._open(name, os.O_WRONLY | os.O_CREAT)
            try:
                if os.write(fd, ATTRIBUTES + data) != len(ATTRIBUTES) + len(data):
                    raise error("boot-control", f"the EFI variable {name} was written in part")
            finally:
                os.close(fd)
        except OSError as problem:
            raise _failed(name, problem) from problem

    def remove(self, name: str) -> None:
        """Deletes the variable; one that is gone already is no error."""
        try:
            self._make_mutable(name)
            self._path(name).unlink()
        except FileNotFoundError:
            return
        except OSError as problem:
            raise _failed(name, problem) from problem

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}-{GLOBAL}"

    def _open(self, name: str, flags: int) -> int:
        return os.open(self._path(name), flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)

    def _make_mutable(self, name: str) -> None:
        try:
            fd = self._open(name, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            flags = array.array("l", [0])
            fcntl.ioctl(fd, GET_FLAGS, flags)
            if flags[0] & IMMUTABLE:
                flags[0] &= ~IMMUTABLE
                fcntl.ioctl(fd, SET_FLAGS, flags)
        except OSError as problem:
            if problem.errno not in _NO_FLAGS:
                raise
        finally:
            os.close(fd)


def _failed(name: str, problem: OSError) -> TwinlockError:
    hint = None
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "the firmware's variable store is full: remove unused boot options in its setup"
    return error("boot-control", f"the EFI variable {name}: {problem.strerror}", hint=hint)
