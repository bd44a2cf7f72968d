"""An efivarfs made of plain files: one write sets a variable, immutable files refuse changes."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from twinlock.agent.boot import efivars


class FakeEfivarfs:
    """Behaves as Linux's: `immutable` holds the names whose files refuse to be opened for writing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.immutable: set[str] = set()
        self.full = False
        self.log: list[str] = []
        self._fds: dict[int, str] = {}

    def put(self, name: str, data: bytes, *, immutable: bool = False) -> None:
        (self.folder / f"{name}-{efivars.GLOBAL}").write_bytes(struct.pack("<I", 7) + data)
        if immutable:
            self.immutable.add(name)

    def name_of(self, path: Any) -> str | None:
        where = Path(path)
        inside = where.parent == self.folder
        return where.name.removesuffix(f"-{efivars.GLOBAL}") if inside else None


@contextmanager
def mounted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEfivarfs]:
    """The fake in place of the kernel for everything in `folder`."""
    fake = FakeEfivarfs(folder)
    real_close = os.close
    real_open, real_write, real_unlink, real_ioctl = os.open, os.write, os.unlink, fcntl.ioctl

    def fake_open(path: Any, flags: int, *args: Any, **more: Any) -> int:
        name = fake.name_of(path) if isinstance(path, str | Path) else None
        if name in fake.immutable and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        fd = real_open(path, flags, *args, **more)
        if name is not None:
            fake._fds[fd] = name
        return fd

    def fake_write(fd: int, data: Any) -> int:
        name = fake._fds.get(fd)
        if name is None:
            return real_write(fd, data)
        if fake.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if len(data) < 4 or struct.unpack_from("<I", data)[0] != 7:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fake.log.append(f"set {name}")
        os.ftruncate(fd, 0)
        return real_write(fd, data)

    def fake_close(fd: int) -> None:
        fake._fds.pop(fd, None)
        real_close(fd)

    def fake_unlink(path: Any, **more: Any) -> None:
        name = fake.name_of(path)
        if name in fake.immutable:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        real_unlink(path, **more)
        if name is not None:
            fake.log.append(f"delete {name}")

    def fake_ioctl(fd: int, request: int, argument: array.array[int]) -> Any:
        name = fake._fds.get(fd)
        if name is None:
            return real_ioctl(fd, request, argument)
        if request == efivars.GET_FLAGS:
            argument[0] = efivars.IMMUTABLE if name in fake.immutable else 0
        elif request == efivars.SET_FLAGS:
            assert not argument[0] & efivars.IMMUTABLE
            fake.immutable.discard(name)
        else:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fake_open)
        patch.setattr(os, "write", fake_write)
        patch.setattr(os, "close", fake_close)
        patch.setattr(os, "unlink", fake_unlink)
        patch.setattr(fcntl, "ioctl", fake_ioctl)
        yield fake
