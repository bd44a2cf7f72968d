"""What a command and all processes that it started hold at once: `ru_maxrss` knows the largest one alone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.harness import BenchError, Measured, Running

_EVERY_S = 0.5
_KIB_IN_MIB = 1024


def measure_together(
    argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout_s: float
) -> tuple[Measured, float]:
    """The command's figures, and the largest sum of its processes' memory, in MiB, as seen every 0.5 s.

    Memory is the proportional set size: a page that several processes share is counted once.
    """
    running = Running(argv, env)
    ends_at = time.monotonic() + timeout_s
    peak_kib = 0
    while time.monotonic() < ends_at:
        try:
            running.process.wait(_EVERY_S)
            break
        except subprocess.TimeoutExpired:
            peak_kib = max(peak_kib, sum(map(pss_kib, tree(running.pid or 0))))
    measured = running.finish(0 if running.process.poll() is None else timeout_s)
    if not peak_kib:
        raise BenchError(f"{argv[0]} ended before its memory could be read")
    return measured, peak_kib / _KIB_IN_MIB


def tree(pid: int) -> list[int]:
    """The process and all below it; those that end meanwhile are left out."""
    found = [pid]
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        below = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return found
    for child in below:
        found += tree(child)
    return found


def pss_kib(pid: int) -> int:
    """The proportional set size of a process; 0 once it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
