"""The entry: one line for every failure, exit codes, groups loaded only when asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from tests.project_files import ROOT
from twinlock import __version__
from twinlock.cli.main import GROUPS, main
from twinlock.core.errors import EXIT_CODES, Kind, error

Capture = pytest.CaptureFixture[str]


def failing(monkeypatch: pytest.MonkeyPatch, step: Callable[[], object]) -> None:
    """Makes `twinlock demo` do `step`."""
    app = typer.Typer(invoke_without_command=True)

    @app.callback()
    def demo(as_json: bool = typer.Option(False, "--json")) -> None:
        step()

    monkeypatch.setitem(sys.modules, "twinlock.cli.demo", SimpleNamespace(app=app))


def raising(problem: BaseException) -> Callable[[], object]:
    def step() -> object:
        raise problem

    return step


def test_an_error_is_one_line_with_code_and_hint(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    failing(monkeypatch, raising(error("disk-full", "no room\nfor \x1b[31mthis")))
    assert main(["demo"]) == EXIT_CODES[Kind.DEVICE]
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error[disk-full]: no room for  [31mthis -- hint: free some space and try again\n"


def test_an_error_for_programs_is_one_object(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    failing(monkeypatch, raising(error("metadata-signature", "forged", hint="stop")))
    assert main(["demo", "--json"]) == EXIT_CODES[Kind.TRUST]
    assert json.loads(capsys.readouterr().err) == {
        "version": 1,
        "error": {"code": "metadata-signature", "what": "forged", "hint": "stop"},
    }


@pytest.mark.parametrize(
    ("problem", "code", "exit_code"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.img"), "input-missing", 2),
        (PermissionError(13, "Permission denied", "x.img"), "permission-denied", 6),
        (OSError(28, "No space left on device"), "disk-full", 6),
        (ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy"), "package-missing", 6),
        (ZeroDivisionError("division by zero"), "internal", 70),
        (RecursionError(), "internal", 70),
        (ModuleNotFoundError("No module named 'twinlock.x'", name="twinlock.x"), "internal", 70),
    ],
)
def test_any_exception_ends_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    tmp_path: Path,
    problem: BaseException,
    code: str,
    exit_code: int,
) -> None:
    monkeypatch.setattr(tempfile, "mkstemp", lambda **names: _log(tmp_path))
    failing(monkeypatch, raising(problem))
    assert main(["demo"]) == exit_code
    err = capsys.readouterr().err
    assert err.startswith(f"error[{code}]: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    if code == "package-missing":
        assert "pip install 'twinlock[lab]'" in err
    if code == "internal":
        assert str(tmp_path / "fault.log") in err
        assert "Traceback" in (tmp_path / "fault.log").read_text()


def _log(folder: Path) -> tuple[int, str]:
    path = folder / "fault.log"
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), str(path)


def test_a_fault_shows_its_trace_when_asked(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("TWINLOCK_DEBUG", "1")
    failing(monkeypatch, raising(ZeroDivisionError("division by zero")))
    assert main(["demo"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_without_a_place_for_its_log(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(tempfile, "mkstemp", lambda **names: raising(OSError(28, "full"))())
    failing(monkeypatch, raising(ZeroDivisionError()))
    assert main(["demo"]) == 70
    assert "TWINLOCK_DEBUG=1" in capsys.readouterr().err


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), typer.Abort()])
def test_an_interrupt_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, problem: BaseException
) -> None:
    failing(monkeypatch, raising(problem))
    assert main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("code", [0, 3])
def test_a_commands_own_exit_code_is_kept(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    failing(monkeypatch, raising(typer.Exit(code)))
    assert main(["demo"]) == code
    failing(monkeypatch, raising(SystemExit(code)))
    assert main(["demo"]) == code


@pytest.mark.parametrize(
    "args",
    [
        ["nothing"],
        ["--nothing"],
        ["keys", "nothing"],
        ["keys", "create", "--nothing"],
        ["keys", "create", "extra"],
        ["release", "pack"],
        ["release", "pack", "image", "--product"],
        ["release", "pack", "image", "--product", "p", "--version", "1", "--hardware", "h", "--level", "x"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(capsys: Capture, args: list[str]) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error[input-invalid]: ")
    assert "--help" in err
    assert err.count("\n") == 1
    assert main([*args, "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "input-invalid"


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["keys", "--help"], ["release", "sign", "--help"]])
def test_help_is_no_error(capsys: Capture, args: list[str]) -> None:
    assert main(args) == 0
    assert "Usage: twinlock" in capsys.readouterr().out


@pytest.mark.parametrize("args", [[], ["keys"], ["release"]])
def test_nothing_asked_shows_help_and_fails(capsys: Capture, args: list[str]) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert "Usage: twinlock" in out + err
    assert "error[" not in err


def test_every_group_is_in_the_help(capsys: Capture) -> None:
    main(["--help"])
    out = capsys.readouterr().out
    assert [name for name in GROUPS if name not in out] == []


def test_the_version_is_that_of_the_package(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"twinlock {__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__


def test_help_loads_no_group_and_no_heavy_library() -> None:
    """`--help` must be quick, and work when only some extras are installed."""
    script = (
        "import sys\n"
        "from twinlock.cli.main import main\n"
        "main(['--help'])\n"
        "names = [n for n in sys.modules if n.startswith(('twinlock.publish', 'twinlock.server', "
        "'twinlock.lab', 'tuf', 'cryptography', 'sqlalchemy', 'starlette', 'urllib3'))]\n"
        "sys.stderr.write(repr(names))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"


def test_a_missing_extra_is_named_with_its_command() -> None:
    script = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ({missing!r},):\n"
        "            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from twinlock.cli.main import main\n"
        "sys.exit(main({args!r}))\n"
    )
    for missing, args, extra in [
        ("typer", ["keys", "list"], "publish"),
        ("typer", ["--help"], "publish"),
        ("urllib3", ["release", "list"], "publish"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", script.format(missing=missing, args=args)], capture_output=True, text=True
        )
        assert done.returncode == EXIT_CODES[Kind.DEVICE], done.stderr
        assert done.stderr.startswith("error[package-missing]: "), done.stderr
        assert f"pip install 'twinlock[{extra}]'" in done.stderr


@pytest.mark.parametrize("option", ["--json", "--keys"])
def test_a_closed_pipe_is_no_fault(tmp_path: Path, option: str) -> None:
    """`twinlock keys list | head -0`: ends with the shell's code for SIGPIPE, and says nothing."""
    (tmp_path / "keys").mkdir()
    read, write = os.pipe()
    os.close(read)
    args = ["keys", "list", option] + (["keys"] if option == "--keys" else [])
    done = subprocess.run(
        [sys.executable, "-m", "twinlock.cli.main", *args],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_boundary_reports_to_a_closed_stderr_too(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "twinlock.cli.main", "nothing"],
        stdout=subprocess.PIPE,
        stderr=write,
        cwd=tmp_path,
    )
    os.close(write)
    assert (done.returncode, done.stdout) == (2, b"")
