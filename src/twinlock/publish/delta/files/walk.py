"""The walk over a file system's folders, the same for every kind that has numbered inodes."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Protocol, TypeVar

from twinlock.publish.delta.files.model import DEPTH_MAX, FILES_MAX, Extent, ImageFile, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Inode(Protocol):
    """What the walk needs of an inode."""

    @property
    def mode(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...


AnyInode = TypeVar("AnyInode", bound=Inode)


class Volume(Protocol[AnyInode]):
    """A file system: inodes by number, the entries of a folder without `.` and `..`, a file's extents."""

    def inode(self, number: int) -> AnyInode: ...
    def entries(self, inode: AnyInode) -> Iterator[tuple[int, bytes]]: ...
    def extents(self, inode: AnyInode) -> tuple[Extent, ...]: ...


def walk(volume: Volume[AnyInode], root: int) -> list[ImageFile]:
    """The regular files below the inode `root`; of several links to one file the first in order of the walk.

    Raises UnreadableError for more than `FILES_MAX` files and folders.
    """
    found: list[ImageFile] = []
    seen = {root}
    pending = [("", root, 0)]
    while pending:
        folder, number, depth = pending.pop()
        for child, name in volume.entries(volume.inode(number)):
            if child in seen or depth > DEPTH_MAX:
                continue
            seen.add(child)
            if len(seen) > FILES_MAX:
                raise UnreadableError("too many files")
            path = folder + name.decode("utf-8", "surrogateescape")
            inode = volume.inode(child)
            if stat.S_ISDIR(inode.mode):
                pending.append((path + "/", child, depth + 1))
            elif stat.S_ISREG(inode.mode):
                found.append(ImageFile(path, inode.size_bytes, volume.extents(inode)))
    return found
