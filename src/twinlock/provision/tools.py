"""Running Debian's file system tools: argument lists, a fixed environment, bounded time and output."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error

if TYPE_CHECKING:
    from pathlib import Path

RUN_TIMEOUT_S: Final = 1800.0
_OUTPUT_SHOWN_BYTES_MAX: Final = 2000
# Tools that only an administrator's PATH has on Debian; none of them needs root for what it does here.
_PATH_EXTRA: Final = ("/usr/sbin", "/sbin")


def find_tool(name: str, package: str) -> str:
    """The path of a program. Raises DeviceError `package-missing`, naming the Debian package."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_PATH_EXTRA])
    found = shutil.which(name, path=path)
    if found is None:
        raise error("package-missing", f"{name} is not installed", hint=f"apt-get install {package}")
    return found


def run(
    arguments: list[str],
    *,
    package: str,
    stdin: bytes = b"",
    environment: dict[str, str] | None = None,
    timeout_s: float = RUN_TIMEOUT_S,
    keep_environment: bool = False,
    folder: Path | None = None,
) -> str:
    """What the program printed. Its environment is the same everywhere: C locale, UTC, no user settings.

    `keep_environment` passes this process's own instead, for programs that the user sets up (proxies, ...);
    `folder` is where it runs, else this process's own.
    Raises DeviceError `package-missing` when it is not installed, `io-error` when it fails or takes too long.
    """
    tool = find_tool(arguments[0], package)
    fixed = {
        "PATH": os.pathsep.join(["/usr/bin", "/bin", *_PATH_EXTRA]),
        "LC_ALL": "C",
        "TZ": "UTC",
        "HOME": "/",
    }
    try:
        done = subprocess.run(
            [tool, *arguments[1:]],
            input=stdin,
            capture_output=True,
            env=({**os.environ} if keep_environment else fixed) | (environment or {}),
            timeout=timeout_s,
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired as problem:
        raise error("io-error", f"{arguments[0]} did not end within {timeout_s:.0f} s") from problem
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-_OUTPUT_SHOWN_BYTES_MAX:].decode("utf-8", "replace").strip()
        raise error("io-error", f"{arguments[0]} failed with status {done.returncode}: {said}")
    return done.stdout.decode("utf-8", "replace")
