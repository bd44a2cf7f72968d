"""Images and disks for virtual devices, from the lab's own Debian system or from a tree of a user's build.

One tree is unpacked, prepared once by `provision.rootfs` as every user's is, and given a service that stands
for what the device is there for. Then it is changed in small ways for each release: its name, and what is
wrong with it (`Flaw`).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.limits import MIB
from twinlock.lab.qemu import guests, system
from twinlock.lab.qemu.rig import PRODUCT
from twinlock.provision import disk, filesystems, layout, rootfs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from twinlock.lab.qemu.machine import Architecture
    from twinlock.lab.qemu.rig import Rig
    from twinlock.provision.layout import DiskSpec, Plan

LOADERS: Final[dict[str, str]] = {"arm64": "uboot", "x86-64": "grub"}
SLOT_MIB: Final[Mapping[Architecture, int]] = {"arm64": 160, "x86-64": 152}  # room for the lab's own system
ROOM_BYTES: Final = 64 * MIB  # behind the last partition: the data partition grows into it on the first boot
_UNITS: Final = "etc/systemd/system"
_HEALTH: Final = "etc/twinlock/health/required.d"

SERVICE_PORT: Final = 7000
_SERVICE_UNIT: Final = """\
[Unit]
Description=What this virtual device is there for: tells anybody who asks which system serves
After=network.target
[Service]
ExecStart=/usr/bin/python3 -I -S /usr/lib/lab-service
Restart=always
[Install]
WantedBy=multi-user.target
"""
_SERVICE: Final = f"""\
import socket
text = open("/etc/system").read().strip() + " " + open("/run/twinlock/slot").read()
listener = socket.create_server(("0.0.0.0", {SERVICE_PORT}))
while True:
    connection, _ = listener.accept()
    with connection:
        try:
            connection.sendall(text.encode())
        except OSError:
            continue
"""


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a release: files that it has on top, by their path in the tree."""

    name: str
    files: Mapping[str, str]


def _unit(description: str, command: str, target: str, extra: str = "") -> dict[str, str]:
    text = f"""\
[Unit]
Description={description}
DefaultDependencies=no
{extra}[Service]
Type=oneshot
ExecStart=/bin/sh -c '{command}'
[Install]
WantedBy={target}
"""
    return {f"{_UNITS}/lab-flaw.service": text, f"{_UNITS}/{target}.wants/lab-flaw.service": "@link"}


PANIC: Final = Flaw(
    "panic",
    _unit("A driver that brings the kernel down", "echo c >/proc/sysrq-trigger", "sysinit.target"),
)
# With real-time throttling off, a loop of the highest priority leaves nobody else the only processor. It
# waits for the watchdog to be armed: a system that hangs before that is nobody's to catch.
HANG: Final = Flaw(
    "hang",
    _unit(
        "A program that takes the processor and never gives it back",
        "until grep -qs ^active /sys/class/watchdog/watchdog0/state; do sleep 0.2; done; "
        'echo -1 >/proc/sys/kernel/sched_rt_runtime_us; exec chrt -f 99 sh -c "while :; do :; done"',
        "multi-user.target",
        "After=systemd-modules-load.service\n",
    ),
)
UNHEALTHY: Final = Flaw(
    "unhealthy",
    {f"{_HEALTH}/10-app": "#!/bin/sh\necho app: found schema 7, need schema 8\nexit 1\n"},
)
FLAWS: Final = (PANIC, HANG, UNHEALTHY)


# What protects a processor from its own speculation slows an emulated one down, which has none: on ARM each
# system call would empty the emulator's translations of addresses.
_KERNEL_ARGS: Final = "panic=5 quiet mitigations=off init_on_alloc=0 audit=0 apparmor=0 nokaslr"


def description(architecture: Architecture, slot_mib: int | None = None) -> str:
    """The disk of the lab's own devices, as a user would describe it."""
    slot_mib = SLOT_MIB[architecture] if slot_mib is None else slot_mib
    return f"""
        name = "lab-{architecture}"
        align = "1 MiB"
        slot.size = "{slot_mib} MiB"
        recovery.size = "{slot_mib} MiB"
        data.size = "32 MiB"
        [loader]
        kind = "{LOADERS[architecture]}"
        kernel_args = "console={guests.CONSOLES[architecture]} {_KERNEL_ARGS}"
    """


@dataclass(frozen=True, slots=True)
class Settings:
    """How the agent of a virtual device is set up; times in seconds."""

    device_id: str
    poll_s: int = 8
    trial_s: int = 300
    tries: int = 3
    watchdog_s: int = 20
    deadline_s: int = 60


class Builder:
    """Makes images for one device. `tree` (a folder) is changed; without it the lab's own system is taken."""

    def __init__(
        self,
        architecture: Architecture,
        folder: Path,
        rig: Rig,
        settings: Settings,
        *,
        spec: DiskSpec | None = None,
        tree: Path | None = None,
    ) -> None:
        self.architecture: Final = architecture
        self.hardware: Final = f"lab-{architecture}"
        self.spec: Final = spec or layout.parse_spec(description(architecture))
        self.plan: Final[Plan] = layout.plan(self.spec)
        self._folder: Final = folder
        self._tree: Final = tree or system.system_tree(architecture, folder / "tree", "none")
        agent = rootfs.AgentOptions(
            rig.url,
            PRODUCT,
            self.hardware,
            tries=settings.tries,
            poll_s=settings.poll_s,
            jitter_s=0,
            trial_s=settings.trial_s,
            root=rig.root,
            ca_file=rig.certificates.ca_file,
            device_id=settings.device_id,
            deadline_s=settings.deadline_s,
        )
        self._add_service()
        packages = system.agent_packages(architecture, folder / "packages")
        self._options: Final = rootfs.RootfsOptions(
            self.plan, agent, packages=packages, watchdog_s=settings.watchdog_s
        )
        self.notes: Final = rootfs.install(self._tree, self._options).notes

    def _add_service(self) -> None:
        with os_errors(f"tree {self._tree}"):
            self._add("usr/lib/lab-service", _SERVICE)
            self._add(f"{_UNITS}/lab-service.service", _SERVICE_UNIT)
            wants = self._tree / _UNITS / "multi-user.target.wants/lab-service.service"
            if not wants.is_symlink():
                self._add(str(wants.relative_to(self._tree)), "@link")

    def image(self, version: str, flaw: Flaw | None = None) -> Path:
        """The image of a release, as large as a slot takes. Raises as `disk.make_image` does."""
        out = self._folder / f"{version}.img"
        (self._tree / "etc/system").write_text(f"{version}\n", "ascii")
        added: list[Path] = []
        with os_errors(f"tree {self._tree}"):
            try:
                for name, text in (flaw.files if flaw else {}).items():
                    added.append(self._add(name, text))
                size_bytes = self.plan.slot_image_size_bytes_max
                disk.make_image(self._tree, out, size_bytes, filesystem="ext4", name="twinlock-root")
            finally:
                for path in added:
                    path.unlink()
        return out

    def _add(self, name: str, text: str) -> Path:
        path = self._tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text == "@link":
            path.symlink_to(f"../{path.name}")
        else:
            path.write_text(text, "ascii")
            path.chmod(0o755 if text.startswith("#!") else 0o644)
        return path

    def disk(self, image: Path) -> Path:
        """A disk as it leaves the factory: `image` in slot a, nothing in b, the same tree in recovery."""
        out = self._folder / "disk.img"
        trees = disk.Trees(a=image, recovery=self._rescue() if self.has_recovery else None)
        built = disk.build(self.spec, trees, out, architecture=self.architecture)
        with os_errors(f"disk {out}"), built.image.open("r+b") as file:
            file.truncate(self.plan.disk_size_bytes + ROOM_BYTES)
        return built.image

    @property
    def has_recovery(self) -> bool:
        """Whether the disk has a place for a recovery system."""
        return self.plan.get("recovery") is not None

    def _rescue(self) -> Path:
        """The recovery system: the same tree, set up for recovery."""
        tree = self._folder / "rescue"
        with os_errors(f"tree {tree}"):
            shutil.copytree(self._tree, tree, symlinks=True)
        rootfs.install(tree, replace(self._options, recovery=True))
        return tree


def extract(archive: Path, folder: Path) -> Path:
    """Unpacks a user's tree that came as a tar archive."""
    with os_errors(f"tree {folder}"):
        folder.mkdir(parents=True)
    filesystems.extract(archive, folder)
    return folder
