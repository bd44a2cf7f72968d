"""A kernel with a page cache: the calls that the agent's storage code makes, and what they leave unflushed.

`Kernel` has the functions of `os` that the agent's stores, slots and boot controls use, with the same names
and meanings, and `paths.KernelPath` those of `pathlib.Path`. So the real adapters run on it, and a flush that
one of them forgets is missing here too. Files live in memory:

| path       | as                      | what a cut may leave                                                |
|------------|-------------------------|---------------------------------------------------------------------|
| `/dev`     | raw media               | see `disk`                                                          |
| `/boot`    | a FAT                   | a rename in parts: both names, neither, or the new one alone        |
| `/efivars` | EFI's variables         | durable when written; in between as before, as after, or gone       |
| `/run`     | memory                  | nothing                                                             |
| the others | a journalling one       | see `disk`                                                          |
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from twinlock.lab.crash.disk import (
    FOLDER,
    ROOT,
    SECTOR_SIZE_BYTES,
    Content,
    Disk,
    Names,
    Pending,
    Sector,
    Size,
    Snapshot,
    parent_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from twinlock.lab.crash.disk import Unit

RUN: Final = "/run"
BOOT: Final = "/boot"
VARIABLES: Final = "/efivars"
DEVICES: Final = "/dev/"


def _failure(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


@dataclass(slots=True)
class _Open:
    path: str
    flags: int
    medium: str = ""
    file: int = FOLDER
    at: int = 0


class Kernel:
    """One boot's, or one device's, view of a disk.

    With `changed` every change is kept pending until it is flushed, and `changed` is called after each; else
    all changes are durable at once, which costs less.
    """

    def __init__(self, disk: Disk, changed: Callable[[], None] | None = None) -> None:
        self._changed = changed
        self._media: dict[str, bytes | bytearray] = {name: one.data for name, one in disk.media.items()}
        self._durable_media: dict[str, Content] = dict(disk.media)
        self._contents: dict[str, Content] = dict(disk.media)  # of media that were not written since
        self._names: dict[str, int] = dict.fromkeys(disk.folders, FOLDER)
        self._data: dict[int, bytes] = {}
        for number, (name, data) in enumerate(disk.files.items()):
            self._names[name] = number
            self._data[number] = data
        self._next_file = len(self._data)
        self._durable_names = dict(self._names)
        self._durable_data = dict(self._data)
        self._pending: list[Pending] = []
        self._open_files: dict[int, _Open] = {}
        self._next_fd = 100
        self._op = 0
        self._transient: set[int] = set()
        self.wish = False  # for a trial boot, carried by a reboot

    def __getattr__(self, name: str) -> int:
        """The constants of `os`; a function that is not here is one that nobody has thought about."""
        value = getattr(os, name)
        if not isinstance(value, int):
            raise AttributeError(f"the simulated kernel has no {name}")
        return value

    # --- what is there --------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """What is durable and what waits, now."""
        return Snapshot(
            dict(self._durable_names),
            dict(self._durable_data),
            dict(self._durable_media),
            tuple(self._pending),
        )

    def disk(self) -> Disk:
        """What a flush of everything would leave."""
        names = self._lasting()
        files = {name: self._data[file] for name, file in names.items() if file != FOLDER}
        folders = frozenset(name for name, file in names.items() if file == FOLDER)
        return Disk(files, folders, {name: self.medium(name) for name in self._media})

    def _lasting(self) -> dict[str, int]:
        return {name: file for name, file in self._names.items() if file not in self._transient}

    def names(self, folder: str) -> list[str]:
        """The paths in a folder."""
        return sorted(name for name in self._names if parent_of(name) == folder)

    def is_folder(self, path: str) -> bool:
        return path in (ROOT, RUN) or self._names.get(path) == FOLDER

    def content(self, path: str) -> bytes | None:
        """A file's bytes; None when there is no file."""
        file = self._names.get(path, FOLDER)
        return None if file == FOLDER else self._data[file]

    def files(self) -> list[tuple[str, bytes]]:
        """Every path of a file, with its content."""
        return [(name, self._data[file]) for name, file in self._names.items() if file != FOLDER]

    def walk(self, folder: object) -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`; folders that the caller takes out of the list are not entered."""
        names = {name.rpartition("/")[2]: name for name in self.names(str(folder))}
        folders = [short for short, name in names.items() if self.is_folder(name)]
        yield str(folder), folders, [short for short in names if short not in folders]
        for short in folders:
            yield from self.walk(names[short])

    def start_run(self, files: Mapping[str, bytes]) -> None:
        """What a boot puts below `/run`; all that was there is gone."""
        for name in self.names(RUN):
            del self._names[name]
        for name, data in files.items():
            self._names[name] = file = self._new_file(name)
            self._data[file] = data

    def medium(self, name: str) -> Content:
        """A medium's bytes, as reads see them."""
        if name not in self._contents:
            self._contents[name] = Content(bytes(self._media[name]))
        return self._contents[name]

    # --- changes and flushes --------------------------------------------------------------------------------

    def _wait(self, units: Sequence[Unit]) -> None:
        """These changes were made, and are not durable yet."""
        if self._changed is None:
            return
        self._op += 1
        self._pending += [Pending(self._op, unit) for unit in units]
        self._changed()

    def _name(self, folder: str, *leads_to: tuple[str, int | None]) -> None:
        """One change of names in a folder; on a FAT each name changes by itself, and goes before it comes."""
        parts = [leads_to]
        if folder != RUN and (folder == VARIABLES or (folder + "/").startswith(f"{BOOT}/")):
            gone = [((name, None),) for name, file in leads_to if file is not None and name in self._names]
            parts = [*gone, *(((name, file),) for name, file in leads_to)]
        for name, file in leads_to:
            if file is None:
                self._names.pop(name, None)
            else:
                self._names[name] = file
        if folder != RUN:
            self._wait([Names(folder, part) for part in parts])
        if folder == VARIABLES:
            self._flush_folder(folder)

    def _new_file(self, name: str) -> int:
        file = self._next_file
        self._next_file += 1
        self._data[file] = b""
        if parent_of(name) == RUN:
            self._transient.add(file)
        return file

    def write_medium(self, name: str, data: bytes | memoryview, offset: int) -> None:
        """Writes to a raw medium; nothing is flushed."""
        current = self._media[name]
        self._contents.pop(name, None)
        if not isinstance(current, bytearray):
            current = self._media[name] = bytearray(current)
        end = offset + len(data)
        units: list[Unit] = []
        if self._changed is not None:
            first, last = offset // SECTOR_SIZE_BYTES, -(-end // SECTOR_SIZE_BYTES)
            whole = bytes(current[first * SECTOR_SIZE_BYTES : last * SECTOR_SIZE_BYTES])
            current[offset:end] = data
            units = list(_sectors(name, first, whole, current))
        else:
            current[offset:end] = data
        self._wait(units)

    def flush_medium(self, name: str) -> None:
        """Makes a medium durable."""
        if self._changed is None:
            return
        self._durable_media[name] = self.medium(name)
        self._pending = [
            one for one in self._pending if not (isinstance(one.unit, Sector) and one.unit.where == name)
        ]
        self._changed()

    def flush_all(self) -> None:
        """What a system does before it reboots."""
        if self._changed is None:
            return
        self._durable_names, self._durable_data = self._lasting(), dict(self._data)
        self._durable_media = {name: self.medium(name) for name in self._media}
        self._pending.clear()
        self._changed()

    def _flush_file(self, file: int) -> None:
        if self._changed is None or file in self._transient:
            return
        self._durable_data[file] = self._data[file]
        self._pending = [one for one in self._pending if not _is_of(one.unit, file)]
        self._changed()

    def _flush_folder(self, folder: str) -> None:
        if self._changed is None or folder == RUN:
            return
        for name in {*self.names(folder), *(one for one in self._durable_names if parent_of(one) == folder)}:
            if name in self._names:
                self._durable_names[name] = self._names[name]
            else:
                self._durable_names.pop(name, None)
        self._pending = [
            one for one in self._pending if not (isinstance(one.unit, Names) and one.unit.folder == folder)
        ]
        self._forget_unreachable()
        self._changed()

    def _forget_unreachable(self) -> None:
        """Data of files to which no name leads any more, whatever survives, is nobody's."""
        reachable = {*self._durable_names.values(), *self._names.values()}
        for one in self._pending:
            if isinstance(one.unit, Names):
                reachable.update(file for _, file in one.unit.leads_to if file is not None)
        gone = self._data.keys() - reachable
        for file in gone:
            del self._data[file]
            self._durable_data.pop(file, None)
        self._pending = [one for one in self._pending if not any(_is_of(one.unit, file) for file in gone)]

    # --- as `os` has it -------------------------------------------------------------------------------------

    def open(self, path: object, flags: int, mode: int = 0o777) -> int:
        del mode
        name = str(path)
        opened = _Open(name, flags)
        if name.startswith(DEVICES):
            if name not in self._media:
                raise _failure(errno.ENOENT, name)
            opened.medium = name
        elif self.is_folder(name):
            if not flags & os.O_DIRECTORY:
                raise _failure(errno.EISDIR, name)
        else:
            opened.file = self._open_file(name, flags)
        self._next_fd += 1
        self._open_files[self._next_fd] = opened
        return self._next_fd

    def _open_file(self, name: str, flags: int) -> int:
        file = self._names.get(name)
        if file is None:
            if not flags & os.O_CREAT or not self.is_folder(parent_of(name)):
                raise _failure(errno.ENOENT, name)
            file = self._new_file(name)
            if parent_of(name) != VARIABLES:  # there is no variable before its first write
                self._name(parent_of(name), (name, file))
        elif flags & os.O_TRUNC and self._data[file]:
            self._data[file] = b""
            if file not in self._transient:
                self._wait([Size(file, 0)])
        return file

    def close(self, fd: int) -> None:
        del self._open_files[fd]

    def fsync(self, fd: int) -> None:
        opened = self._open_files[fd]
        if opened.medium:
            self.flush_medium(opened.medium)
        elif opened.file == FOLDER:
            self._flush_folder(opened.path)
        else:
            self._flush_file(opened.file)

    fdatasync = fsync

    def write(self, fd: int, data: bytes | memoryview) -> int:
        opened = self._open_files[fd]
        at = len(self._data[opened.file]) if opened.flags & os.O_APPEND else opened.at
        done = self._write_file(opened, data, at)
        opened.at = at + done
        return done

    def _write_file(self, opened: _Open, data: bytes | memoryview, offset: int) -> int:
        if parent_of(opened.path) == VARIABLES:
            file = self._new_file(opened.path)
            self._data[file] = self._durable_data[file] = bytes(data)
            self._name(VARIABLES, (opened.path, file))
            return len(data)
        before = self._data[opened.file]
        after = before[:offset].ljust(offset, b"\0") + bytes(data) + before[offset + len(data) :]
        self._data[opened.file] = after
        if self._changed is not None and opened.file not in self._transient:
            first = offset // SECTOR_SIZE_BYTES
            last = -(-(offset + len(data)) // SECTOR_SIZE_BYTES)
            whole = before[first * SECTOR_SIZE_BYTES : last * SECTOR_SIZE_BYTES]
            units: list[Unit] = list(_sectors(opened.file, first, whole, after, last))
            if len(after) != len(before):
                units.append(Size(opened.file, len(after)))
            self._wait(units)
        if opened.flags & (os.O_DSYNC | os.O_SYNC):
            self._flush_file(opened.file)
        return len(data)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        opened = self._open_files[fd]
        if not opened.medium:
            return self._write_file(opened, data, offset)
        self.write_medium(opened.medium, data, offset)
        if opened.flags & (os.O_DSYNC | os.O_SYNC):
            self.flush_medium(opened.medium)
        return len(data)

    def pread(self, fd: int, size_bytes: int, offset: int) -> bytes:
        opened = self._open_files[fd]
        data = self._media[opened.medium] if opened.medium else self._data[opened.file]
        return bytes(data[offset : offset + size_bytes])

    def read(self, fd: int, size_bytes: int) -> bytes:
        opened = self._open_files[fd]
        data = self.pread(fd, size_bytes, opened.at)
        opened.at += len(data)
        return data

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        done = 0
        for buffer in buffers:
            data = self.pread(fd, len(buffer), offset + done)
            buffer[: len(data)] = data
            done += len(data)
        return done

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        opened = self._open_files[fd]
        data = self._media[opened.medium] if opened.medium else self._data[opened.file]
        opened.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: opened.at, os.SEEK_END: len(data)}[whence]
        return opened.at

    def fstat(self, fd: int) -> SimpleNamespace:
        opened = self._open_files[fd]
        kind = stat.S_IFBLK if opened.medium else stat.S_IFDIR if opened.file == FOLDER else stat.S_IFREG
        size_bytes = len(self._data.get(opened.file, b""))
        return SimpleNamespace(st_mode=kind | 0o600, st_size=size_bytes)

    def posix_fadvise(self, fd: int, offset: int, size_bytes: int, advice: int) -> None:
        """Pages that are not flushed stay, and reads see them, as in the real one."""

    # --- as `pathlib` has it --------------------------------------------------------------------------------

    def rename(self, old: str, new: str) -> None:
        file = self._names.get(old)
        if file is None:
            raise _failure(errno.ENOENT, old)
        self._name(parent_of(old), (old, None), (new, file))

    def unlink(self, path: str) -> None:
        """Also how firmware removes a variable."""
        if self._names.get(path, FOLDER) == FOLDER:
            raise _failure(errno.ENOENT, path)
        self._name(parent_of(path), (path, None))

    def mkdir(self, path: str) -> None:
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._name(parent_of(path), (path, FOLDER))


def _is_of(unit: Unit, file: int) -> bool:
    match unit:
        case Sector():
            return unit.where == file
        case Size():
            return unit.file == file
    return False


def _sectors(
    where: str | int, first: int, before: bytes, now: bytes | bytearray, last: int | None = None
) -> Iterator[Sector]:
    """The sectors from number `first` on that differ from what they held; `before` begins at the first."""
    count = -(-len(before) // SECTOR_SIZE_BYTES) if last is None else last - first
    for number in range(count):
        held = before[number * SECTOR_SIZE_BYTES : (number + 1) * SECTOR_SIZE_BYTES]
        start = (first + number) * SECTOR_SIZE_BYTES
        holds = bytes(now[start : start + SECTOR_SIZE_BYTES])
        if holds != held:
            yield Sector(where, first + number, holds, held)


class Switch:
    """Stands in for the module `os` in the agent's storage code; `kernel` is the one that counts now."""

    def __init__(self) -> None:
        self.kernel: Kernel | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)
