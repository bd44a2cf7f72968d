"""The folder for what is slow to make and the same everywhere: root file systems, kernels, wheels.

It lies outside every work tree: `$TWINLOCK_CACHE`, else `~/.cache/twinlock`. An entry's name holds a digest
of its recipe, so that a changed recipe makes a new entry; it appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENVIRONMENT: Final = "TWINLOCK_CACHE"


def cache_folder() -> Path:
    """The folder, made if it is missing."""
    given = os.environ.get(ENVIRONMENT, "")
    folder = Path(given) if given else Path.home() / ".cache" / "twinlock"
    with os_errors(f"cache folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One maker at a time: tests run in parallel processes."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached(name: str, recipe: str, suffix: str, make: Callable[[Path], None]) -> Path:
    """The entry's path; `make` is called with a temporary path beside it when it is not there yet."""
    digest = hashlib.sha256(recipe.encode("utf-8")).hexdigest()[:16]
    folder = cache_folder()
    path = folder / f"{name}-{digest}{suffix}"
    with os_errors(f"cache entry {path}"), _locked(folder / f"{name}-{digest}.lock"):
        if not path.exists():
            temporary = path.with_name(path.name + ".tmp" + suffix)
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)
            make(temporary)
            temporary.replace(path)
    return path
