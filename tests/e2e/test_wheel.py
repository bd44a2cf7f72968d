"""The distribution as a device gets it: the wheel, its base dependencies by the device lock, nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import bootstrap
from tests.project_files import ROOT, SRC, tracked
from twinlock import __version__

NOT_ON_A_DEVICE = ("starlette", "fastapi", "uvicorn", "typer", "rich", "sqlalchemy", "alembic", "jinja2")
METADATA_LIBRARIES = {"tuf", "securesystemslib", "cryptography"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds what `pip install twinlock` brings; its bin folder."""
    venv = tmp_path_factory.mktemp("device") / "venv"
    uv = bootstrap.ensure_uv()
    env = bootstrap.usable_environment(dict(os.environ))
    install = [uv, "pip", "install", "-q", "--python", str(venv / "bin/python")]
    for argv in (
        [uv, "venv", "-q", "--python", sys.executable, str(venv)],
        [*install, "--require-hashes", "-r", str(ROOT / "requirements/device.txt")],
        [*install, "--no-deps", str(wheel)],
        [uv, "pip", "check", "--python", str(venv / "bin/python")],
    ):
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return venv / "bin"


def run(argv: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a command of the fresh environment, away from the checkout and its settings."""
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
    return subprocess.run(argv, cwd="/", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    expected = {str(path.relative_to(SRC)) for path in tracked() if path.is_relative_to(SRC)}
    assert expected <= inside
    assert {name.split("/")[0] for name in inside} == {"twinlock"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_a_device_gets_no_library_of_the_other_tiers(device: Path) -> None:
    code = (
        "import importlib.util as u, sys\n"
        f"print([name for name in {NOT_ON_A_DEVICE!r} if u.find_spec(name)])\n"
        "import twinlock.agent.main\n"
        f"print([name for name in {NOT_ON_A_DEVICE!r} if name in sys.modules])\n"
    )
    done = run([device / "python", "-I", "-c", code])
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


def test_every_module_of_core_and_agent_imports_on_a_device(device: Path) -> None:
    code = (
        "import importlib, pkgutil, twinlock.agent, twinlock.core\n"
        "for package in (twinlock.core, twinlock.agent):\n"
        "    for info in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not info.name.endswith('__main__'):\n"
        "            importlib.import_module(info.name)\n"
        "            print(info.name)\n"
    )
    done = run([device / "python", "-I", "-W", "error", "-c", code])
    assert done.stderr == ""
    assert "twinlock.core.manifest" in done.stdout.split()
    assert "twinlock.agent.main" in done.stdout.split()


def test_the_agent_says_its_version(device: Path) -> None:
    done = run([device / "twinlock-agent", "--version"])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"twinlock-agent {__version__}\n", "")


def test_the_agents_start_imports_no_metadata_library(device: Path) -> None:
    done = run([device / "python", "-I", "-X", "importtime", device / "twinlock-agent", "--version"])
    imported = set(re.findall(r"\| +([a-z_][\w.]*)$", done.stderr, re.MULTILINE))
    assert done.returncode == 0
    assert "argparse" in imported
    assert {name for name in imported if name.split(".")[0] in METADATA_LIBRARIES} == set()


def test_the_process_that_installs_imports_no_metadata_library(device: Path) -> None:
    code = (
        "import sys, twinlock.agent.run, twinlock.agent.wiring, twinlock.agent.install, twinlock.agent.pull\n"
        f"print(sorted({METADATA_LIBRARIES!r} & {{name.split('.')[0] for name in sys.modules}}))\n"
    )
    done = run([device / "python", "-I", "-c", code])
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_operators_command_names_the_extra_that_is_missing(device: Path) -> None:
    done = run([device / "twinlock", "release", "pack", "--help"])
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert re.search(r"twinlock\[publish\]", done.stderr)
