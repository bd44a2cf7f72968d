"""A server's folder, made by the command, and the server running on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conformance.repository import Repository
from tests.e2e.server.process import ServerProcess, twinlock


@dataclass(frozen=True)
class MadeServer:
    """A folder that `twinlock server init` made, its operator's token, and who signs for it."""

    folder: Path
    token: str
    repository: Repository


@pytest.fixture
def made(tmp_path: Path) -> MadeServer:
    """A folder that nobody else uses."""
    return make(tmp_path)


def make(tmp_path: Path) -> MadeServer:
    repository = Repository(datetime.now(UTC))
    root = tmp_path / "1.root.json"
    root.write_bytes(repository.served("root"))
    done = twinlock("server", "init", str(tmp_path / "server"), "--root", str(root), "--json")
    assert done.returncode == 0, done.stderr
    return MadeServer(tmp_path / "server", json.loads(done.stdout)["token"], repository)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MadeServer, ServerProcess]]:
    """A running server for tests that leave it as it was."""
    made = make(tmp_path_factory.mktemp("shared"))
    process = ServerProcess(made.folder)
    yield made, process
    process.stop()


@pytest.fixture
def running(shared: tuple[MadeServer, ServerProcess]) -> ServerProcess:
    return shared[1]
