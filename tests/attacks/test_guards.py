"""That no attack's test passes by accident: each names its guard, and fails when the guard is taken out."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks.guards import GUARDS, NOTICED
from tests.project_files import ROOT, parse

HERE = Path(__file__).parent


def attacks() -> set[str]:
    """Every test_case_NN_... in this folder."""
    return {
        f"{path.stem}.{node.name}"
        for path in HERE.glob("test_*.py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_case_")
    }


def test_every_attack_names_its_guard() -> None:
    assert attacks() == set(GUARDS)


@pytest.mark.parametrize("module", sorted({test.partition(".")[0] for test in GUARDS}))
def test_every_attack_succeeds_without_its_guard(module: str) -> None:
    """One process with a fork for each attack; the guards' own text must still be there, exactly once."""
    mine = [test for test in GUARDS if test.startswith(f"{module}.")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.attacks.guards", *mine],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout)
    assert list(outcomes) == mine
    assert {test: outcome for test, outcome in outcomes.items() if outcome != NOTICED} == {}
