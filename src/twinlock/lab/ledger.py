"""Which calls an agent made to the world, counted over all its processes; and which of them to be killed at.

A ledger is a text file with one line per call. Whoever is about to make a call adds its line first, so a call
that killed the process is the last line. One process writes at a time: the agent waits for the metadata
process that it starts, and then reads what that one added.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from random import Random

BEFORE: Final = "before"
TORN: Final = "torn"
AFTER: Final = "after"
MODES: Final = (BEFORE, TORN, AFTER)
_TEARABLE: Final = ("store.write", "store.append", "slot.write", "boot.", "net.read")

CHECK: Final = "check"
DOWNLOAD: Final = "download"
INSTALL: Final = "install"
ARM: Final = "arm"
COMMIT: Final = "commit"
ROLL_BACK: Final = "roll back"
REPORT: Final = "report"
# The first that fits a call's label decides. What fits none belongs to the check.
_PHASES: Final = (
    (REPORT, ("store.write outbox/", "store.remove outbox/", "store.write seq.", "check flush")),
    (REPORT, ("net.open reports", "net.read reports")),
    (DOWNLOAD, ("net.open payloads", "net.read payloads", "store.write index", "store.write partial")),
    (INSTALL, ("slot.", "boot.invalidate", "store.append progress", "store.write progress")),
    (ARM, ("boot.arm", "store.write journal.json verified", "store.write journal.json armed")),
    (ARM, ("hooks.pre-reboot", "power.reboot")),
    (ROLL_BACK, ("boot.roll_back", "store.write journal.json rolling_back", "store.write failed.json")),
    (COMMIT, ("boot.commit", "boot.self_test", "hooks.required", "hooks.wanted", "check gate")),
    (COMMIT, ("store.write journal.json trial", "store.write journal.json committed")),
    (COMMIT, ("store.write slots.json", "store.write floor.json", "store.write probe", "store.remove")),
)


class Ledger:
    """The ledger in `path`; `count` is the number of the last call."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._read_bytes = 0
        self.count = 0
        self.sync()

    def next(self, label: str) -> int:
        """Counts a call that is about to be made; its number, from 1."""
        line = f"{label}\n".encode()
        os.write(self._fd, line)
        self._read_bytes += len(line)
        self.count += 1
        return self.count

    def sync(self) -> None:
        """Counts what other processes added."""
        while data := os.pread(self._fd, 65536, self._read_bytes):
            self._read_bytes += len(data)
            self.count += data.count(b"\n")


def read(path: Path) -> list[str]:
    """The labels of all calls so far; the first has number 1."""
    return path.read_text(encoding="utf-8").splitlines()


def phase_of(label: str) -> str:
    """Which part of an update a call belongs to."""
    for phase, beginnings in _PHASES:
        if label.startswith(beginnings):
            return phase
    return CHECK


@dataclass(frozen=True, slots=True)
class Point:
    """One call to be killed at, and how."""

    number: int
    mode: str
    label: str

    @property
    def phase(self) -> str:
        return phase_of(self.label)

    @property
    def argument(self) -> str:
        """For `--kill` of `killable`."""
        return f"{self.number}:{self.mode}"

    def __str__(self) -> str:
        return f"{self.mode} call {self.number} ({self.label}, {self.phase})"


def points(trace: Sequence[str]) -> list[Point]:
    """Every way to be killed in a run that makes these calls."""
    found = []
    for number, label in enumerate(trace, start=1):
        modes = MODES if label.startswith(_TEARABLE) else (BEFORE, AFTER)
        found += [Point(number, mode, label) for mode in modes]
    return found


def choose(trace: Sequence[str], count: int, rng: Random) -> list[Point]:
    """`count` different points, as evenly over the phases as there are points; in an order that mixes them.

    The same trace and generator give the same points; so does the beginning of a longer choice.
    """
    by_phase: dict[str, list[Point]] = {}
    for point in points(trace):
        by_phase.setdefault(point.phase, []).append(point)
    queues = []
    for phase in sorted(by_phase):
        rng.shuffle(by_phase[phase])
        queues.append(by_phase[phase])
    chosen: list[Point] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    return chosen[:count]
