"""`twinlock lab run` is ended from outside: nothing of what it started runs on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import WAIT_S, processes_of, wait_until

RUN = [sys.executable, "-m", "twinlock.cli.main", "lab", "run", "update", "--device", "qemu-arm64"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["terminated", "terminal closed"])
def test_ended_by_a_signal_its_server_ends_too(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "lab"
    command = [*RUN, "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            server = f"server run {folder}/lab/rig/server"
            wait_until(lambda: any(server in line for line in processes_of(folder)), "the server")
            process.send_signal(number)
            assert process.wait(WAIT_S) == 130
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    assert processes_of(folder) == []
