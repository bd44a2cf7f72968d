"""What coverage measures: the tests' own process, and one that they start only where they ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import coverage


def loads_coverage(env: Mapping[str, str] | None = None) -> bool:
    code = "import sys; print('coverage' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stderr == ""
    return done.stdout == "True\n"


def test_a_process_is_not_measured() -> None:
    assert not loads_coverage()


def test_a_process_that_asks_for_it_is(measured_env: dict[str, str]) -> None:
    assert loads_coverage(measured_env) == (coverage.Coverage.current() is not None)
    assert measured_env.keys() >= os.environ.keys()
