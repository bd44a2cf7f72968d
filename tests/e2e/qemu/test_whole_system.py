"""A whole system with systemd on both devices: the units that `provision.rootfs` installs do their work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.qemu.conftest import LOADERS, Board, Power, Shell
from tests.e2e.qemu.test_boot_choice import booted, decoded
from tests.project_files import ROOT
from twinlock.core.bootrecord import BootRecord, arm, next_boot
from twinlock.core.limits import MIB
from twinlock.lab.qemu import guests, system
from twinlock.lab.qemu.machine import ARCHITECTURES, WAIT_CPU_S_MAX, Architecture
from twinlock.provision import disk, layout, rootfs

# Two whole Debian systems under emulation: some ten CPU minutes on a machine without KVM.
pytestmark = pytest.mark.long

ROOM_BYTES = 64 * MIB
TRIAL_S = 300


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


@pytest.fixture(scope="module", params=ARCHITECTURES)
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, uv: None) -> Board:
    architecture: Architecture = request.param
    folder = tmp_path_factory.mktemp(f"system-{architecture}")
    spec = layout.parse_spec(f"""
        name = "system-{architecture}"
        align = "1 MiB"
        slot.size = "256 MiB"
        recovery.size = 0
        data.size = "32 MiB"
        [loader]
        kind = "{LOADERS[architecture]}"
        kernel_args = "console={guests.CONSOLES[architecture]} quiet"
    """)
    plan = layout.plan(spec)
    tree = system.system_tree(architecture, folder / "tree", "whole")
    options = rootfs.RootfsOptions(
        plan=plan,
        agent=rootfs.AgentOptions(
            "https://10.0.2.2:1", "lab", f"lab-{architecture}", poll_s=86400, trial_s=TRIAL_S
        ),
        packages=system.agent_packages(architecture, folder / "packages"),
    )
    assert rootfs.install(tree, options).notes == []
    image = folder / "slot.img"
    disk.make_image(tree, image, plan.slot_image_size_bytes_max, filesystem="ext4", name="twinlock-root")
    built = disk.build(spec, disk.Trees(a=image, b=image), folder / "disk.img", architecture=architecture)
    with built.image.open("r+b") as file:
        file.truncate(plan.disk_size_bytes + ROOM_BYTES)
    return Board(architecture, plan, built.image)


def test_a_trial_that_cannot_decide_ends_by_itself_and_leaves_a_device_that_is_set_up(
    board: Board, power: Power, tmp_path: Path
) -> None:
    """The first boot is a trial whose agent is not enrolled: it fails, the device reboots, its tries end.

    What the first boot made for the device is there in the other slot, and is not made again.
    """
    armed = arm(BootRecord(seq=1, default="a"), "b", 1, "trial-1")
    image = board.copy(tmp_path, [armed, armed])
    machine = power(image, network=True)
    machine.wait_for("twinlock: trial of slot b, tries left after this one: 0")
    # Two boots in one wait: the trial ends before it has started everything.
    assert booted(machine, cpu_s_max=3 * WAIT_CPU_S_MAX) == ("a", "whole")
    assert "does not load" not in machine.console.text()
    assert next_boot(armed)[1] in decoded(board, image)

    shell = Shell(machine)
    assert shell.run("systemctl --failed --no-legend --plain") == ""
    assert shell.run("systemctl is-active twinlock-agent.timer") == "active"
    for unit in ("twinlock-trial", "twinlock-grow", "twinlock-ssh-keys"):
        assert shell.run(f"systemctl show -P ConditionResult {unit}.service") == "no", unit
    size = int(shell.run("df -B1 --output=size /data | tail -n 1"))
    assert size > board.plan.need("data").size_bytes + ROOM_BYTES * 3 // 4
    assert len(shell.run("cat /data/identity/ssh/*.pub").splitlines()) == 2
    served = shell.run("mkdir -p /run/sshd; sshd -T | grep '^hostkey '")
    assert served.count(" /data/identity/ssh/") == len(served.splitlines()) == 2
    # One folder for all boots: the trial ran as the same machine.
    assert shell.run("ls /var/log/journal") == shell.run("cat /etc/machine-id")
    told = shell.run("journalctl -b -1 -u twinlock-trial --no-pager -o cat | grep error")
    assert "identity-missing" in told
    assert shell.run("twinlock-agent --version").startswith("twinlock-agent ")
    shell.run("! touch /usr/x 2>/dev/null")
