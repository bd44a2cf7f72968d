"""A whole system under OVMF, whose agent controls firmware and systemd-boot through their own files.

What the loaders do with them is real; the trial is driven by hand from the console, step by step as the agent
does, because what is looked at is the loader, not the release.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.qemu.test_boot_choice import booted, reset
from tests.e2e.qemu.test_whole_system import uv as uv_fixture
from twinlock.lab.qemu import guests, system
from twinlock.lab.qemu.machine import Machine, MachineSpec
from twinlock.lab.qemu.shell import Shell
from twinlock.provision import disk, layout, rootfs
from twinlock.provision.rootfs import AgentOptions, RootfsOptions
from twinlock.provision.tools import run

MODULES = ("efivarfs", "fat", "vfat", "nls_cp437", "nls_ascii")
# One step of the boot control that the device's own configuration names, and the record after it
STEP = """\
import json, sys
from pathlib import Path
from twinlock.agent import config
from twinlock.agent.boot.choose import boot_control
found = config.load(Path("/etc/twinlock/agent.toml"))
control = boot_control(found.boot, found.slots)
name, *rest = sys.argv[1:]
done = getattr(control, name)(*[int(one) if one.isdigit() else one for one in rest])
record = control.read()
told = {"default": record.default, "trying": record.trying, "tries_left": record.tries_left}
print(json.dumps(told | {"done": done if isinstance(done, (bool, list)) else None}))
"""
RUN_STEP = """\
#!/bin/sh
PYTHONPATH=/usr/lib/twinlock/python exec python3 -P -s /usr/lib/lab-step.py "$@"
"""
# In place of systemd, which takes most of an emulated boot: what is looked at comes before it.
INIT = f"""\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec >/dev/console 2>&1 </dev/console
echo "{guests.MARK} system=$(cat /etc/system) slot=$(cat /run/twinlock/slot) end"
exec sh
"""


def description(kind: str) -> str:
    return f"""
        name = "lab-{kind}"
        align = "1 MiB"
        boot.size = "64 MiB"
        slot.size = "208 MiB"
        recovery.size = 0
        data.size = "32 MiB"
        [loader]
        kind = "{kind}"
        kernel_args = "console=ttyS0 panic=5 quiet"
    """


def build(kind: str, folder: Path) -> Path:
    """A disk with two systems, "one" and "two", that stop at a shell."""
    tree = system.system_tree("x86-64", folder / "tree", "one")
    plan = layout.plan(layout.parse_spec(description(kind)))
    agent = AgentOptions("https://127.0.0.1:1", "lab", "lab-x86-64", poll_s=3600)
    packages = system.agent_packages("x86-64", folder / "packages")
    rootfs.install(
        tree, RootfsOptions(plan, agent, packages=packages, init="/usr/lib/lab-init", disk="/dev/nvme0n1")
    )
    add_modules(tree)
    for name, text in (("lib/lab-step.py", STEP), ("bin/lab-step", RUN_STEP), ("lib/lab-init", INIT)):
        (tree / "usr" / name).write_text(text)
        (tree / "usr" / name).chmod(0o755)
    images = []
    for name in ("one", "two"):
        (tree / "etc/system").write_text(f"{name}\n")
        out = folder / f"{name}.img"
        images.append(
            disk.make_image(
                tree, out, plan.slot_image_size_bytes_max, filesystem="ext4", name="twinlock-root"
            )
        )
    trees = disk.Trees(a=images[0], b=images[1])
    return disk.build(plan.spec, trees, folder / "disk.img", architecture="x86-64").image


def add_modules(tree: Path) -> None:
    """The modules that a device with these loaders needs, from the packages that the system is made of."""
    (version,) = (path.name for path in (tree / "usr/lib/modules").iterdir())
    archive = guests.debian("x86-64", [*system.PACKAGES, guests.KERNELS["x86-64"]])
    wanted = {f"{name}.ko" for name in MODULES}
    with tarfile.open(archive) as members:
        for member in members:
            name = member.name.rpartition("/")[2]
            if name in wanted:
                file = members.extractfile(member)
                assert file is not None
                out = tree / "usr/lib/modules" / version / "kernel" / name
                out.write_bytes(file.read())
                wanted.remove(name)
    assert not wanted
    run(["depmod", "-b", str(tree), version], package="kmod")


class Console(Shell):
    """The device's console, and the steps of its boot control."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        folder = "/sys/firmware/efi/efivars"
        self.run(f"mountpoint -q {folder} || mount -t efivarfs efivarfs {folder}")

    def step(self, *words: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.run(f"lab-step {' '.join(words)}").splitlines()[-1])
        return found

    def variable(self, name: str) -> str:
        path = f"/sys/firmware/efi/efivars/{name}-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        return self.run(f"od -An -tx1 {path} 2>/dev/null || echo none").strip()


uv = uv_fixture  # pytest finds a fixture in the module that uses it


@pytest.mark.usefixtures("uv")
def test_the_loader_follows_the_record_for_a_trial_and_for_good(
    tmp_path: Path, long_run: bool, show: Callable[[str], None]
) -> None:
    """systemd-boot's own counting is seen in test_systemd_boot too, and its files are EFI's way out here."""
    for kind in ("efi", "systemd-boot") if long_run else ("efi",):
        folder = tmp_path / kind
        folder.mkdir()
        with Machine(MachineSpec("x86-64", build(kind, folder)), folder) as machine:
            live(machine, kind, retried=long_run)
            show(f"{kind}: a trial and its commit took {machine.cpu_s():.0f} s of CPU")


def live(machine: Machine, kind: str, *, retried: bool) -> None:
    """A trial that is committed; one that is `retried` is reset once before that."""
    by_efi = kind == "efi"
    assert booted(machine) == ("a", "one")  # no variable is there yet: systemd-boot started it
    shell = Console(machine)
    mended = shell.step("mend")["done"]
    assert isinstance(mended, list)
    assert ("efivars/BootOrder" in mended) is by_efi
    assert shell.step("mend")["done"] == []
    shell.step("invalidate", "b")
    assert shell.step("arm", "b", "2", "trial-1")["tries_left"] == 2
    left = shell.step("before_reboot")["tries_left"]
    assert left == (1 if by_efi else 2)
    if by_efi:
        assert shell.variable("BootNext") == "07 00 00 00 03 71"

    assert reset(machine) == ("b", "two")
    shell = Console(machine)
    shell.run("grep -q twinlock.trial /proc/cmdline")
    assert shell.step("mend")["tries_left"] == 1
    if by_efi:
        assert shell.variable("BootCurrent") == "06 00 00 00 03 71"
        assert shell.variable("BootNext") == "none"
    if retried:
        shell = again(machine, by_efi=by_efi)
    shell.step("self_test")
    assert shell.step("commit", "trial-1")["default"] == "b"

    assert reset(machine) == ("b", "two")
    shell = Console(machine)
    shell.run("! grep -q twinlock.trial /proc/cmdline")
    assert shell.step("mend")["done"] == []
    if by_efi:
        assert shell.variable("BootCurrent") == "06 00 00 00 01 71"
    shell.run("! grep -q /run/twinlock/ /proc/mounts")


def again(machine: Machine, *, by_efi: bool) -> Console:
    """The next boot of the trial: firmware with one shot goes to the old slot first, which asks for it."""
    if by_efi:
        assert reset(machine) == ("a", "one")
        shell = Console(machine)
        assert shell.variable("BootCurrent") == "06 00 00 00 00 71"
        assert shell.step("before_reboot")["tries_left"] == 0
    assert reset(machine) == ("b", "two")
    shell = Console(machine)
    assert shell.step("mend")["tries_left"] == 0
    return shell
