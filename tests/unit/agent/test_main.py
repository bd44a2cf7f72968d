"""The command line: quick where it can be, one line and a code where it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from twinlock import __version__
from twinlock.agent import main as module
from twinlock.agent.main import main
from twinlock.core.errors import error


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after running `code`."""
    text = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_load_nothing_heavy(option: str) -> None:
    code = f"""
from twinlock.agent.main import main
try:
    main(["{option}"])
except SystemExit as end:
    assert end.code == 0
"""
    modules = loaded_by(code)
    heavy = {
        "pathlib",
        "dataclasses",
        "msgspec",
        "hashlib",
        "socket",
        "ssl",
        "http.client",
        "subprocess",
        "tomllib",
        "json",
        "shutil",
    }
    assert modules & heavy == set()
    assert not {name for name in modules if name.startswith(("cryptography", "tuf", "backports"))}


def test_version_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"twinlock-agent {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["fly"], ["run", "--what"], ["--config"]])
def test_usage_errors_end_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--config", "X", "status"], ["status", "--config", "X"]])
def test_options_stand_before_or_behind_the_command(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "agent.toml"
    assert main([str(missing) if arg == "X" else arg for arg in argv]) == 6
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error[config-invalid]: configuration {missing}")
    assert " -- hint: " in err
    assert err.count("\n") == 1


def test_errors_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", "--config", str(tmp_path / "gone")]) == 6
    said = json.loads(capsys.readouterr().err)
    assert said["version"] == 1
    assert said["error"]["code"] == "config-invalid"
    assert said["error"]["hint"]


def run_failing(problem: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    class Broken:
        @staticmethod
        def command(config: Path, args: object) -> int:
            raise problem

    monkeypatch.setattr(module, "import_module", lambda name: Broken)
    return main(["run"])


def test_no_traceback_reaches_a_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(ValueError("odd\nthing\x1b[31m"), monkeypatch) == 70
    err = capsys.readouterr().err
    assert err.startswith("error[internal]: ValueError: odd thing [31m (at main.py:")
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_failures_keep_their_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(error("metadata-signature", "no"), monkeypatch) == 4
    assert run_failing(KeyboardInterrupt(), monkeypatch) == 130
    assert run_failing(PermissionError(13, "Permission denied", "/x"), monkeypatch) == 6
    assert "error[permission-denied]: /x: Permission denied" in capsys.readouterr().err
