"""The first boots of a device: identity, a read-only root, data that grows, and factory resets.

`preinit` needs nothing but a shell and the usual small programs, so it runs here on busybox; what systemd
does with the units is in `test_whole_system`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.qemu.conftest import Board, Power, description
from tests.e2e.qemu.test_boot_choice import booted
from twinlock.lab.qemu import guests
from twinlock.lab.qemu.machine import Architecture, Machine
from twinlock.lab.qemu.shell import Shell
from twinlock.provision import disk, layout, rootfs


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """One architecture is enough: the script sees Linux, not the loader."""
    architecture: Architecture = "arm64"
    folder = tmp_path_factory.mktemp("board-preinit")
    spec = layout.parse_spec(description(architecture))
    tree = guests.tiny(architecture, folder / "tree", "installed", bare=False)
    (tree / "var/lib/app").mkdir(parents=True)
    (tree / "var/lib/app/shipped").write_text("from the image\n")
    options = rootfs.RootfsOptions(
        plan=layout.plan(spec),
        agent=rootfs.AgentOptions("https://updates.example.com", "lab", "lab-arm64"),
        init=guests.TINY_INIT,
    )
    rootfs.install(tree, options)
    built = disk.build(spec, disk.Trees(a=tree, b=tree), folder / "disk.img", architecture=architecture)
    return Board(architecture, built.plan, built.image)


def start(power: Power, image: Path) -> tuple[Machine, Shell]:
    machine = power(image)
    assert booted(machine) == ("a", "installed")
    return machine, Shell(machine)


def again(machine: Machine) -> None:
    since = machine.console.position()
    machine.reset()
    assert booted(machine, since) == ("a", "installed")


def test_identity_outlives_reboots_and_both_resets(board: Board, power: Power, tmp_path: Path) -> None:
    machine, shell = start(power, board.copy(tmp_path))
    identity = shell.run("cat /etc/machine-id")
    assert len(identity) == 32
    assert set(identity) <= set("0123456789abcdef")
    assert identity == shell.run("cat /data/identity/machine-id")
    assert '"slot": "a"' in shell.run("cat /run/twinlock/booted.json")
    shell.run("! touch /etc/x 2>/dev/null && ! echo x 2>/dev/null >/etc/machine-id")
    assert shell.run("cat /var/lib/app/shipped") == "from the image"
    shell.run("cd /home && touch note /data/app/mine /var/lib/app/state /data/identity/agent/key")
    shell.run("sh /usr/sbin/twinlock-reset application")

    again(machine)
    assert shell.run("cat /etc/machine-id") == identity
    assert shell.run("ls -A /data/app") == ""
    shell.run("cd /home && ls note /var/lib/app/state /data/identity/agent/key")
    shell.run("! ls /data/identity/reset-request 2>/dev/null")
    shell.run("sh /usr/sbin/twinlock-reset all")

    again(machine)
    assert shell.run("cat /etc/machine-id") == identity
    shell.run("! ls /var/lib/app/state 2>/dev/null && cd /home && ! ls note 2>/dev/null")
    assert shell.run("cat /var/lib/app/shipped") == "from the image"
    shell.run("ls /data/identity/agent/key")


def test_a_device_whose_data_is_destroyed_still_comes_up_and_says_so(
    board: Board, power: Power, tmp_path: Path
) -> None:
    image = board.copy(tmp_path)
    with image.open("r+b") as file:
        file.seek(board.plan.need("data").start_bytes)
        file.write(bytes(256 * 1024))
    _, shell = start(power, image)
    assert "cannot be used" in shell.run("cat /run/twinlock/data-failed")
    shell.run("touch /var/lib/app/state /data/app/x")
