"""What a device's storage holds durably, what waits to be flushed, and what a loss of power may make of both.

Storage is media (slots, raw boot records) and one tree of files (the state folder). Unflushed changes are
kept as units, each of which reaches the medium or does not, on its own and in any order:

- a sector of 512 bytes of a medium or of a file's data;
- a file's new size, without which data behind its old end is not there;
- a change of names in one folder: a new file, a removed one, a rename. A rename is one unit: the name leads
  to the old file or to the new one.

That is what a journalling file system without ordering guarantees may leave: a renamed file may be empty, a
later change may survive an earlier one, and a name is durable only when its folder was flushed.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

SECTOR_SIZE_BYTES: Final = 512
FOLDER: Final = -1  # what a folder's name leads to
ROOT: Final = "/"


@dataclass(frozen=True, slots=True)
class Sector:
    """A sector of a medium (by its name) or of a file (by its number): what it will hold, what it held."""

    where: str | int
    number: int
    data: bytes
    before: bytes


@dataclass(frozen=True, slots=True)
class Size:
    """A file's size."""

    file: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Names:
    """What names in one folder lead to from now on; None: to nothing."""

    folder: str
    leads_to: tuple[tuple[str, int | None], ...]


Unit = Sector | Size | Names


@dataclass(frozen=True, slots=True)
class Pending:
    """A unit that waits; `op` is the number of the call that made it."""

    op: int
    unit: Unit


class Content:
    """A medium's bytes. `known` is for whoever has looked at all of them and does not want to look again."""

    def __init__(self, data: bytes) -> None:
        self.data: Final = data
        self.known: Final[dict[str, Hashable]] = {}

    @functools.cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(self.data).digest()


@dataclass(frozen=True)
class Disk:
    """Everything durable. Paths are absolute; a folder is in `folders`."""

    files: Mapping[str, bytes]
    folders: frozenset[str]
    media: Mapping[str, Content]

    @property
    def key(self) -> Hashable:
        """Equal for two disks exactly when all their bytes are."""
        media = frozenset((name, one.digest) for name, one in self.media.items())
        return frozenset(self.files.items()), self.folders, media


@dataclass(frozen=True)
class Snapshot:
    """Durable storage at one instant, and what waits, oldest first."""

    names: Mapping[str, int]
    data: Mapping[int, bytes]
    media: Mapping[str, Content]
    pending: tuple[Pending, ...]

    def after_loss(self, kept: Sequence[Unit]) -> Disk:
        """The disk when of the pending units just these, in their order, have reached the medium."""
        names = dict(self.names)
        sectors: dict[str, dict[int, bytes]] = {}
        changed: dict[int, list[Sector | Size]] = {}
        for unit in kept:
            match unit:
                case Names():
                    for name, file in unit.leads_to:
                        if file is None:
                            names.pop(name, None)
                        else:
                            names[name] = file
                case Sector(where=str() as medium):
                    sectors.setdefault(medium, {})[unit.number] = unit.data
                case Sector(where=int() as file) | Size(file=file):
                    changed.setdefault(file, []).append(unit)
        folders = frozenset(name for name, file in names.items() if file == FOLDER)
        reached = folders | {ROOT}
        files = {
            name: file_after(self.data.get(file, b""), changed[file])
            if file in changed
            else self.data.get(file, b"")
            for name, file in names.items()
            if file != FOLDER and parent_of(name) in reached
        }
        return Disk(files, folders, self._media_after(sectors))

    def _media_after(self, sectors: Mapping[str, Mapping[int, bytes]]) -> dict[str, Content]:
        media = dict(self.media)
        for name, written in sectors.items():
            after = bytearray(media[name].data)
            for number, data in written.items():
                after[number * SECTOR_SIZE_BYTES : number * SECTOR_SIZE_BYTES + len(data)] = data
            media[name] = Content(bytes(after))
        return media


def file_after(data: bytes, units: Iterable[Sector | Size]) -> bytes:
    """A file's content when these units, in order, have reached the medium: holes read as zeros."""
    content, size_bytes = bytearray(data), len(data)
    for unit in units:
        if isinstance(unit, Size):
            if unit.size_bytes < size_bytes:
                del content[unit.size_bytes :]
            size_bytes = unit.size_bytes
            continue
        start = unit.number * SECTOR_SIZE_BYTES
        content.extend(bytes(max(0, start + len(unit.data) - len(content))))
        content[start : start + len(unit.data)] = unit.data
    return bytes(content[:size_bytes]).ljust(size_bytes, b"\0")


@functools.cache
def parent_of(path: str) -> str:
    """The folder that an absolute path lies in."""
    return path.rpartition("/")[0] or ROOT
