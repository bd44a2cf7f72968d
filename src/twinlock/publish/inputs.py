"""Reading small files that a user names."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from twinlock.core.durable import os_errors, read_bounded
from twinlock.core.errors import error

if TYPE_CHECKING:
    from pathlib import Path


def read_input(path: Path, size_bytes_max: int, what: str) -> bytes:
    """As `core.durable.read_bounded`; a pipe, on which one could wait for ever, is `input-wrong-type`."""
    with os_errors(f"{what} {path}"):
        mode = path.stat().st_mode
    if stat.S_ISFIFO(mode):
        raise error("input-wrong-type", f"{what} {path} is a pipe", hint="give a file")
    return read_bounded(path, size_bytes_max, what)
