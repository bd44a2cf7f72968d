"""What every benchmark uses: measured processes, interleaved rounds, rows with their bounds."""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache/bench"
TIMEOUT_S = 900.0
_LAUNCH = [sys.executable, "-I", "-S", str(ROOT / "bench/launch.py")]


class BenchError(Exception):
    """A command failed or a peer is missing: the figure is not written rather than guessed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one command: CPU of it and of the children that it waited for, and the largest process.

    `own_peak_rss_kib` is the command's alone, without its children; see `launch`.
    """

    cpu_s: float
    wall_s: float
    peak_rss_kib: int
    stdout: str = ""
    own_peak_rss_kib: int = 0

    @property
    def peak_rss_mib(self) -> float:
        return self.peak_rss_kib / 1024

    @property
    def own_peak_rss_mib(self) -> float:
        return self.own_peak_rss_kib / 1024

    def __add__(self, other: Measured) -> Measured:
        """Two processes that did one job together."""
        return Measured(
            self.cpu_s + other.cpu_s,
            max(self.wall_s, other.wall_s),
            max(self.peak_rss_kib, other.peak_rss_kib),
            self.stdout + other.stdout,
            max(self.own_peak_rss_kib, other.own_peak_rss_kib),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `bound` limits `ratio` (ours / peer_value) when there is a peer, `ours` otherwise.

    `kept` says that something of it was measured in an earlier run, of the same inputs by the same tools.
    """

    figure: str
    unit: str
    ours: float | None
    peer: str | None = None
    peer_value: float | None = None
    bound: float | None = None
    raw: dict[str, list[float]] = field(default_factory=dict)
    kept: bool = False

    @property
    def ratio(self) -> float | None:
        if self.ours is None or not self.peer_value:
            return None
        return self.ours / self.peer_value

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept; None when there is no bound or nothing to compare."""
        value = self.ratio if self.peer else self.ours
        if self.bound is None or value is None:
            return None
        return value <= self.bound

    def as_json(self) -> dict[str, object]:
        row = dataclasses.asdict(self)
        raw, kept = row.pop("raw"), row.pop("kept")
        row |= {"ratio": self.ratio, "holds": self.holds}
        return row | ({"raw": raw} if raw else {}) | ({"kept": True} if kept else {})


class Running:
    """A command that runs until it is stopped, such as a service: `with Running(argv) as service: ...`."""

    def __init__(self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        self.argv = [str(word) for word in argv]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - finish() closes it
        read_fd, write_fd = os.pipe()
        self._result = os.fdopen(read_fd)
        try:
            self.process = subprocess.Popen(
                [*_LAUNCH, str(write_fd), *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=dict(env if env is not None else clean_environment()),
                pass_fds=(write_fd,),
            )
        finally:
            os.close(write_fd)
        pid = self._result.readline()  # empty when the command could not be started
        self.pid = int(pid) if pid else None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def finish(self, timeout_s: float = TIMEOUT_S, expect: Sequence[int] = (0,)) -> Measured:
        """Wait for the end and return the figures; BenchError with the command's last words otherwise."""
        with self._result, self._log:
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                if self.pid is not None:
                    os.kill(self.pid, signal.SIGKILL)  # its launcher still waits for it: the pid is its own
                self.process.wait()
                raise BenchError(f"{self.argv[0]} did not end within {timeout_s:.0f} s") from None
            words = self._result.read().split()
            self._log.seek(0)
            output = self._log.read()
        if len(words) != 5 or int(words[0]) not in expect:
            last = "\n".join(output.splitlines()[-15:])
            raise BenchError(
                f"`{' '.join(self.argv)}` ended with {words[0] if words else 'nothing'}:\n{last}"
            )
        return Measured(float(words[1]), float(words[2]), int(words[3]), output, int(words[4]))


def clean_environment() -> dict[str, str]:
    """The environment without what would slow a measured process down."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def measure(
    argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
) -> Measured:
    """Run a command to its end; BenchError when it fails."""
    return Running(argv, env).finish(timeout_s)


def tool(argv: Sequence[str | Path]) -> str:
    """Run a command that is only preparation; its output, or BenchError with its own words."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"`{' '.join(words)}` ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


def interleave(
    jobs: Mapping[str, Callable[[], Measured]], rounds: int, note: Callable[[str], None]
) -> dict[str, list[Measured]]:
    """Run every job once per round, so that what else the machine does falls on all of them alike."""
    results: dict[str, list[Measured]] = {name: [] for name in jobs}
    for number in range(1, rounds + 1):
        for name, job in jobs.items():
            result = job()
            results[name].append(result)
            note(
                f"round {number}/{rounds} {name}: {result.cpu_s:.2f} CPU s, {result.wall_s:.2f} s, "
                f"{result.peak_rss_mib:.1f} MiB"
            )
    return results


def median(results: Sequence[Measured], figure: Callable[[Measured], float]) -> float:
    return statistics.median(figure(result) for result in results)


@dataclass(frozen=True, slots=True)
class Context:
    """Where a benchmark may put its files, how often it runs each job, and how it tells what it does."""

    workdir: Path
    rounds: int
    note: Callable[[str], None]


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpu, memory_kib = platform.processor() or "unknown", 0
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemTotal:"):
            memory_kib = int(line.split()[1])
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_mib": memory_kib // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
    }
