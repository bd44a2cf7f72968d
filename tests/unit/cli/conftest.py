"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.operator_server import OperatorServer
from tests.unit.cli.world import Worlds


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("worlds"))


@pytest.fixture
def world(
    worlds: Worlds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A fresh world as the working directory, and no variables that commands read."""
    for name in ("SERVER", "TOKEN", "TOKEN_FILE", "CA_FILE", "REPO", "KEYS", "PASSPHRASE", "DEBUG"):
        monkeypatch.delenv(f"TWINLOCK_{name}", raising=False)
    made = worlds.enter(tmp_path, monkeypatch)
    capsys.readouterr()
    return made


@pytest.fixture
def server() -> Iterator[OperatorServer]:
    with OperatorServer().running() as running:
        yield running
