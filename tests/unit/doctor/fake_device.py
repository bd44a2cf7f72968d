"""A device as a folder: what `provision.rootfs` installs, and what a running system has beside it."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.unit.agent.fakes import FakeClock
from twinlock.agent import identity, memory
from twinlock.agent.doctor.command import diagnose
from twinlock.agent.doctor.findings import Diagnosis
from twinlock.agent.doctor.world import Kind, World
from twinlock.agent.store import FolderStore
from twinlock.core import bootenv_uboot, bootrecord, device_key
from twinlock.core.bootloader import applied
from twinlock.core.bootloader_systemd import SystemdBoot
from twinlock.core.device_key import DevicePublicKey
from twinlock.provision import kernel_check, layout, loader_fat, rootfs
from twinlock.provision.layout import Plan
from twinlock.provision.rootfs import AgentOptions, RootfsOptions

MIB = 1024 * 1024
BOOT_ID = "3e1d9c0a-0000-4000-8000-000000000001"
RELEASE = "6.1.0-test"
DEVICES = {"a": "259:2", "b": "259:3"}
MOUNTS = """\
24 1 259:2 / / ro,relatime - ext4 /dev/root ro
25 24 0:22 / /proc rw - proc proc rw
26 24 259:6 / /data rw,noatime - ext4 /dev/nvme0n1p6 rw
27 24 0:24 / /sys/fs/pstore rw - pstore pstore rw
"""
NOW_S = memory.BUILD_TIME_S + 1_000_000.0


class FakeWorld(World):
    """Files in the folder of device nodes are block devices with the numbers that `devices` gives."""

    def __init__(self, root: Path, devices: dict[Path, str]) -> None:
        super().__init__(root)
        self.devices = devices
        self.free = 100 * MIB

    def kind_at(self, place: Path) -> Kind | None:
        found = super().kind_at(place)
        return "block" if found == "file" and place in self.devices else found

    def device_at(self, place: Path) -> str:
        return self.devices[place]

    def free_bytes(self, place: Path) -> int:
        return self.free


@dataclass
class Device:
    """Everything is as it should be until a test breaks it."""

    root: Path
    plan: Plan
    world: FakeWorld
    clock: FakeClock

    @property
    def config(self) -> Path:
        return self.root / "etc/twinlock/agent.toml"

    @property
    def state(self) -> Path:
        return self.root / "data/identity/agent"

    def part(self, role: str) -> Path:
        part = next(part for part in self.plan.partitions if part.role == role)
        return self.root / f"dev/disk/by-partuuid/{part.partuuid}"

    def write(self, path: str, text: str) -> None:
        where = self.root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)

    def change(self, path: str, before: str, after: str) -> None:
        text = (self.root / path).read_text()
        assert before in text
        (self.root / path).write_text(text.replace(before, after))

    def record(self, *copies: bytes) -> None:
        start = self.plan.need("record").start_bytes
        with self.part("record").open("r+b") as file:
            for offset, block in zip(self.plan.record_offsets, copies, strict=False):
                file.seek(offset - start)
                file.write(block)

    def diagnose(self) -> Diagnosis:
        return diagnose(self.config, self.world, self.clock)

    def codes(self) -> set[str]:
        return {one.code for one in self.diagnose().findings if one.level != "ok"}


def make(root: Path, kind: str = "uboot") -> Device:
    """A healthy device with this loader."""
    plan = layout.plan(layout.parse_spec(f"loader.kind = '{kind}'"))
    for name in ("etc", "usr/bin", "usr/sbin", "usr/lib/systemd/system", "boot", "dev/disk/by-partuuid"):
        (root / name).mkdir(parents=True)
    agent = AgentOptions(server="https://updates.example.com", product="gateway", hardware="board-1")
    rootfs.install(root, RootfsOptions(plan=plan, agent=agent))
    device = Device(root, plan, FakeWorld(root, {}), FakeClock())
    device.clock.wall_s = NOW_S
    for role in ("a", "b", "record"):
        with device.part(role).open("wb") as file:
            file.truncate(plan.need(role).size_bytes if role == "record" else 8 * MIB)
    device.world.devices = {device.part(slot): number for slot, number in DEVICES.items()}
    record = bootrecord.initial()
    block = bootenv_uboot.encode(record) if kind == "uboot" else bootrecord.encode(record)
    device.record(block, block)
    running(device)
    enrolled(device)
    if kind == "systemd-boot":
        systemd_boot(device)
    return device


def running(device: Device) -> None:
    """What the kernel and the first programs show."""
    device.write("proc/self/mountinfo", MOUNTS)
    device.write("proc/cmdline", "console=ttyS0 ro root=PARTUUID=x twinlock.slot=a\n")
    device.write("proc/sys/kernel/random/boot_id", f"{BOOT_ID}\n")
    device.write("proc/sys/kernel/osrelease", f"{RELEASE}\n")
    device.write("run/twinlock/booted.json", json.dumps({"slot": "a", "boot_id": BOOT_ID}))
    (device.root / "sys/class/watchdog/watchdog0").mkdir(parents=True)
    options = kernel_check.shipped_fragment("update") + kernel_check.shipped_fragment("devicetree")
    config = "\n".join(
        [f"CONFIG_{one.name}={one.value}" for one in options if one.value != "n"] + ["CONFIG_OF=y"]
    )
    (device.root / "proc/config.gz").write_bytes(gzip.compress(config.encode()))


def enrolled(device: Device) -> None:
    """Key, card, root of trust."""
    device.state.mkdir(parents=True, mode=0o700)
    store = FolderStore(device.state)
    pem = device_key.generate()
    store.write(identity.KEY, pem)
    fingerprint = DevicePublicKey(device_key.DeviceKey(pem).public_pem).fingerprint
    store.write(memory.CARD_FILE, msgspec.json.encode(memory.Card(device_id="d-1", fingerprint=fingerprint)))
    store.write("root.json", b"{}")


def systemd_boot(device: Device) -> None:
    """A boot partition in step with the record, mounted by the system itself."""
    device.change("etc/twinlock/agent.toml", "[boot.loader]", "[boot.loader]\nfolder = '/efi'")
    text = device.config.read_text().splitlines()
    device.config.write_text("\n".join(line for line in text if not line.startswith("device = ")))
    files: dict[str, bytes] = {}
    for step in SystemdBoot(loader_fat.arguments(device.plan)).follow({}, bootrecord.initial()):
        files = applied(files, step)
    for path, data in files.items():
        (device.root / "efi" / path).parent.mkdir(parents=True, exist_ok=True)
        (device.root / "efi" / path).write_bytes(data)


def without(path: Path) -> None:
    """Removes a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
