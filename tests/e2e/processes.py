"""Which processes run because of a folder: how tests see that a command ended all that it started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

WAIT_S = 600


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name something in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:  # it has just ended
                line = ""
            if f"{folder}/" in line:
                found.append(line)
    return found


def wait_until(condition: Any, what: str) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, f"waited for {what}"
        time.sleep(0.05)
