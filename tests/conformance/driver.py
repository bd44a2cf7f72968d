"""A repository on a real loopback socket, and the client's command line driven against it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path

from tests.conformance.repository import NOW, Repository
from twinlock.agent import tuf_client
from twinlock.agent.clock import SystemClock
from twinlock.agent.config import NetworkConfig
from twinlock.agent.http import HttpNetwork
from twinlock.agent.repository import Repository as Fetcher
from twinlock.agent.repository import RoleFiles
from twinlock.agent.store import FolderStore
from twinlock.core.trust.verifier import Floors


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = self.path.removeprefix("/").removeprefix("repository/")
        script = self.server.repository.scripts.get(path)
        if script is not None:
            self.server.repository.asked.append(path)
            script(self)
            return
        data = self.server.repository.get(path)
        status = self.server.repository.statuses.get(path, 200 if data is not None else 404)
        self.send_response(status)
        for name, value in self.server.repository.headers.get(path, {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        data = self.server.repository.calls[self.path](body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's own name
        """Tests read `repository.asked` instead."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, repository: Repository) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository


@contextmanager
def serve(repository: Repository) -> Iterator[str]:
    """The repository's address while it is served."""
    server = _Server(repository)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Driver:
    """One client, by its command line alone: what it exits with, what it keeps, what it asked for.

    The command runs in this process through its own `main`; `real` runs it as a process, at the real time.
    """

    def __init__(self, repository: Repository, address: str, folder: Path, *, now: datetime = NOW) -> None:
        self.repository = repository
        self.address = address
        self.metadata = folder / "metadata"
        self.downloads = folder / "downloads"
        self.root = folder / "initial_root.json"
        self.now = now
        self.real = False
        self.stderr = ""
        folder.mkdir(parents=True, exist_ok=True)
        self.root.write_bytes(repository.files["metadata/1.root.json"])

    def init(self) -> int:
        return self._run("init", str(self.root))

    def refresh(self) -> int:
        return self._run("--metadata-url", f"{self.address}/metadata", "refresh")

    def download(self, name: str) -> int:
        where = ["--metadata-url", f"{self.address}/metadata", "--target-base-url", f"{self.address}/targets"]
        return self._run(*where, "--target-name", name, "--target-dir", str(self.downloads), "download")

    def _run(self, *arguments: str) -> int:
        command = ["--metadata-dir", str(self.metadata), *arguments]
        if not self.real:
            with redirect_stderr(StringIO()) as stderr:
                code = tuf_client.main(command, now=self.now)
            self.stderr = stderr.getvalue()
            return code
        done = subprocess.run(
            [sys.executable, "-m", "twinlock.agent.tuf_client", *command],
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.stderr = done.stderr
        return done.returncode

    @property
    def code(self) -> str:
        """The error code of the last command; empty when it succeeded."""
        found = re.fullmatch(r"error\[([a-z-]+)\]: .+ -- hint: .+\n", self.stderr)
        assert found or not self.stderr, self.stderr
        return found.group(1) if found else ""

    def version(self, role: str) -> int | None:
        """The version of the role's trusted file."""
        path = self.metadata / f"{role}.json"
        return int(json.loads(path.read_bytes())["signed"]["version"]) if path.exists() else None

    def versions(self) -> dict[str, int]:
        """The versions of all trusted files, by the files' names."""
        names = sorted(path.name.removesuffix(".json") for path in self.metadata.glob("*.json"))
        return {name: self.version(name) or 0 for name in names}

    def files(self) -> dict[str, bytes]:
        """All that the client keeps, by name."""
        return {path.name: path.read_bytes() for path in sorted(self.metadata.iterdir())}

    def store(self) -> RoleFiles:
        """The client's own store, for tests that drive its parts."""
        return RoleFiles(FolderStore(self.metadata))

    def fetch(self) -> Fetcher:
        """The client's own way to the repository."""
        return Fetcher(HttpNetwork(SystemClock(), NetworkConfig()), f"{self.address}/metadata")

    def floors(self) -> Floors:
        return self.store().load_floors()

    def downloaded(self) -> list[bytes]:
        """The files downloaded, oldest first."""
        if not self.downloads.exists():
            return []
        paths = sorted(self.downloads.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_bytes() for path in paths]
