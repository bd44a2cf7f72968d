"""The set-up of a fresh machine: which Python, which packages, and pip's configuration passed on to uv."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import bootstrap
from pip_settings import uv_environment
from tests.project_files import ROOT


def write_command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def find_python(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", ROOT / "tools/find-python"], env={"PATH": str(folder)}, capture_output=True, text=True
    )


def test_an_old_python3_is_passed_over_for_a_newer_one(tmp_path: Path) -> None:
    write_command(tmp_path, "python3", '[ "$1" = --version ] && echo Python 3.9.2; exit 1')
    write_command(
        tmp_path,
        "python3.12",
        "[ \"$2\" = 'import sys; print(sys.executable)' ] && echo the-right-one; exit 0",
    )
    assert find_python(tmp_path).stdout == "the-right-one\n"


def test_without_a_usable_python_it_says_what_to_install(tmp_path: Path) -> None:
    write_command(tmp_path, "python3", '[ "$1" = --version ] && echo Python 3.9.2; exit 1')
    done = find_python(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Python 3.9.2" in done.stderr
    assert "apt-get install" in done.stderr


def test_missing_packages_are_listed_for_who_is_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.install_packages([("e2fsprogs", "builds images"), ("git", "lists files")])
    text = str(caught.value)
    assert "apt-get install --no-install-recommends e2fsprogs git" in text
    assert "builds images" in text


def test_packages_are_installed_only_by_root_and_only_when_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/bin/{name}")
    monkeypatch.setattr(bootstrap, "run", lambda argv, env=None: calls.append(argv))
    bootstrap.install_packages([])
    assert calls == []
    bootstrap.install_packages([("git", "lists files")])
    assert [argv[1] for argv in calls] == ["update", "install"]
    assert calls[1][-1] == "git"


def test_every_listed_package_has_a_known_set_a_proof_and_a_reason() -> None:
    lines = (ROOT / "tools/packages.txt").read_text(encoding="utf-8").splitlines()
    rows = [[part.strip() for part in line.split("|")] for line in lines if line and not line.startswith("#")]
    assert all(len(row) == 4 and all(row) for row in rows)
    patterns = [name for names in bootstrap.PACKAGE_SETS.values() for name in names] + [bootstrap.LONG_SET]
    assert [row for row in rows if not any(fnmatchcase(row[0], pattern) for pattern in patterns)] == []
    assert [name for name, _, _ in bootstrap.listed_packages(("demo",))] == ["e2fsprogs"]
    assert "rauc" in [name for name, _, _ in bootstrap.listed_packages(("bench-*",))]


def test_only_the_long_run_brings_the_packages_of_the_long_set() -> None:
    assert bootstrap.wanted_sets(["test"], {}) == ("demo", "test")
    assert bootstrap.wanted_sets(["test"], {"TWINLOCK_LONG": "0"}) == ("demo", "test")
    assert bootstrap.wanted_sets(["test"], {"TWINLOCK_LONG": "1"}) == ("demo", "test", "long")
    assert bootstrap.wanted_sets(["demo"], {"TWINLOCK_LONG": "1"}) == ("demo",)
    assert bootstrap.wanted_sets(["bench"], {}) == ("demo", "bench-*")
    assert bootstrap.wanted_sets(["bench", "agent"], {"TWINLOCK_LONG": "1"}) == ("demo", "bench-agent")
    assert "bison" in [name for name, _, _ in bootstrap.listed_packages(("long",))]
    assert "bison" not in [name for name, _, _ in bootstrap.listed_packages(("demo", "test"))]


def test_commands_in_sbin_count_as_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert bootstrap.present("mke2fs")
    assert not bootstrap.present("no-such-command")
    assert not bootstrap.present("/no/such/file")


def test_a_uv_that_does_not_run_is_not_used(tmp_path: Path) -> None:
    write_command(tmp_path, "good", "echo uv 0.13.9 '(x86_64)'")
    write_command(tmp_path, "shim", "echo not for this Python >&2; exit 127")
    write_command(tmp_path, "other", "echo something else")
    assert bootstrap.uv_version(str(tmp_path / "good")) == (0, 13, 9)
    assert bootstrap.uv_version(str(tmp_path / "shim")) is None
    assert bootstrap.uv_version(str(tmp_path / "other")) is None
    assert bootstrap.uv_version(str(tmp_path / "absent")) is None


def test_a_python_without_ensurepip_needs_debians_package_unless_uv_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "find_uv", lambda: None)
    assert bootstrap.venv_packages() == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ((name, _),) = bootstrap.venv_packages()
    assert re.fullmatch(r"python3\.[0-9]+-venv", name)
    monkeypatch.setattr(bootstrap, "find_uv", lambda: "/bin/uv")
    assert bootstrap.venv_packages() == []


def test_a_failing_command_shows_its_own_words(capfd: pytest.CaptureFixture[str]) -> None:
    bootstrap.run(["/bin/sh", "-c", "echo fine"])
    assert capfd.readouterr() == ("", "")
    with pytest.raises(bootstrap.SetupError, match="ended with 3"):
        bootstrap.run(["/bin/sh", "-c", "echo no such package >&2; exit 3"])
    assert capfd.readouterr().err == "no such package\n"


def test_an_old_uv_on_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_command(tmp_path, "uv", "echo uv 0.1.2")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bootstrap, "TOOLS", tmp_path / "tools")
    assert bootstrap.find_uv() is None
    write_command(tmp_path, "uv", "echo uv 0.99.0")
    assert bootstrap.find_uv() == str(tmp_path / "uv")


def test_the_stamp_changes_with_what_the_environment_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    test, demo = bootstrap.state_hash("test", "/a"), bootstrap.state_hash("demo", "/a")
    assert len({test, demo, bootstrap.state_hash("test", "/b")}) == 3
    monkeypatch.setattr(bootstrap, "LOCKS", {"test": ("device",)})
    assert bootstrap.state_hash("test", "/a") != test


def test_pip_settings_reach_uv(tmp_path: Path) -> None:
    config = tmp_path / ".config/pip/pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\ncert = /etc/ca.pem\n[install]\ntimeout=9\n"
    )
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    env = {"HOME": str(tmp_path), "PIP_FIND_LINKS": f"{wheels} /no/such/folder", "PIP_CONFIG_FILE": ""}
    told = uv_environment(env)
    assert told["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert told["UV_FIND_LINKS"] == str(wheels)
    assert told["UV_HTTP_TIMEOUT"] == "9"
    assert told["SSL_CERT_FILE"] == "/etc/ca.pem"


def test_the_environment_wins_over_files_and_uv_over_pip(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://file.example/simple\n")
    env = {"PIP_CONFIG_FILE": str(config), "PIP_INDEX_URL": "https://env.example/simple"}
    assert uv_environment(env)["UV_DEFAULT_INDEX"] == "https://env.example/simple"
    for own in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        told = uv_environment({**env, own: "https://uv.example/simple"})
        assert told[own] == "https://uv.example/simple"
        assert told.get("UV_DEFAULT_INDEX", "https://uv.example/simple") == "https://uv.example/simple"


def test_a_broken_pip_configuration_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("no section here\n")
    assert "UV_DEFAULT_INDEX" not in uv_environment({"PIP_CONFIG_FILE": str(config), "HOME": ""})
    assert str(config) in capsys.readouterr().out


@pytest.mark.parametrize("home", [None, "", "/no/such/home"])
def test_without_a_home_the_cache_stays_in_the_checkout(home: str | None) -> None:
    env = {} if home is None else {"HOME": home}
    assert bootstrap.usable_environment(env)["UV_CACHE_DIR"] == str(bootstrap.TOOLS / "cache")


def test_help_names_every_target() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert {line.split()[1] for line in done.stdout.splitlines()} == set(phony[1].split())


SAMPLE = """
import os, pytest

def test_skips(): pytest.skip("cannot")
def test_seed(seed, rng): print("drawn", seed, rng.random(), os.environ["TWINLOCK_SEED"])
@pytest.mark.long
def test_long(): raise AssertionError("ran")
"""


def run_sample(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """pytest on three small tests under the project's own conftest and settings."""
    (folder / "conftest.py").write_bytes((ROOT / "tests/conftest.py").read_bytes())
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = long: x\naddopts = -ra -p no:cacheprovider\n")
    (folder / "test_sample.py").write_text(SAMPLE)
    python = str(bootstrap.VENV / "bin/python")
    base = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [python, "-m", "pytest", *args], cwd=folder, env=base | env, capture_output=True, text=True
    )


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_skip_fails_the_run(tmp_path: Path, workers: str) -> None:
    done = run_sample(tmp_path, "-n", workers)
    assert done.returncode == 1, done.stdout
    assert "ALLOW_SKIPS=1 permits" in done.stdout
    assert "SKIPPED [1] test_sample.py:4: cannot" in done.stdout
    assert "1 passed, 1 skipped" in done.stdout


def test_long_tests_run_when_asked_for(tmp_path: Path) -> None:
    done = run_sample(tmp_path, TWINLOCK_LONG="1", ALLOW_SKIPS="1")
    assert done.returncode == 1
    assert "repeat with TWINLOCK_SEED=" in done.stdout
    assert "1 failed, 1 passed, 1 skipped" in done.stdout


def test_one_seed_repeats_a_run_and_allowed_skips_pass(tmp_path: Path) -> None:
    def drawn(seed: str) -> str:
        done = run_sample(tmp_path, "-s", ALLOW_SKIPS="1", TWINLOCK_SEED=seed)
        assert done.returncode == 0, done.stdout
        (line,) = re.findall(r"drawn .*", done.stdout)
        return str(line)

    seven = drawn("7")
    assert seven.endswith(" 7")
    assert drawn("7") == seven
    assert drawn("8").split()[1:3] != seven.split()[1:3]
    assert drawn("random").split()[1:3] != seven.split()[1:3]


def test_a_seed_that_is_no_number_is_refused(tmp_path: Path) -> None:
    done = run_sample(tmp_path, TWINLOCK_SEED="today")
    assert done.returncode != 0
    assert "TWINLOCK_SEED is a decimal number or 'random', not 'today'" in done.stderr
