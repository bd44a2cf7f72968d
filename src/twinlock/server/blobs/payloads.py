"""Payload files in a folder: `SHA256.payload`.

An upload is written to a file of its own in the folder for temporary files, on the same file system. What a
power cut leaves:
  1. while bytes come in, or before they are flushed: a `.part` file, removed when a server starts;
  2. after the flush, before the rename: the same;
  3. after the rename, before the folder's flush: the payload, or the `.part` file, each whole;
  4. after the folder's flush: the payload.
A `.part` file is locked by the server that writes it, so that another one in the same folder leaves it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from twinlock.core.durable import fsync_dir, os_errors, write_all
from twinlock.core.errors import error
from twinlock.core.names import check_sha256_hex

if TYPE_CHECKING:
    from collections.abc import Callable

_SUFFIX: Final = ".payload"
_PART: Final = ".part"


class PayloadFiles:
    """`PayloadFolder` on two folders of one file system; both exist."""

    def __init__(
        self,
        folder: Path,
        temporary: Path,
        free_bytes_min: int = 0,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        self._folder: Final = folder
        self._temporary: Final = temporary
        self._free_bytes_min: Final = free_bytes_min
        self._free_bytes: Final = free_bytes or _free_bytes

    def path(self, sha256: str) -> Path:
        return self._folder / (check_sha256_hex(sha256) + _SUFFIX)

    def size_bytes(self, sha256: str) -> int | None:
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def is_whole(self, sha256: str) -> bool:
        try:
            with self.path(sha256).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except FileNotFoundError:
            return False

    def open(self, sha256: str) -> BinaryIO:
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError as problem:
            raise error("not-found", f"this server has no payload {sha256}") from problem

    def upload(self, sha256: str, size_bytes: int) -> PayloadUpload:
        free = self._free_bytes(self._temporary)
        if free - size_bytes < self._free_bytes_min:
            raise error(
                "disk-full",
                f"a payload of {size_bytes} bytes does not fit: {free} bytes are free, "
                f"{self._free_bytes_min} of them stay free",
                hint="free some space on the server's disk",
            )
        return PayloadUpload(self.path(sha256), self._temporary, sha256, size_bytes)

    def remove_leftovers(self) -> int:
        """Removes what uploads that a power cut ended have left; returns how many files that were."""
        count = 0
        for path in self._temporary.glob("*" + _PART):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                count += 1
        return count


class PayloadUpload:
    """One upload; see the module docstring. Raises DeviceError for what the disk refuses."""

    def __init__(self, path: Path, temporary: Path, sha256: str, size_bytes: int) -> None:
        self._path: Final = path
        self._part: Final = temporary / f"{sha256}.{secrets.token_hex(8)}{_PART}"
        self._sha256: Final = sha256
        self._size_bytes: Final = size_bytes
        self._digest: Final = hashlib.sha256()
        self._came_bytes = 0
        with os_errors("upload"):
            self._fd: int | None = os.open(
                self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
            )
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def write(self, data: bytes) -> None:
        assert self._fd is not None
        self._came_bytes += len(data)
        if self._came_bytes > self._size_bytes:
            raise error("request-too-large", f"more than the announced {self._size_bytes} bytes came")
        self._digest.update(data)
        with os_errors(f"payload {self._sha256}"):
            write_all(self._fd, data)

    def finish(self) -> None:
        assert self._fd is not None
        if self._came_bytes != self._size_bytes:
            raise error("payload-hash", f"{self._came_bytes} of {self._size_bytes} announced bytes came")
        if self._digest.hexdigest() != self._sha256:
            raise error(
                "payload-hash", f"the bytes have SHA-256 {self._digest.hexdigest()}, not {self._sha256}"
            )
        with os_errors(f"payload {self._sha256}"):
            os.fsync(self._fd)
            self._part.rename(self._path)
            fsync_dir(self._path.parent)
        os.close(self._fd)
        self._fd = None

    def abandon(self) -> None:
        if self._fd is None:
            return
        self._part.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = None


def _free_bytes(folder: Path) -> int:
    with os_errors(str(folder)):
        found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
