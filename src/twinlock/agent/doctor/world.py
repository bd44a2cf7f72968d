"""The device's files as the doctor reads them, below a root folder that tests make themselves.

Nothing is written here. What is not there is None; what cannot be read raises TwinlockError.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from twinlock.core.durable import os_errors, read_bounded
from twinlock.core.limits import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["block", "char", "file", "folder", "other"]
TEXT_SIZE_BYTES_MAX: Final = 4 * MIB
_KINDS: Final[dict[int, Kind]] = {
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
}
# The order in which systemd looks for a unit or a piece of configuration: the first counts
UNIT_FOLDERS: Final = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo; `device` is its major:minor."""

    point: str
    device: str
    options: frozenset[str]
    kind: str


class World:
    """Files below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def path(self, path: Path | str) -> Path:
        """Where an absolute path of the device is."""
        return self._root / str(path).lstrip("/")

    def kind(self, path: Path | str) -> Kind | None:
        """What the path leads to; None when there is nothing."""
        return self.kind_at(self.path(path))

    def kind_at(self, place: Path) -> Kind | None:
        """As `kind`, for a place that the configuration names."""
        try:
            return _KINDS.get(stat.S_IFMT(place.stat().st_mode), "other")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def device_at(self, place: Path) -> str:
        """major:minor of the block device at a place."""
        with os_errors(str(place)):
            number = place.stat().st_rdev
        return f"{os.major(number)}:{os.minor(number)}"

    def shown(self, place: Path) -> str:
        """A place as the device itself names it."""
        return f"/{place.relative_to(self._root).as_posix()}"

    def free_bytes(self, place: Path) -> int:
        """The space left on the file system of a place."""
        with os_errors(str(place)):
            found = os.statvfs(place)
        return found.f_bavail * found.f_frsize

    def data(self, path: Path | str, size_bytes_max: int = TEXT_SIZE_BYTES_MAX) -> bytes | None:
        """The file's content."""
        if self.kind(path) is None:
            return None
        return read_bounded(self.path(path), size_bytes_max, str(path))

    def text(self, path: Path | str) -> str | None:
        """The file's text; what is not UTF-8 is replaced."""
        data = self.data(path)
        return None if data is None else data.decode("utf-8", "replace")

    def names(self, folder: Path | str) -> list[str]:
        """What a folder holds; nothing when it is not there."""
        if self.kind(folder) != "folder":
            return []
        with os_errors(str(folder)):
            return sorted(path.name for path in self.path(folder).iterdir())

    def linked(self, path: Path | str) -> bool:
        """Whether there is such a name, be it a link that leads nowhere from here."""
        return os.path.lexists(self.path(path))

    def mounts(self) -> list[Mount]:
        """What is mounted, in the order in which it was. Source: proc_pid_mountinfo(5)."""
        found = []
        for line in (self.text("/proc/self/mountinfo") or "").splitlines():
            left, _, right = line.partition(" - ")
            fields, more = left.split(), right.split()
            if len(fields) >= 6 and len(more) >= 3:
                options = frozenset(fields[5].split(",")) | frozenset(more[2].split(","))
                # The mount's own `ro` counts, and the file system's.
                if "ro" in options:
                    options -= {"rw"}
                found.append(Mount(fields[4], fields[2], options, more[0]))
        return found

    def mount_at(self, point: str) -> Mount | None:
        """The topmost mount at a path."""
        return next((one for one in reversed(self.mounts()) if one.point == point), None)

    def words(self) -> list[str]:
        """The kernel's command line."""
        return (self.text("/proc/cmdline") or "").split()

    def settings(self, name: str) -> Iterator[tuple[str, str]]:
        """The assignments of systemd's configuration `name` and its drop-ins: of one key the last counts.

        The main file comes first; of two drop-ins with one name the one in /etc hides the others.
        Source: systemd-system.conf(5).
        """
        main = (f"{folder}/systemd/{name}" for folder in ("etc", "run", "usr/local/lib", "usr/lib"))
        texts = [next((text for text in map(self.text, main) if text is not None), "")]
        drops: dict[str, str] = {}
        for folder in ("usr/lib", "usr/local/lib", "run", "etc"):
            where = f"{folder}/systemd/{name}.d"
            drops |= {one: f"{where}/{one}" for one in self.names(where) if one.endswith(".conf")}
        texts += [self.text(drops[one]) or "" for one in sorted(drops)]
        for line in "\n".join(texts).splitlines():
            key, equals, value = line.partition("=")
            if equals and not key.lstrip().startswith(("#", ";")):
                yield key.strip(), value.strip()
