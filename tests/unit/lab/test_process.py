"""Processes end, whatever happens, and take along what they started."""

from __future__ import annotations

import os
import sys
import time

import pytest

from twinlock.core.errors import TwinlockError
from twinlock.lab import process


def alive(pid: int) -> bool:
    """Whether a process runs (one that ended and waits to be collected does not)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while alive(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


PARENT = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
)


def test_output_and_exit_code_come_back() -> None:
    done = process.run(
        [sys.executable, "-c", "import sys; print('out'); sys.stderr.write('err'); sys.exit(7)"]
    )
    assert (done.exit_code, done.stdout, done.stderr) == (7, "out\n", "err")


def test_what_a_process_leaves_behind_is_ended() -> None:
    done = process.run([sys.executable, "-c", PARENT])
    assert gone(int(done.stdout))


def test_one_that_does_not_end_is_ended_with_its_children() -> None:
    script = f"{PARENT}sys.stderr.write(str(child.pid)); sys.stderr.flush()\ntime.sleep(600)"
    with pytest.raises(TwinlockError) as refused:
        process.run([sys.executable, "-c", script], timeout_s=2)
    assert refused.value.code == "internal"
    assert gone(int(refused.value.what.rpartition(" ")[2]))


def test_a_killed_process_says_so() -> None:
    done = process.run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
    assert done.exit_code == -9


def test_stop_asks_first() -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(1)"
    )
    reading, writing = os.pipe()
    started = process.start([sys.executable, "-c", script], stdout=writing)
    os.close(writing)
    assert os.read(reading, 5) == b"ready"
    assert process.stop(started) == 3
    assert process.stop(started) == 3  # once more is harmless
    os.close(reading)


def test_stop_does_not_wait_for_ever() -> None:
    script = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(1)"
    )
    reading, writing = os.pipe()
    started = process.start([sys.executable, "-c", script], stdout=writing)
    os.close(writing)
    assert os.read(reading, 5) == b"ready"
    assert process.stop(started, wait_s=0.1) == -9
    os.close(reading)


def test_what_cannot_start_is_an_error() -> None:
    with pytest.raises(TwinlockError) as refused:
        process.run(["/nonexistent/program"])
    assert refused.value.code == "input-missing"
