"""The loader's files on a real device: its FAT partition, and EFI's variables. Is `beside.Place`.

The partition is mounted for as long as it is looked at, read-only unless something is to be changed, and in a
folder below /run: nothing else on the device depends on it, and a power cut finds it unmounted. A system that
has it mounted itself keeps it so. A file is
written beside its place, flushed, renamed, and read again from the medium; a file that firmware must find at
any time is written over in place, within one sector.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from twinlock.core.bootloader import VARIABLES, Drop, Patch, Put, slot_folder
from twinlock.core.durable import fsync_dir, os_errors, write_all, write_atomic
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from twinlock.agent.boot.efivars import EfiVariables
    from twinlock.agent.boot.kernels import Kernels
    from twinlock.agent.boot.mounts import Mounts
    from twinlock.core.bootloader import Step

NAMES_MAX: Final = 4096
DEPTH_MAX: Final = 3
FILE_SIZE_BYTES_MAX: Final = 64 * 1024


class BootPlace:
    """`folder` is where the partition is, or where `device` gets mounted for the time of a change."""

    def __init__(
        self,
        folder: Path,
        device: Path | None,
        mounts: Mounts,
        kernels: Kernels,
        variables: EfiVariables | None = None,
    ) -> None:
        self._folder = folder
        self._device = device
        self._mounts = mounts
        self._kernels = kernels
        self._variables = variables

    @contextmanager
    def open(self, *, write: bool) -> Iterator[OpenBootPlace]:
        """The files, reachable. Raises DeviceError `boot-control` when the partition cannot be mounted."""
        if self._device is None:
            yield OpenBootPlace(self._folder, self._kernels, self._variables)
            return
        with self._mounts.mounted(self._device, self._folder, write=write, options=("-t", "vfat")) as place:
            yield OpenBootPlace(place, self._kernels, self._variables)


class OpenBootPlace:
    """Is `beside.OpenPlace`."""

    def __init__(self, folder: Path, kernels: Kernels, variables: EfiVariables | None) -> None:
        self._folder = folder
        self._kernels = kernels
        self._variables = variables

    def read(self, watches: Callable[[str], bool]) -> dict[str, bytes]:
        """The watched files and variables. Raises DeviceError `boot-control` beyond 4096 names or 64 KiB."""
        found: dict[str, bytes] = {}
        with os_errors(f"the loader's files in {self._folder}"):
            for count, path in enumerate(self._paths()):
                if count >= NAMES_MAX:
                    raise error("boot-control", f"{self._folder} holds more than {NAMES_MAX} files")
                # FAT knows no case; the loader's names are all small letters.
                name = path.relative_to(self._folder).as_posix().lower()
                if watches(name):
                    found[name] = self._content(path)
        if self._variables is not None:
            for name in self._variables.names():
                if watches(VARIABLES + name):
                    found[VARIABLES + name] = self._variables.read(name)
        return found

    def _paths(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self._folder):
            where = self._folder / folder
            if len(where.relative_to(self._folder).parts) >= DEPTH_MAX:
                folders.clear()
            yield from (where / name for name in names)

    def _content(self, path: Path) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            data = os.read(fd, FILE_SIZE_BYTES_MAX + 1)
        finally:
            os.close(fd)
        if len(data) > FILE_SIZE_BYTES_MAX:
            raise error("boot-control", f"{path} is larger than {FILE_SIZE_BYTES_MAX} bytes")
        return data

    def perform(self, step: Step) -> None:
        """Raises DeviceError `boot-control` when the medium does not keep it, `disk-full`, `io-error`."""
        if step.path.startswith(VARIABLES):
            self._perform_variable(step)
            return
        path = self._folder / step.path
        with os_errors(f"the loader's file {path}"):
            match step:
                case Put(_, data):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(path, data)
                case Patch(_, data):
                    _overwrite(path, data)
                case Drop():
                    path.unlink(missing_ok=True)
                    fsync_dir(path.parent)
                    return
            if _from_medium(path, len(step.data)) != step.data:
                raise error("boot-control", f"{path} is not what was written")

    def _perform_variable(self, step: Step) -> None:
        name = step.path.removeprefix(VARIABLES)
        if self._variables is None:
            raise error("internal", f"{name} on a device without EFI variables")
        match step:
            case Put(_, data) | Patch(_, data):
                self._variables.write(name, data)
                if self._variables.read(name) != data:
                    raise error("boot-control", f"the EFI variable {name} is not what was written")
            case Drop():
                self._variables.remove(name)

    def install(self, slot: str) -> None:
        """Copies the slot's kernel and what goes with it. Raises what `Kernels.install` does."""
        self._kernels.install(slot, self._folder / slot_folder(slot))


def _overwrite(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_size != len(data):
            raise error("boot-control", f"{path} does not have {len(data)} bytes")
        write_all(fd, data)
    finally:
        os.close(fd)


def _from_medium(path: Path, size_bytes: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.read(fd, size_bytes + 1)
    finally:
        os.close(fd)
