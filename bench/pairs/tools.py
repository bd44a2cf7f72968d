"""Programs that the recipe runs, and what is said when one is missing or fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

EPOCH = 1_767_225_600  # 2026-01-01: every time stamp in the images is this one or older
PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mkfs.erofs": "erofs-utils",
    "xdelta3": "xdelta3",
    "zstd": "zstd",
    "ostree": "ostree",
    "casync": "casync",
    "zck": "zchunk",
}


class MissingError(Exception):
    """Something of the machine is missing; the message says what, and how to get it."""


def cache() -> Path:
    """The folder for images and peers' results: `TWINLOCK_CACHE`, else `twinlock` in the user's cache."""
    given = os.environ.get("TWINLOCK_CACHE")
    folder = Path(given) if given else Path.home() / ".cache/twinlock"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def need(*names: str) -> None:
    """Raises MissingError unless every program is there."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [name for name in names if shutil.which(name, path=path) is None]
    if missing:
        packages = " ".join(sorted(PACKAGES.get(name, name) for name in missing))
        raise MissingError(f"missing: {', '.join(missing)}; as root: apt-get install {packages}")


def run(argv: list[str | Path], *, env: dict[str, str] | None = None, quiet: bool = True) -> None:
    """Runs a program to its end. Raises RuntimeError with its own words when it fails."""
    words = [str(word) for word in argv]
    merged = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8", "TZ": "UTC", **(env or {})}
    done = subprocess.run(words, env=merged, capture_output=quiet, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr or b"").decode(errors="replace")[-2000:] if quiet else "see above"
        raise RuntimeError(f"`{' '.join(words)[:200]}` ended with {done.returncode}: {said}")
