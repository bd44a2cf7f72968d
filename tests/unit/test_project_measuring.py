"""What coverage measures: the tests' own process, and one that they start only where they ask for it."""

from __future__ import annotations

import subprocess
import sys

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
