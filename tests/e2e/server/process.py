"""A server as its users run it: the real command in a process of its own, on a loopback socket."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import urllib3

START = "from twinlock.cli.main import main; raise SystemExit(main())"


def twinlock(*args: str) -> subprocess.CompletedProcess[str]:
    """One `twinlock` command, ended."""
    return subprocess.run(
        [sys.executable, "-c", START, *args],
        capture_output=True,
        text=True,
        timeout=60,
    )


class ServerProcess:
    """`twinlock server run DIR --port 0`, once it says that it serves."""

    def __init__(self, folder: Path, *args: str, prepare: Callable[[], None] | None = None) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "server", "run", str(folder), "--port", "0", "--json", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,  # noqa: PLW1509  one system call, and no lock is held over it
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate(timeout=10)[1])
        said: dict[str, Any] = json.loads(line)
        self.address: str = said["address"]
        self.page: str = said["page"]
        self.port = int(self.address.rpartition(":")[2])
        self._pool = urllib3.PoolManager(retries=False, timeout=30)

    def request(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        return self._pool.request(method, self.address + path, **options)

    def send_raw(self, data: bytes, *, end: bool = False) -> bytes:
        """Bytes over a socket of its own; everything that comes back until the server closes it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(65_536):
                received += chunk
        return received

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ends it with a signal; its exit code and its log."""
        self._pool.clear()
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log
