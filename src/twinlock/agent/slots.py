"""The two slots: block devices, or ranges of one disk file. Is `ports.Slots`.

A block device is opened exclusively: the kernel refuses one that is mounted, so the running system's own slot
cannot be opened for writing even if everything above this failed.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_error
from twinlock.core.errors import TwinlockError, error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.agent.config import SlotConfig

ALIGNMENT_BYTES: Final = 512


class FileDevice:
    """`size_bytes` bytes of an open file from `offset_bytes` on. Is a `ports.BlockDevice`."""

    def __init__(self, fd: int, offset_bytes: int, size_bytes: int, what: str) -> None:
        self._fd = fd
        self._offset = offset_bytes
        self._size = size_bytes
        self._what = what

    @property
    def size_bytes(self) -> int:
        return self._size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills `buffer` from `offset` on. Raises DeviceError `io-error`."""
        self._check(len(buffer), offset)
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._fd, [buffer[done:]], self._offset + offset + done)
            except OSError as problem:
                raise os_error(problem, self._what) from problem
            if got == 0:
                raise error("io-error", f"{self._what} ends at {offset + done} bytes")
            done += got

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Writes all of `data` at `offset`. Raises DeviceError `io-error`, `disk-full`."""
        self._check(len(data), offset)
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, self._offset + offset)
                view, offset = view[done:], offset + done
        except OSError as problem:
            raise os_error(problem, self._what) from problem

    def sync(self) -> None:
        """Returns once everything written is on the medium. Raises DeviceError `io-error`."""
        try:
            os.fdatasync(self._fd)
        except OSError as problem:
            raise os_error(problem, self._what) from problem

    def drop_cache(self) -> None:
        """Later reads come from the medium; call `sync` first, only clean pages are dropped."""
        try:
            os.posix_fadvise(self._fd, self._offset, self._size, os.POSIX_FADV_DONTNEED)
        except OSError as problem:
            raise os_error(problem, self._what) from problem

    def close(self) -> None:
        os.close(self._fd)

    def _check(self, length: int, offset: int) -> None:
        if offset < 0 or offset + length > self._size:
            raise error("internal", f"{self._what}: bytes {offset} to {offset + length} are outside the slot")


class ConfiguredSlots:
    """The slots that the configuration names."""

    def __init__(self, slots: Mapping[str, SlotConfig]) -> None:
        self._slots = slots

    def size_bytes(self, slot: str) -> int:
        """How large the slot is. Raises DeviceError `slot-unusable`."""
        device = self._open(slot, os.O_RDONLY)
        device.close()
        return device.size_bytes

    def open(self, slot: str) -> FileDevice:
        """The slot for writing, exclusively. Raises DeviceError `slot-busy`, `slot-unusable`."""
        return self._open(slot, os.O_RDWR | os.O_EXCL)

    def look(self, slot: str) -> FileDevice:
        """The slot for reading, beside whoever uses it. Raises DeviceError `slot-unusable`."""
        return self._open(slot, os.O_RDONLY)

    def _open(self, slot: str, flags: int) -> FileDevice:
        where = self._slots.get(slot)
        if where is None:
            raise error("slot-unusable", f"slot {slot!r} is not configured")
        what = f"slot {slot} ({where.path})"
        try:
            fd = os.open(where.path, (flags & ~os.O_EXCL) | os.O_CLOEXEC | os.O_NONBLOCK)
            is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
            if is_block and flags & os.O_EXCL:
                os.close(fd)
                fd = os.open(where.path, flags | os.O_CLOEXEC)
        except OSError as problem:
            raise _slot_error(problem, what) from problem
        try:
            size_bytes = _size(fd, where, what)
        except BaseException:
            os.close(fd)
            raise
        return FileDevice(fd, where.offset_bytes, size_bytes, what)


def _size(fd: int, where: SlotConfig, what: str) -> int:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
        raise error("slot-unusable", f"{what} is neither a block device nor a file")
    end = os.lseek(fd, 0, os.SEEK_END)
    size_bytes = end - where.offset_bytes if where.size_bytes is None else where.size_bytes
    if size_bytes <= 0 or where.offset_bytes + size_bytes > end:
        raise error("slot-unusable", f"{what} ends at {end} bytes, which the configured range exceeds")
    return size_bytes - size_bytes % ALIGNMENT_BYTES


def _slot_error(problem: OSError, what: str) -> TwinlockError:
    if problem.errno in (errno.EBUSY, errno.ETXTBSY):
        return error("slot-busy", f"{what} is in use: {problem.strerror}")
    if problem.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EISDIR, errno.ENOTDIR):
        return error("slot-unusable", f"{what}: {problem.strerror}")
    return os_error(problem, what)
