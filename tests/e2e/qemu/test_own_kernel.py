"""A kernel of the shipped fragments boots through OVMF and GRUB, and does what the fragments promise.

Debian's kernels have everything, as a module or built in; this one has what the fragments say, no more.
The first run builds it (minutes of processor time), every other takes it from the cache.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.qemu.conftest import Board, Power
from twinlock.cli.main import main
from twinlock.core.bootrecord import BootRecord
from twinlock.lab.qemu import guests
from twinlock.lab.qemu.guests import MARK
from twinlock.lab.qemu.kernel import OwnKernel, own_kernel
from twinlock.lab.qemu.machine import Machine, MachineSpec
from twinlock.lab.qemu.shell import Shell
from twinlock.provision import disk, kernel_check, layout

pytestmark = pytest.mark.long

# No panic= here: that a panic restarts the device is the kernel's own setting.
DISK = """
    name = "lab-own-kernel"
    align = "1 MiB"
    slot.size = "32 MiB"
    recovery.size = 0
    data.size = "16 MiB"
    [loader]
    kind = "grub"
    kernel_args = "console=ttyS0 quiet"
"""
UP = rf"{MARK} system=one slot=a end"


@pytest.fixture(scope="module")
def own() -> OwnKernel:
    return own_kernel()


@pytest.fixture(scope="module")
def board(own: OwnKernel, tmp_path_factory: pytest.TempPathFactory) -> Board:
    folder = tmp_path_factory.mktemp("board-own-kernel")
    trees = [guests.tiny("x86-64", folder / name, name, kernel=own.image) for name in ("one", "two")]
    spec = layout.parse_spec(DISK)
    built = disk.build(spec, disk.Trees(a=trees[0], b=trees[1]), folder / "disk.img", architecture="x86-64")
    return Board("x86-64", built.plan, built.image)


def with_file_systems(machine: Machine) -> Shell:
    shell = Shell(machine)
    shell.run("mount -t sysfs s /sys && mount -t tmpfs t /tmp && mount -t pstore p /sys/fs/pstore")
    return shell


def its_options_are_the_fragments(shell: Shell, own: OwnKernel, folder: Path) -> None:
    packed = folder / "config.gz"
    packed.write_bytes(base64.b64decode(shell.run("busybox base64 /proc/config.gz")))
    assert gzip.decompress(packed.read_bytes()) == own.config.read_bytes()
    names = [word for name in kernel_check.fragment_names() for word in ("--fragment", name)]
    assert main(["kernel", "check", str(packed), *names]) == 0


def what_a_slot_may_be(shell: Shell) -> None:
    known = shell.run("cat /proc/filesystems").split()
    assert {"ext4", "squashfs", "erofs", "overlay", "vfat", "tmpfs", "devtmpfs", "efivarfs"} <= set(known)
    shell.run(
        "mkdir /tmp/up /tmp/work /tmp/both && "
        "mount -t overlay o -o lowerdir=/etc,upperdir=/tmp/up,workdir=/tmp/work /tmp/both && "
        "echo changed >/tmp/both/system"
    )
    assert shell.run("cat /tmp/both/system /etc/system").split() == ["changed", "one"]
    assert "device-mapper" in shell.run("cat /proc/devices /proc/misc")
    assert shell.run("ls /sys/module/dm_verity/parameters") != ""
    assert shell.run("ls -d /sys/block/zram0") == "/sys/block/zram0"


def disk_and_network(shell: Shell) -> None:
    assert "[mq-deadline]" in shell.run("cat /sys/block/nvme0n1/queue/scheduler")
    ipv4 = "/proc/sys/net/ipv4"
    assert "bbr" in shell.run(f"cat {ipv4}/tcp_available_congestion_control").split()
    assert shell.run(f"cat {ipv4}/tcp_congestion_control") == "bbr"


def test_what_the_fragments_promise_holds_on_a_running_kernel(
    own: OwnKernel, board: Board, tmp_path: Path, show: Callable[[str], None]
) -> None:
    image = board.copy(tmp_path)
    with Machine(MachineSpec("x86-64", image, network=True, watchdog=True), tmp_path) as machine:
        machine.wait_for(UP)
        built = own.built
        show(
            f"own kernel {built.source}: {built.size_bytes / 2**20:.1f} MiB, built in {built.cpu_s:.0f} s of "
            f"processor time, booted in {machine.cpu_s():.1f} s of it ({machine.accelerator})"
        )
        shell = with_file_systems(machine)
        its_options_are_the_fragments(shell, own, tmp_path)
        what_a_slot_may_be(shell)
        disk_and_network(shell)
        # The loader's word counts before the fragment's, which is for loaders that say nothing.
        assert shell.run("cat /proc/sys/kernel/panic /proc/sys/kernel/panic_on_oops").split() == ["10", "1"]
        assert shell.run("cat /sys/module/pstore/parameters/backend") == "efi"
        assert shell.run("ls /sys/fs/pstore") == ""

        since = machine.console.position()
        machine.send("echo c >/proc/sysrq-trigger\n")
        machine.wait_for(UP, since=since)
        shell = with_file_systems(machine)
        assert "sysrq triggered crash" in shell.run("cat /sys/fs/pstore/dmesg-efi-*")

        # Opened and never fed: what guards user space restarts the device.
        assert {"watchdog0", "watchdog1"} <= set(shell.run("ls /sys/class/watchdog").split())
        since = machine.console.position()
        machine.send("echo armed >/dev/watchdog\n")
        machine.wait_for(UP, since=since)


def test_its_slots_are_chosen_by_the_loader(board: Board, power: Power, tmp_path: Path) -> None:
    """The other slot holds the same kernel: kernel and root file system are one unit."""
    image = board.copy(tmp_path, [BootRecord(seq=9, default="b"), None])
    power(image).wait_for(rf"{MARK} system=two slot=b end")
