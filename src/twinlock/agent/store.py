"""The state folder on a real file system. Is a `ports.Store`.

Whole files are written as `core.durable.write_atomic` says: after a power cut each is the old or the new one.
Only `append` may leave a torn tail, and what `write_volatile` wrote may be gone or empty. The folder and its
files are the agent's alone (0700, 0600): tokens and the device's key are among them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from twinlock.core.durable import fsync_dir, os_errors, read_bounded, remove_durably, write_all, write_atomic
from twinlock.core.errors import error

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
TEMPORARY: Final = ".tmp"


class FolderStore:
    """Files below `folder`, which is made when it is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder

    def path(self, name: str) -> Path:
        """Where the file called `name` is: at most one folder deep, never outside."""
        parts = name.split("/")
        if len(parts) > 2 or any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise error("internal", f"{name!r} is no name of a state file")
        return self.folder.joinpath(*parts)

    def read(self, name: str, size_bytes_max: int) -> bytes | None:
        """The whole file, or None. Raises `input-too-large`, `io-error`, `permission-denied`."""
        path = self.path(name)
        if not path.exists():
            return None
        return read_bounded(path, size_bytes_max, "state file")

    def write(self, name: str, data: bytes) -> None:
        """Replaces the file durably. Raises `disk-full`, `io-error`, `permission-denied`."""
        path = self._prepared(name)
        with os_errors(f"state file {path}"):
            write_atomic(path, data, mode=FILE_MODE)

    def write_volatile(self, name: str, data: bytes) -> None:
        """Replaces the file without a flush: readers see old or new, a power cut may lose both."""
        path = self._prepared(name)
        temporary = path.with_name(path.name + TEMPORARY)
        with os_errors(f"state file {path}"):
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
            try:
                write_all(fd, data)
            finally:
                os.close(fd)
            temporary.replace(path)

    def append(self, name: str, data: bytes) -> None:
        """Adds to the file in one write."""
        path = self._prepared(name)
        with os_errors(f"state file {path}"):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                write_all(fd, data)
            finally:
                os.close(fd)

    def remove(self, name: str) -> None:
        """Removes the file durably; one that is not there is no error."""
        path = self.path(name)
        with os_errors(f"state file {path}"):
            if path.exists():
                remove_durably(path)

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; unfinished ones are left out."""
        path = self.path(folder)
        with os_errors(f"state folder {path}"):
            if not path.is_dir():
                return []
            return sorted(entry.name for entry in path.iterdir() if entry.suffix != TEMPORARY)

    def _prepared(self, name: str) -> Path:
        path = self.path(name)
        with os_errors(f"state folder {path.parent}"):
            if not path.parent.is_dir():
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                for folder in dict.fromkeys((self.folder, path.parent)):  # each with its own mode
                    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
                    fsync_dir(folder.parent)
        return path
