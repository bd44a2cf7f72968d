"""Mounting for the time of one piece of work, with the system's own mount and umount."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TIMEOUT_S: Final = 60.0
SAID_BYTES_MAX: Final = 500
_SAFE: Final = "nodev,nosuid,noexec"
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")  # proc_pid_mountinfo(5): blanks and backslashes


class Mounts:
    """What a killed run left mounted is unmounted first.

    A device that the system itself has mounted somewhere is used there: the kernel does not mount it a second
    time with other access. Where it is read-only there it becomes writable for as long as it takes.
    """

    def __init__(self, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
        self._mountinfo = mountinfo

    @contextmanager
    def mounted(
        self, device: Path, folder: Path, *, write: bool, options: Sequence[str] = ()
    ) -> Iterator[Path]:
        """The folder where `device` is: `folder`, unless it is mounted elsewhere already.

        Raises DeviceError `boot-control` when it cannot be mounted or unmounted.
        """
        with os_errors(f"mount point {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        if os.path.ismount(folder):
            self._run(["umount", str(folder)])
        found = self._elsewhere(device)
        if found is None:
            access = "rw" if write else "ro"
            self._run(["mount", "-o", f"{access},{_SAFE}", *options, str(device), str(folder)])
            try:
                yield folder
            finally:
                self._run(["umount", str(folder)])
            return
        place, writable = found
        if writable or not write:
            yield place
            return
        self._run(["mount", "-o", "remount,rw", str(place)])
        try:
            yield place
        finally:
            self._run(["mount", "-o", "remount,ro", str(place)])

    def _elsewhere(self, device: Path) -> tuple[Path, bool] | None:
        """Where the whole of a block device is mounted, and whether it can be written there."""
        with os_errors(f"device {device}"):
            number = self._number(device)
        if number is None:
            return None
        with os_errors(str(self._mountinfo)):
            lines = self._mountinfo.read_text("utf-8", "surrogateescape").splitlines()
        for line in reversed(lines):
            left, _, right = line.partition(" - ")
            fields, more = left.split(), right.split()
            if len(fields) >= 6 and len(more) >= 3 and fields[2] == number and fields[3] == "/":
                point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
                return Path(point), "ro" not in fields[5].split(",") and "ro" not in more[2].split(",")
        return None

    def _number(self, device: Path) -> str | None:
        try:
            found = device.stat()
        except FileNotFoundError:
            return None  # mount says it in its own words
        if not stat.S_ISBLK(found.st_mode):
            return None
        return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"

    def _run(self, argv: list[str]) -> None:
        what = f"{argv[0]} {argv[-1]}"
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise error("boot-control", f"{what}: {problem}") from problem
        if done.returncode:
            said = done.stderr[:SAID_BYTES_MAX].decode("utf-8", "replace").strip()
            raise error("boot-control", f"{what} ended with {done.returncode}: {said}")
