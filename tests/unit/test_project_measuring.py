"""What coverage measures: the tests' own process, and one that they start only where they ask for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import coverage
import pytest


def loads_coverage() -> bool:
    code = "import sys; print('coverage' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout == "True\n"


def test_a_process_is_not_measured() -> None:
    assert not loads_coverage()


@pytest.mark.usefixtures("measured")
def test_a_process_that_asks_for_it_is() -> None:
    assert loads_coverage() == (coverage.Coverage.current() is not None)


@pytest.fixture
def is_measured() -> Iterator[bool]:
    """Whether coverage runs; it must again after the test, and still not in processes that tests start."""
    before = coverage.Coverage.current()
    yield before is not None
    assert coverage.Coverage.current() is before
    assert not loads_coverage()


def test_measuring_goes_on_after_a_test_without(is_measured: bool, request: pytest.FixtureRequest) -> None:
    assert is_measured == (coverage.Coverage.current() is not None)
    request.getfixturevalue("unmeasured")
    assert coverage.Coverage.current() is None
