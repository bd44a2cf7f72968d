"""Mounting for the time of one piece of work, with the system's own mount and umount."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TIMEOUT_S: Final = 60.0
SAID_BYTES_MAX: Final = 500
_SAFE: Final = "nodev,nosuid,noexec"


class Mounts:
    """What a killed run left mounted is unmounted first."""

    @contextmanager
    def mounted(
        self, device: Path, folder: Path, *, write: bool, options: Sequence[str] = ()
    ) -> Iterator[None]:
        """`device` at `folder`. Raises DeviceError `boot-control` when it cannot be mounted or unmounted."""
        with os_errors(f"mount point {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        if os.path.ismount(folder):
            self._run(["umount", str(folder)])
        access = "rw" if write else "ro"
        self._run(["mount", "-o", f"{access},{_SAFE}", *options, str(device), str(folder)])
        try:
            yield
        finally:
            self._run(["umount", str(folder)])

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
