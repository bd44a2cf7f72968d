"""That no attack's test passes by accident: each has its guard named, and fails when the guard is taken out."""

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


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.attacks.guards"],
        cwd=ROOT,
        env={**env, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("test", sorted(GUARDS))
def test_an_attack_succeeds_without_its_guard(outcomes: dict[str, str], test: str) -> None:
    assert outcomes[test] == NOTICED, outcomes[test]
