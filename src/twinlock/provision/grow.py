"""Lets the data partition reach to the end of its medium: `python -m twinlock.provision.grow /data`.

Runs on the device, once, while data is mounted. The order survives a power cut at every step: the table on
the medium is changed by writes that each leave a valid table in force (see `gpt` and `mbr`), then the kernel
is told, then the file system grows (resize2fs does that by its journal), then a note says that it is done.
A step that was already done finds nothing to do.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors, write_atomic
from twinlock.core.errors import TwinlockError, error
from twinlock.core.limits import MIB
from twinlock.provision import gpt, mbr
from twinlock.provision.tools import run

if TYPE_CHECKING:
    from collections.abc import Sequence

ALIGN_BYTES: Final = 1 * MIB
DONE_NOTE: Final = ".grown"
_ENTRIES_BYTES: Final = 128 * 128
_BLKPG: Final = 0x1269
_BLKPG_RESIZE_PARTITION: Final = 3
_BLKSSZGET: Final = 0x1268


def grow_table(disk: Path, sector_size: int) -> tuple[int, int, int] | None:
    """Grows the last partition of a disk or image; (number, start, size) in bytes, None if nothing changed.

    Raises DeviceError `slot-unusable` for a table that is damaged or larger than the disk, `io-error`.
    """
    with os_errors(f"disk {disk}"):
        fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
        try:
            sectors = os.lseek(fd, 0, os.SEEK_END) // sector_size
            first = os.pread(fd, 512, 0)
            header = os.pread(fd, sector_size, sector_size)
            if header.startswith(gpt.SIGNATURE):
                return _grow_gpt(fd, header, sector_size, sectors)
            return _grow_mbr(fd, first, sectors)
        finally:
            os.close(fd)


def _write(fd: int, writes: Sequence[tuple[int, bytes]]) -> None:
    for offset, data in writes:
        if os.pwrite(fd, data, offset) != len(data):
            raise error("io-error", f"the partition table at byte {offset} was written in part")
        os.fdatasync(fd)


def _grow_gpt(fd: int, header: bytes, sector_size: int, sectors: int) -> tuple[int, int, int] | None:
    entries = os.pread(fd, _ENTRIES_BYTES, gpt.entries_lba_of(header) * sector_size)
    table = gpt.decode(header, entries, sector_size)
    new = gpt.grown(table, sectors, ALIGN_BYTES)
    if new is None:
        return None
    # The protective MBR too says how large the disk is; nothing reads it where a GPT is known.
    _write(fd, gpt.encode(new))
    last = max(new.entries, key=lambda entry: entry.last)
    number = gpt.number_of(entries, last.id)
    return number, last.first * sector_size, (last.last - last.first + 1) * sector_size


def _grow_mbr(fd: int, first: bytes, sectors: int) -> tuple[int, int, int] | None:
    read: dict[int, bytes] = {}
    while isinstance(found := mbr.last_logical(read, first), int):
        read[found] = os.pread(fd, 512, found * 512)
    lba, ebr = found
    writes = mbr.grown(first, lba, ebr, sectors, ALIGN_BYTES)
    if not writes:
        return None
    _write(fd, writes)
    offset, length = struct.unpack_from("<II", writes[-1][1], 446 + 8)
    return 4 + len(read), (lba + offset) * 512, length * 512


class _Partition(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_longlong),
        ("length", ctypes.c_longlong),
        ("pno", ctypes.c_int),
        ("devname", ctypes.c_char * 64),
        ("volname", ctypes.c_char * 64),
    )


class _Request(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("datalen", ctypes.c_int),
        ("data", ctypes.c_void_p),
    )


def _tell_kernel(disk: Path, number: int, start_bytes: int, size_bytes: int) -> None:
    """The partition's new size, while it is in use (linux/blkpg.h). Raises DeviceError `io-error`."""
    part = _Partition(start_bytes, size_bytes, number, b"", b"")
    request = _Request(_BLKPG_RESIZE_PARTITION, 0, ctypes.sizeof(part), ctypes.addressof(part))
    with os_errors(f"disk {disk}"):
        fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _BLKPG, request)
        finally:
            os.close(fd)


def _device_of(mount: Path) -> tuple[Path, Path]:
    """(whole disk, partition) that a folder is mounted from, as device files."""
    with os_errors(f"mount {mount}"):
        number = mount.stat().st_dev
        part = Path("/sys/dev/block", f"{os.major(number)}:{os.minor(number)}").resolve()
        if not (part / "partition").exists():
            raise error(
                "slot-unusable", f"{mount} is not a partition of a disk", hint="mount the data partition"
            )
        return Path("/dev", part.parent.name), Path("/dev", part.name)


def _sector_size(disk: Path) -> int:
    with os_errors(f"disk {disk}"):
        fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
        try:
            answer = fcntl.ioctl(fd, _BLKSSZGET, bytes(4))
        except OSError as problem:
            if problem.errno == errno.ENOTTY:  # a disk image
                return 512
            raise
        finally:
            os.close(fd)
    return int(struct.unpack("I", answer)[0])


def grow(mount: Path) -> str:
    """Grows table, partition and file system of the data partition mounted there; says what was done."""
    disk, part = _device_of(mount)
    grown = grow_table(disk, _sector_size(disk))
    if grown is not None:
        _tell_kernel(disk, *grown)
    run(["resize2fs", str(part)], package="e2fsprogs")
    with os_errors(f"note in {mount}"):
        write_atomic(mount / DONE_NOTE, b"the data partition fills its medium\n")
    return f"{part} has {grown[2]} bytes now" if grown else f"{part} has its size already"


def main(arguments: Sequence[str]) -> int:
    """The command. One line on standard output, or one line of error and its exit code."""
    if len(arguments) != 1:
        print("usage: python -m twinlock.provision.grow MOUNTPOINT", file=sys.stderr)
        return 2
    try:
        print(grow(Path(arguments[0])))
    except TwinlockError as problem:
        print(f"error[{problem.code}]: {problem.what} -- hint: {problem.hint}", file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
