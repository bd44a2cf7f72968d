"""Paths on a simulated kernel."""

from __future__ import annotations

import errno
import io
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from twinlock.lab.crash.disk import parent_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.lab.crash.kernel import Kernel


def _failure(number: int, path: KernelPath) -> OSError:
    return OSError(number, os.strerror(number), str(path))


class KernelPath:
    """An absolute path on a kernel: what the agent's code uses of `pathlib.Path`."""

    def __init__(self, kernel: Kernel, path: str) -> None:
        self._kernel = kernel
        self._path = path

    def __str__(self) -> str:
        return self._path

    __fspath__ = __str__

    def joinpath(self, *parts: str) -> KernelPath:
        path = self._path
        for part in parts:
            path = part if part.startswith("/") else f"{path.rstrip('/')}/{part}"
        return KernelPath(self._kernel, path)

    __truediv__ = joinpath

    def with_name(self, name: str) -> KernelPath:
        return self.parent.joinpath(name)

    @property
    def parent(self) -> KernelPath:
        return KernelPath(self._kernel, parent_of(self._path))

    @property
    def name(self) -> str:
        return self._path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self._path).suffix

    def exists(self) -> bool:
        return self.is_dir() or self.is_file()

    def is_dir(self) -> bool:
        return self._kernel.is_folder(str(self))

    def is_fifo(self) -> bool:
        return False  # nothing in the agent's folders is a pipe

    def relative_to(self, folder: KernelPath) -> PurePosixPath:
        return PurePosixPath(self._path).relative_to(str(folder))

    def is_file(self) -> bool:
        return self._kernel.content(str(self)) is not None

    def iterdir(self) -> Iterator[KernelPath]:
        return (KernelPath(self._kernel, name) for name in self._kernel.names(str(self)))

    def open(self, mode: str = "rb") -> io.BytesIO:
        if mode != "rb":
            raise _failure(errno.EINVAL, self)
        data = self._kernel.content(str(self))
        if data is None:
            raise _failure(errno.ENOENT, self)
        return io.BytesIO(data)

    def mkdir(self, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        del mode
        if self.is_dir():
            if exist_ok:
                return
            raise _failure(errno.EEXIST, self)
        if parents and not self.parent.is_dir():
            self.parent.mkdir(parents=True, exist_ok=True)
        self._kernel.mkdir(str(self))

    def replace(self, target: KernelPath) -> KernelPath:
        self._kernel.rename(str(self), str(target))
        return target

    rename = replace

    def unlink(self, *, missing_ok: bool = False) -> None:
        if self.is_file():
            self._kernel.unlink(str(self))
        elif not missing_ok:
            raise _failure(errno.ENOENT, self)
