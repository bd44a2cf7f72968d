"""Reading an image: a file or a block device, each segment once, holes of sparse files not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twinlock.core import limits
from twinlock.core.durable import os_errors
from twinlock.core.errors import error

SECTOR_SIZE_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of an image. `data` is None where the file has a hole, so all its bytes are zero."""

    number: int
    length_bytes: int
    data: bytes | None


class ImageReader:
    """An open image of `size_bytes`. Use it as a context manager, take `segments` once, then `finish`.

    Raises InputError `input-missing`, `input-wrong-type` (a folder, a pipe), `input-unreadable` (permissions,
    a device in use), `image-empty`, `image-unaligned`, `input-too-large`.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._fd: Final = _open(path)
        try:
            with os_errors(f"image {path}"):
                self.size_bytes: Final = os.lseek(self._fd, 0, os.SEEK_END)
                self._before: Final = os.fstat(self._fd)
            check_size(self.size_bytes, path)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def segments(self) -> Iterator[Segment]:
        """Every segment in order, read with one positioned read each. Raises InputError `image-changed`."""
        data_at = _DataRuns(self._fd, self.size_bytes)
        for number, start in enumerate(range(0, self.size_bytes, limits.SEGMENT_SIZE_BYTES)):
            length = min(limits.SEGMENT_SIZE_BYTES, self.size_bytes - start)
            if data_at.is_hole(start, start + length):
                yield Segment(number, length, None)
                continue
            yield Segment(number, length, self._read(start, length))

    def _read(self, start: int, length_bytes: int) -> bytes:
        with os_errors(f"image {self.path}"):
            data = os.pread(self._fd, length_bytes, start)
            while len(data) < length_bytes:
                more = os.pread(self._fd, length_bytes - len(data), start + len(data))
                if not more:
                    raise error("image-changed", f"image {self.path} became shorter while it was read")
                data += more
        return data

    def finish(self) -> None:
        """Raises InputError `image-changed` when the file was written, cut or grown since it was opened.

        Of a block device only its size can be compared; `O_EXCL` keeps mounted ones out.
        """
        with os_errors(f"image {self.path}"):
            after = os.fstat(self._fd)
            size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        written = after.st_mtime_ns != self._before.st_mtime_ns and stat.S_ISREG(after.st_mode)
        if written or size_bytes != self.size_bytes:
            raise error("image-changed", f"image {self.path} was written to while it was read")


def _open(path: Path) -> int:
    """An open descriptor of a file or block device; a pipe does not block, a device in use is refused."""
    try:
        mode = path.stat().st_mode
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(path, flags | os.O_EXCL if stat.S_ISBLK(mode) else flags)
    except OSError as problem:
        if problem.errno == errno.EBUSY:
            raise error(
                "input-unreadable",
                f"image {path} is a device in use",
                hint="unmount it first, so that nobody writes to it while it is read",
            ) from problem
        if problem.errno in (errno.EACCES, errno.EPERM):
            raise error("input-unreadable", f"image {path}: {problem.strerror}") from problem
        raise error("input-missing", f"image {path}: {problem.strerror}") from problem
    try:
        check_kind(os.fstat(fd).st_mode, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_kind(mode: int, path: Path) -> None:
    """Raises InputError `input-wrong-type` unless `mode` (of stat) is a file's or a block device's."""
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        kind = "a folder" if stat.S_ISDIR(mode) else "neither a file nor a block device"
        raise error(
            "input-wrong-type", f"image {path} is {kind}", hint="give an image file or a block device"
        )


def check_size(size_bytes: int, path: Path) -> None:
    """Raises InputError unless an image may have `size_bytes`: some, in whole sectors, not too many."""
    if size_bytes == 0:
        raise error("image-empty", f"image {path} is empty")
    if size_bytes % SECTOR_SIZE_BYTES:
        raise error("image-unaligned", f"image {path} has {size_bytes} bytes")
    if size_bytes > limits.IMAGE_SIZE_BYTES_MAX:
        raise error(
            "input-too-large",
            f"image {path} has {size_bytes} bytes; at most {limits.IMAGE_SIZE_BYTES_MAX} are allowed",
        )


class _DataRuns:
    """Where a sparse file has data, asked for as the reader goes on (lseek's SEEK_DATA and SEEK_HOLE)."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self._start, self._end = 0, 0  # the run of data that was asked for last; none is before it

    def is_hole(self, start: int, end: int) -> bool:
        """Whether [start, end) holds no data. Calls must rise."""
        if start >= self._end:
            self._start, self._end = self._next(start)
        return end <= self._start

    def _next(self, offset: int) -> tuple[int, int]:
        try:
            start = os.lseek(self._fd, offset, os.SEEK_DATA)
            return start, os.lseek(self._fd, start, os.SEEK_HOLE)
        except OSError as problem:
            if problem.errno == errno.ENXIO:  # only a hole up to the end
                return self._size_bytes, self._size_bytes
            return offset, self._size_bytes  # the file system cannot tell: all of it is data
