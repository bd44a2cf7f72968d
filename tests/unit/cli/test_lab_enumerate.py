"""`twinlock lab enumerate`: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import pytest

from twinlock.agent.install import Installer
from twinlock.cli.main import main
from twinlock.core.errors import CATALOGUE, EXIT_CODES
from twinlock.lab.crash import visit

QUICK = ["lab", "enumerate", "--loader", "file", "--bound", "8", "--again", "0"]


def nothing(*args: object) -> None:
    """A guard that is gone."""


def said(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    out, err = capsys.readouterr()
    found: dict[str, Any] = json.loads(out)
    return found, err


def test_what_was_visited_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--json"]) == 0
    data, err = said(capsys)
    assert err == ""
    assert data["version"] == 1
    assert data["violations"] == []
    assert data["states"] == sum(data["loaders"]["file"].values()) > 1000
    assert set(data) == {
        "version", "states", "violations", "loaders", "crash_points", "crash_points_exhaustive",
        "recoveries_run", "recoveries_checked", "boots", "bound", "seed", "again",
    }  # fmt: skip


def test_a_violation_ends_it_with_an_error_and_says_how_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(Installer, "_invalidate", nothing), patch.object(visit, "KINDS", ("good",)):
        assert main(QUICK) == EXIT_CODES[CATALOGUE["lab-violations"].kind]
        out, err = capsys.readouterr()
        assert "Crash states by loader" in out or "loader" in out
        assert "slot b may boot, and is not a complete release" in out
        assert err.startswith("error[lab-violations]")
        assert "--state ID" in err
        assert main([*QUICK, "--json"]) != 0
        data, err = said(capsys)
        assert json.loads(err)["error"]["code"] == "lab-violations"
        first = data["violations"][0]
        assert set(first) == {"state", "loader", "phase", "call", "what"}
        assert main(["lab", "enumerate", "--state", first["state"]]) != 0
    out, err = capsys.readouterr()
    assert "VIOLATION: slot b may boot" in out
    assert first["state"] in err


def test_one_state_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "enumerate", "--state", "uboot/good/60/kept-1"]) == 0
    out, _ = capsys.readouterr()
    for text in ("The power goes after:", "survives", "is lost", "The loader would start", "violations: 0"):
        assert text in out
    assert main(["lab", "enumerate", "--state", "efi/dead/150/kept-0", "--json"]) == 0
    data, _ = said(capsys)
    assert data["state"] == "efi/dead/150/kept-0"
    assert data["starts"]
    assert {one["state"] for one in data["reports"]} >= {"rolled_back"}
    assert data["violations"] == []


@pytest.mark.parametrize(
    "wrong",
    [["--loader", "lilo"], ["--bound", "7"], ["--bound", "65537"], ["--again", "-1"], ["--seed", "-1"],
     ["--state", "no/such/state"]],
)  # fmt: skip
def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], wrong: list[str]) -> None:
    assert main(["lab", "enumerate", *wrong]) == EXIT_CODES[CATALOGUE["input-invalid"].kind]
    assert "error[input-invalid]" in capsys.readouterr().err
