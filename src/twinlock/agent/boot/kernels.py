"""Copies what a loader on FAT starts, kernel and what goes with it, from a slot to the loader's partition.

The slot was read back and hashed just before; it is mounted read-only, and what it names is copied into the
folder of that slot, which nothing that the loader reads points at yet. Each file is written beside its place,
flushed, renamed and read again from the medium. A cut leaves files of the old and the new release side by
side: the copy is made again before the slot is armed. Files that are the same already are not written.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.core.bootloader_tryboot import COMMAND_LINE, TRIAL_COMMAND_LINE
from twinlock.core.durable import fsync_dir, os_errors, remove_durably, write_all
from twinlock.core.errors import error
from twinlock.core.limits import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from twinlock.agent.boot.mounts import Mounts
    from twinlock.agent.config import SlotConfig

FILES_MAX: Final = 2048
SIZE_BYTES_MAX: Final = 512 * MIB
LINKS_MAX: Final = 40
CHUNK_BYTES: Final = 256 * 1024
_KEPT: Final = frozenset({COMMAND_LINE, TRIAL_COMMAND_LINE})  # made by the agent, not by the release


@dataclass(frozen=True, slots=True)
class Kernels:
    """`copies` names files or folders inside a slot, and what they are called in the slot's folder.

    A folder is copied with all that is in it; the name "" puts its content right into the slot's folder.
    """

    copies: Mapping[str, str]
    slots: Mapping[str, SlotConfig]
    mounts: Mounts
    point: Path

    def install(self, slot: str, folder: Path) -> None:
        """Makes `folder` hold the slot's files and nothing else.

        Raises DeviceError `boot-control` when the slot lacks one or cannot be mounted, `disk-full`.
        """
        where = self.slots[slot]
        options: tuple[str, ...] = ()
        if where.offset_bytes or where.size_bytes is not None:
            options = ("-o", f"loop,offset={where.offset_bytes}")
            if where.size_bytes is not None:
                options = ("-o", f"{options[1]},sizelimit={where.size_bytes}")
        with self.mounts.mounted(where.path, self.point, write=False, options=options) as place:
            copy_tree(place, self.copies, folder)


def copy_tree(root: Path, copies: Mapping[str, str], folder: Path) -> None:
    """`copies` of the file system at `root` to `folder`; anything else in `folder` is removed.

    Raises DeviceError `boot-control`, `disk-full`, `io-error`.
    """
    wanted: dict[str, Path] = {}
    with os_errors(f"kernel files in {folder}"):
        for path, name in copies.items():
            wanted |= dict(_files(root, path, name))
        if len(wanted) > FILES_MAX or sum(path.stat().st_size for path in wanted.values()) > SIZE_BYTES_MAX:
            raise error("boot-control", f"more than {FILES_MAX} files or {SIZE_BYTES_MAX} bytes to copy")
        folder.mkdir(parents=True, exist_ok=True)
        fsync_dir(folder.parent)
        small = {name.lower() for name in wanted}
        for found in sorted(folder.rglob("*")):
            name = found.relative_to(folder).as_posix().lower()
            if found.is_file() and name not in small and name not in _KEPT:
                remove_durably(found)
        for name, source in sorted(wanted.items()):
            _copy(source, folder / name)


def _files(root: Path, path: str, name: str) -> Iterator[tuple[str, Path]]:
    source = inside(root, path)
    if source.is_dir():
        for one in sorted(source.rglob("*")):
            if one.is_file() and not one.is_symlink():
                yield f"{name}/{one.relative_to(source).as_posix()}".lstrip("/"), one
        return
    if not stat.S_ISREG(source.stat().st_mode):
        raise error("boot-control", f"{path} in the slot is neither a file nor a folder")
    yield name, source


def inside(root: Path, path: str) -> Path:
    """Where `path` leads with `root` as the root folder: its links never lead out of it.

    Raises DeviceError `boot-control` when it does not exist there, or has too many links.
    """
    pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
    at: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            at = at[:-1]
            continue
        here = root.joinpath(*at, part)
        if here.is_symlink():
            links += 1
            if links > LINKS_MAX:
                raise error("boot-control", f"{path} in the slot has too many links")
            leads = str(here.readlink())
            at = [] if leads.startswith("/") else at
            pending += [one for one in leads.split("/") if one not in ("", ".")][::-1]
            continue
        if not here.exists():
            raise error("boot-control", f"the system in the slot has no {path}")
        at.append(part)
    return root.joinpath(*at)


def _copy(source: Path, to: Path) -> None:
    wanted = _hash(source)
    if to.is_file() and to.stat().st_size == source.stat().st_size and _hash(to) == wanted:
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(to.name + ".tmp")
    with source.open("rb") as file:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            while chunk := file.read(CHUNK_BYTES):
                write_all(fd, chunk)
            os.fsync(fd)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    temporary.replace(to)
    fsync_dir(to.parent)
    if _hash(to) != wanted:
        raise error("boot-control", f"{to} is not what was written")


def _hash(path: Path) -> bytes:
    """SHA-256 of what the medium holds."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()
