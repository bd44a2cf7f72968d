"""A repository, served, and a client that was given its first root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.driver import Driver, serve
from tests.conformance.repository import Repository


@pytest.fixture
def repository() -> Repository:
    return Repository()


@pytest.fixture
def client(repository: Repository, tmp_path: Path) -> Iterator[Driver]:
    with serve(repository) as address:
        driver = Driver(repository, address, tmp_path)
        assert driver.init() == 0
        yield driver
