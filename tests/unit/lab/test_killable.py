"""The agent under the instrument: real processes, really killed, leaving what a torn call leaves."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from twinlock.core.limits import MIB
from twinlock.lab import images, ledger, process
from twinlock.lab.killable import PROGRAM, kill_at
from twinlock.lab.virtual import Release, VirtualDevice


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.build(images.sized(images.STANDARD[0], 4 * MIB), tmp_path_factory.mktemp("images"))


@pytest.fixture
def device(tmp_path: Path, image: Path) -> VirtualDevice:
    """A device whose server is not there, but which has a key."""
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    release = Release("demo", "1.0", 1, digest, 4 * MIB)
    made = VirtualDevice.provision(
        tmp_path / "device", image, release, server="http://127.0.0.1:1", root=b"{}", device_id="d"
    )
    made.boot()
    return made


def program(device: VirtualDevice, *kills: str) -> list[str]:
    options = [option for kill in kills for option in ("--kill", kill)]
    return [*PROGRAM, "--ledger", str(device.folder / "calls"), "--seed", "3", *options, "--"]


def calls(device: VirtualDevice) -> list[str]:
    return ledger.read(device.folder / "calls")


@pytest.mark.usefixtures("measured")
def test_without_a_kill_it_is_the_agent(device: VirtualDevice) -> None:
    done = device.run_agent(program=program(device))
    plain = device.run_agent()
    assert (done.exit_code, done.stderr) == (plain.exit_code, plain.stderr)
    assert calls(device)[:2] == ["store.write journal.json idle", "check poll"]
    assert "store.write checked.json" in calls(device)  # the child's, between the parent's


def test_killed_before_a_call(device: VirtualDevice) -> None:
    done = device.run_agent(program=program(device, "1"))
    assert done.exit_code == -9
    assert calls(device) == ["store.write journal.json idle"]
    assert not (device.state / "journal.json").exists()


def test_killed_after_a_call(device: VirtualDevice) -> None:
    done = device.run_agent(program=program(device, "1:after"))
    assert done.exit_code == -9
    assert (device.state / "journal.json").exists()


def test_killed_in_the_middle_of_a_call(device: VirtualDevice) -> None:
    done = device.run_agent(program=program(device, "1:torn"))
    assert done.exit_code == -9
    assert not (device.state / "journal.json").exists()
    assert (device.state / "journal.json.tmp").exists()


def test_the_metadata_process_takes_its_parent_along(device: VirtualDevice) -> None:
    assert calls_to(device, "store.write checked.json") > 2
    assert not (device.state / "checked.json").exists()


def calls_to(device: VirtualDevice, label: str) -> int:
    """Which call of a fresh device this is; the device itself is killed there."""
    twin = device.copy(device.folder.with_name("twin"))
    twin.run_agent(program=program(twin))
    number = calls(twin).index(label) + 1
    assert device.run_agent(program=program(device, str(number))).exit_code == -9
    assert calls(device) == calls(twin)[:number]
    return number


def test_numbers_go_on_over_runs(device: VirtualDevice) -> None:
    argv = program(device, "2", "4")
    codes = [device.run_agent(program=argv).exit_code for _ in range(3)]
    assert codes[:2] == [-9, -9]
    assert codes[2] not in (0, -9)  # the server is not there
    assert len(calls(device)) > 4


@pytest.mark.parametrize("text", ["x", "", "3:sideways", ":torn"])
def test_a_wrong_kill_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        kill_at(text)


def test_the_agent_s_arguments_are_needed(tmp_path: Path) -> None:
    done = process.run([*PROGRAM, "--ledger", str(tmp_path / "calls")], env=dict(os.environ))
    assert done.exit_code == 2
    assert "behind --" in done.stderr
    assert sys.executable == PROGRAM[0]
