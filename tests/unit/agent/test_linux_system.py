"""What systemd, mountinfo and statvfs say, read as the gate needs it. The service manager is a script."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.agent.fakes import config_for
from twinlock.agent.linux import FAILED_UNITS_MAX, LinuxSystem
from twinlock.agent.system import Unmanaged
from twinlock.core.errors import TwinlockError

UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "Job": "",
    "ConditionResult": "yes",
    "ConditionTimestampMonotonic": "1",
    "InactiveEnterTimestampMonotonic": "0",
}


def system(folder: Path, script: str = "exit 1") -> LinuxSystem:
    """A system whose service manager is the shell script; `$2` is its command, `$*` all of its words."""
    (folder / "run/systemd/system").mkdir(parents=True, exist_ok=True)
    program = folder / "systemctl"
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    return LinuxSystem(config_for(folder), folder, str(program))


def answering(folder: Path, text: str, exit_code: int = 0) -> LinuxSystem:
    (folder / "answer").write_text(text, "utf-8")
    return system(folder, f'echo "$*" >>"{folder}/asked"; cat "{folder}/answer"; exit {exit_code}')


def unit_like(folder: Path, **properties: str) -> tuple[str, str]:
    text = "".join(f"{name}={value}\n" for name, value in {**UNIT, **properties}.items())
    found = answering(folder, text).unit("app.service")
    assert found.name == "app.service"
    return found.state, found.what


def test_without_systemd_there_are_no_units(tmp_path: Path) -> None:
    assert not LinuxSystem(config_for(tmp_path), tmp_path).has_units
    assert system(tmp_path).has_units
    nothing = Unmanaged()
    assert (nothing.has_units, nothing.in_maintenance(), nothing.failed_units()) == (False, False, ())
    assert (nothing.free_bytes(), nothing.is_written("a")) == (None, False)
    assert nothing.unit("x").state == "bad"


@pytest.mark.parametrize(
    ("properties", "state"),
    [
        ({}, "good"),
        ({"ActiveState": "reloading"}, "good"),
        ({"ActiveState": "activating"}, "starting"),
        ({"ActiveState": "deactivating"}, "starting"),
        ({"ActiveState": "failed", "Result": "exit-code"}, "bad"),
        ({"ActiveState": ""}, "bad"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "bad"),
        ({"LoadState": "masked", "ActiveState": "inactive"}, "bad"),
        # never started, waiting for its turn, ran to its end, skipped by its own conditions
        ({"ActiveState": "inactive"}, "bad"),
        ({"ActiveState": "inactive", "Job": "17"}, "starting"),
        ({"ActiveState": "inactive", "InactiveEnterTimestampMonotonic": "9"}, "good"),
        ({"ActiveState": "inactive", "Result": "timeout", "InactiveEnterTimestampMonotonic": "9"}, "bad"),
        ({"ActiveState": "inactive", "ConditionResult": "no"}, "good"),
        (
            {"ActiveState": "inactive", "ConditionResult": "no", "ConditionTimestampMonotonic": "0"},
            "bad",
        ),
    ],
)
def test_how_a_unit_is(tmp_path: Path, properties: dict[str, str], state: str) -> None:
    assert unit_like(tmp_path, **properties)[0] == state


def test_a_unit_that_is_missing_is_said_so(tmp_path: Path) -> None:
    assert unit_like(tmp_path, LoadState="not-found") == ("bad", "is not-found, not installed")
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--no-pager show --property=LoadState,")
    assert asked.endswith(" -- app.service\n")


def test_failed_units_are_named_and_bounded(tmp_path: Path) -> None:
    lines = "".join(f"app{number}.service loaded failed failed The app\n" for number in range(100))
    found = answering(tmp_path, f"\n{lines}").failed_units()
    assert found[:2] == ("app0.service", "app1.service")
    assert len(found) == FAILED_UNITS_MAX
    assert answering(tmp_path, "").failed_units() == ()


def test_the_rescue_mode_is_seen(tmp_path: Path) -> None:
    assert answering(tmp_path, "maintenance\n", exit_code=1).in_maintenance()
    assert not answering(tmp_path, "degraded\n", exit_code=1).in_maintenance()
    assert not answering(tmp_path, "starting\n", exit_code=1).in_maintenance()


def test_a_service_manager_that_does_not_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = system(tmp_path, "echo 'Failed to connect to bus' >&2; exit 1")
    with pytest.raises(TwinlockError, match="Failed to connect to bus") as caught:
        broken.in_maintenance()
    assert caught.value.code == "health-failed"
    monkeypatch.setattr("twinlock.agent.linux.TIMEOUT_S", 0.05)
    with pytest.raises(TwinlockError, match="timed out"):
        system(tmp_path, "exec sleep 30").unit("app.service")
    with pytest.raises(TwinlockError, match="does not answer"):
        LinuxSystem(config_for(tmp_path), tmp_path, str(tmp_path / "nothing")).failed_units()


def test_the_space_that_is_left(tmp_path: Path) -> None:
    found = system(tmp_path)
    assert found.free_bytes() is None, "the folder is not there yet"
    (tmp_path / "state").mkdir()
    free = found.free_bytes()
    assert free is not None
    assert free > 0


@pytest.mark.parametrize(
    ("line", "writable"),
    [
        ("25 1 {dev} / / rw,relatime shared:1 - ext4 /dev/root rw,errors=x", True),
        ("25 1 {dev} / / ro,relatime - ext4 /dev/root rw", True),
        ("25 1 {dev} / / ro,relatime - ext4 /dev/root ro", False),
        ("25 1 7:99 / / rw,relatime - ext4 /dev/root rw", False),
        ("25 1 {dev} / / rw,relatime ext4 /dev/root rw", False),
        ("rubbish", False),
    ],
)
def test_a_slot_that_is_mounted_read_write(tmp_path: Path, line: str, writable: bool) -> None:
    """/dev/null stands for the slot: what counts is its device number."""
    number = Path("/dev/null").stat().st_rdev
    (tmp_path / "proc/self").mkdir(parents=True)
    text = line.format(dev=f"{os.major(number)}:{os.minor(number)}")
    (tmp_path / "proc/self/mountinfo").write_text(f"1 1 0:1 / /proc rw - proc proc rw\n{text}\n", "utf-8")
    slots = {"a": {"path": "/dev/null"}, "b": {"path": str(tmp_path / "file")}}
    found = LinuxSystem(config_for(tmp_path, slots=slots), tmp_path)
    assert found.is_written("a") is writable
    assert not found.is_written("b"), "a file that is not there is nobody's mount"
    (tmp_path / "file").write_bytes(b"")
    assert not found.is_written("b")
    assert not found.is_written("recovery")
