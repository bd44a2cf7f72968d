"""Whole systems on both devices: real loader, kernel, systemd and agent, updated by a real server.

What takes long here is the emulation of a processor. A device therefore lives through one story: its first
boot, a good release, and releases that panic, hang and fail their health check. A second device is updated
while its power is cut again and again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.project_files import ROOT
from twinlock.cli.api import Api
from twinlock.core.limits import MIB
from twinlock.lab.qemu import cuts, scenarios, stage
from twinlock.lab.qemu.build import ROOM_BYTES, Settings
from twinlock.lab.qemu.guests import MARK
from twinlock.lab.qemu.machine import ARCHITECTURES, Architecture
from twinlock.lab.qemu.shell import Shell
from twinlock.lab.scenario import Result

DEVICE_ID = "lab-device"
CUTS = 10
CUTS_LONG = 100
CHECK_BYTES_MAX = 40 * MIB
INSTALL_BYTES_MAX = 32 * MIB
STORY = ("update", "panic", "hang", "bad-release")
STORY_ONCE = ("both-bad",)  # for all loaders `test_two_bad_slots_boot_recovery` sees recovery start
STORY_LONG = ("network-lost", "power-lost", "server-down")


@pytest.fixture(scope="session")
def uv() -> None:
    """Puts the project's own uv on PATH, told of the machine's package index as pip is."""
    command = [sys.executable, str(ROOT / "tools/bootstrap.py"), "uv"]
    path = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    code = "import json, os, pip_settings; print(json.dumps(pip_settings.uv_environment(dict(os.environ))))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tools"
    ).stdout
    os.environ.update(json.loads(told))
    os.environ["PATH"] = f"{Path(path).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest, uv: None) -> Architecture:
    found: Architecture = request.param
    return found


@pytest.fixture
def device(
    request: pytest.FixtureRequest, architecture: Architecture, tmp_path: Path
) -> Iterator[stage.Stage]:
    """A device that is built and not switched on yet; a trial of it has `tries` (a marker's argument)."""
    tries = request.node.get_closest_marker("tries").args[0]
    notes: list[str] = []
    settings = Settings(DEVICE_ID, tries=tries)
    with stage.opened(architecture, tmp_path / "lab", Api, settings, note=notes.append) as made:
        try:
            yield made
        finally:
            print("\n".join(notes))


@pytest.mark.tries(1)
def test_a_device_takes_updates_and_comes_back_from_bad_ones(
    device: stage.Stage, architecture: Architecture, long_run: bool, show: Callable[[str], None]
) -> None:
    boot_s = device.begin()
    show(f"{architecture}: first boot to the service's first answer {boot_s:.0f} s")
    machine = device.device.machine
    machine.wait_for(MARK)
    _is_set_up(Shell(machine), device)

    once = STORY_ONCE if long_run or architecture == "arm64" else ()
    for name in STORY + once + (STORY_LONG if long_run else ()):
        (result,) = scenarios.run(device, [scenarios.BY_NAME[name]])
        show(f"{architecture}: {_told(result)}")
        assert result.problems == [], "\n".join(f"{step.at_s} {step.text}" for step in result.steps)
        if name == "update":
            show(f"{architecture}: {_memory(device)}")

    told = device.rig.operator.get(f"/devices/{DEVICE_ID}/reports")["reports"]
    reasons = [one["detail"] for one in told if one["code"] == "health-failed"]
    assert any("found schema 7, need schema 8" in reason for reason in reasons)


def _is_set_up(shell: Shell, device: stage.Stage) -> None:
    """What the first boot made for this device alone."""
    shell.run("systemctl is-active twinlock-agent.timer")
    shell.run("until [ -e /data/.grown ]; do sleep 0.5; done")
    size_bytes = int(shell.run("df -B1 --output=size /data | tail -n 1"))
    assert size_bytes > device.builder.plan.need("data").size_bytes + ROOM_BYTES * 3 // 4
    shell.run("until [ -s /data/identity/ssh/ssh_host_ecdsa_key ]; do sleep 0.5; done")
    assert len(shell.run("cat /data/identity/ssh/*.pub").splitlines()) == 2
    served = shell.run("mkdir -p /run/sshd; sshd -T | grep '^hostkey '")
    assert served.count(" /data/identity/ssh/") == len(served.splitlines()) == 2
    assert shell.run("ls /var/log/journal") == shell.run("cat /etc/machine-id")
    assert shell.run("twinlock-agent --version").startswith("twinlock-agent ")
    shell.run("! touch /usr/x 2>/dev/null")
    shell.run("test -e /data/identity/agent/enrolled")


def _memory(device: stage.Stage) -> str:
    """What the agent's runs in the guest needed, from the guest's own journal of the boot that installed."""
    machine = device.device.machine
    machine.wait_for(rf"{MARK} system=\S+ slot=b end")
    said = Shell(machine).run(
        "journalctl -u twinlock-agent -u twinlock-trial --no-pager -o cat | grep memory"
    )
    found = [
        (float(run), float(check))
        for run, check in re.findall(r"at most ([\d.]+) MiB, its check ([\d.]+)", said)
    ]
    assert found, said
    install, check = max(run for run, _ in found), max(check for _, check in found)
    assert install * MIB <= INSTALL_BYTES_MAX, said
    assert check * MIB <= CHECK_BYTES_MAX, said
    assert Shell(machine).run("pgrep -f twinlock-agent || echo nothing resident") == "nothing resident"
    return f"memory in the guest: install {install:.1f} MiB, check {check:.1f} MiB, nothing between polls"


def _told(result: Result) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in result.figures.items())
    return f"{result.name}: {figures}"


@pytest.mark.tries(7)
def test_power_cuts_at_random_writes(
    device: stage.Stage, architecture: Architecture, seed: int, long_run: bool, show: Callable[[str], None]
) -> None:
    """Whatever the loader finds after a cut is a whole release, and the device goes on to the end."""
    device.begin()
    device.power_off(seed)
    count = CUTS_LONG if long_run else CUTS
    done = cuts.run(device, seed, count)
    assert done.violations == ()
    assert len(done.cuts) == count
    assert any(state == "succeeded" for _, state, _ in done.outcomes)
    phases = ", ".join(one.phase for one in done.cuts)
    show(f"{architecture}: {count} power cuts, seed {seed}, 0 violations; while {phases}")
