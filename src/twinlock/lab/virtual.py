"""A virtual device: a disk file, a loader, and the real agent as a real process. No root, no QEMU.

    FOLDER/disk.img      partition table, boot record, slots, recovery, data (see `disk`)
    FOLDER/data/         what a real device keeps on its data partition: the agent's state
    FOLDER/run/          what a real device keeps in memory: emptied by each boot
    FOLDER/rootfs/       what the booted slot's file system holds of interest, taken out of it by each boot
    FOLDER/agent.toml    the agent's configuration, on a real device part of the image
    FOLDER/device.json   what this module knows of the device; `open` reads it

A boot does what a bootloader does (see `core.bootrecord`): it reads both copies of the record, picks a slot,
saves a try *before* the jump, and goes elsewhere when the slot does not even begin with a file system. It
neither verifies nor repairs: what it boots is what the record says.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from twinlock.core import bootrecord, limits
from twinlock.core.bootrecord import BootRecord
from twinlock.core.durable import os_errors, read_bounded, write_atomic
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import RECOVERY, SLOTS
from twinlock.lab import ext4, images, process
from twinlock.lab.disk import Disk, slot_size_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from twinlock.lab.process import Finished

REBOOT_WANTED: Final = 10
BOOTS_MAX: Final = 12
# agent.toml's [network] unless the settings say otherwise
NETWORK: Final = (
    "connect_timeout_s = 5.0\nstall_timeout_s = 10.0\nbackoff_s_min = 0.05\nbackoff_s_max = 0.5\nretries = 5"
)
AGENT: Final = (sys.executable, "-m", "twinlock.agent.main")
_STATE_SIZE_BYTES_MAX: Final = limits.MESSAGE_SIZE_BYTES_MAX


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image that a device may hold, as the lab knows it. `sha256` in hex."""

    product: str
    version: str
    counter: int
    sha256: str
    size_bytes: int


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device was made with."""

    hardware: str
    product: str
    device_id: str
    slot_size_bytes: int


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot: where it went. `slot` may be `recovery`, in which nothing runs here."""

    slot: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class Settled:
    """How `settle` ended: the last run, and every boot on the way."""

    exit_code: int
    stderr: str
    boots: tuple[Boot, ...]


class VirtualDevice:
    """A device in `folder`. Make one with `provision`, come back to it with `open`."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.folder: Final = folder
        self.facts: Final = facts
        self.disk: Final = Disk(folder / "disk.img", facts.slot_size_bytes)
        self.config: Final = folder / "agent.toml"
        self.state: Final = folder / "data"
        self.booted: Final = folder / "run/booted.json"

    # --- making one -----------------------------------------------------------------------------------------

    @classmethod
    def provision(
        cls,
        folder: Path,
        image: Path,
        release: Release,
        *,
        server: str,
        root: bytes,
        device_id: str = "",
        hardware: str = "demo-board",
        both_slots: bool = False,
        settings: Mapping[str, str] | None = None,
        director: bytes | None = None,
    ) -> Self:
        """Makes a device that runs `release` out of the factory, with `root` as its pinned root of trust.

        With `director` (its root) it takes nothing without that director's word. Slot b is empty, or with
        `both_slots` holds the same and may boot. `settings` are further tables for agent.toml (name ->
        lines). Raises InputError, DeviceError.
        """
        facts = Facts(hardware, release.product, device_id, slot_size_for(release.size_bytes))
        device = cls(folder, facts)
        with os_errors(f"folder {folder}"):
            for part in (folder, device.state, device.booted.parent):
                part.mkdir(parents=True, mode=0o700)
            (folder / "hooks").mkdir()
            write_atomic(folder / "device.json", msgspec.json.encode(facts))
            write_atomic(device.state / "root.json", root)
            if director is not None:
                write_atomic(device.state / "director.json", director)
            known = {
                "product": release.product,
                "version": release.version,
                "counter": release.counter,
                "image_sha256": bytes.fromhex(release.sha256),
                "image_size_bytes": release.size_bytes,
            }
            written = SLOTS if both_slots else SLOTS[:1]
            slots = dict.fromkeys(written, known)
            write_atomic(device.state / "slots.json", msgspec.json.encode(slots))
        device.write_config(server, settings)
        disk = Disk.make(device.disk.path, facts.slot_size_bytes)
        for slot in written:
            disk.write_image(slot, image)
        if both_slots:
            disk.save_record(BootRecord(seq=2, default="a"))
        return device

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The device that `provision` made in `folder`. Raises InputError."""
        data = read_bounded(folder / "device.json", _STATE_SIZE_BYTES_MAX, "virtual device")
        try:
            return cls(folder, msgspec.json.decode(data, type=Facts))
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise error("input-invalid", f"{folder} holds no virtual device: {problem}") from problem

    def copy(self, folder: Path) -> Self:
        """A second device with the same disk and state: same identity, for going on in two ways."""
        folder.mkdir(parents=True)
        for name in ("data", "run", "rootfs", "hooks"):
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, folder / name)
        for name in ("device.json", "agent.toml"):
            text = (self.folder / name).read_text(encoding="utf-8")
            (folder / name).write_text(text.replace(str(self.folder), str(folder)), encoding="utf-8")
        images.copy_sparse(self.disk.path, folder / "disk.img")
        return type(self)(folder, self.facts)

    def write_config(self, server: str, settings: Mapping[str, str] | None = None) -> None:
        """Writes agent.toml: the device now knows the server under this address."""
        disk = self.disk
        tables = {
            "boot": f'path = "{disk.path}"\noffset_bytes = {list(disk.record_offsets_bytes)}\n'
            f'booted = "{self.booted}"\ntries = 3',
            "reboot": 'mode = "exit"',
            # This machine's own systemd and journal are not the device's.
            "health": 'manager = "none"\n'
            f'required = ["{self.folder}/rootfs{images.HEALTH_FOLDER}/required.d"]\n'
            f'wanted = ["{self.folder}/rootfs{images.HEALTH_FOLDER}/wanted.d"]\ntimeout_s = 20.0',
            "network": NETWORK,
            "hooks": f'folder = "{self.folder}/hooks"',
            **(settings or {}),
        }
        lines = [
            f'server = "{server}"',
            f'hardware = "{self.facts.hardware}"',
            f'product = "{self.facts.product}"',
            f'state = "{self.state}"',
        ]
        if self.facts.device_id:
            lines.append(f'device_id = "{self.facts.device_id}"')
        for slot in SLOTS:
            where = disk.slots[slot]
            lines += ["", f"[slots.{slot}]", f'path = "{disk.path}"']
            lines += [f"offset_bytes = {where.offset_bytes}", f"size_bytes = {where.size_bytes}"]
        for name, text in tables.items():
            lines += ["", f"[{name}]", text]
        with os_errors(f"configuration {self.config}"):
            write_atomic(self.config, ("\n".join(lines) + "\n").encode())

    # --- the loader -----------------------------------------------------------------------------------------

    def boot(self) -> Boot:
        """Resets the device: everything volatile is gone, the loader picks a slot and starts it.

        Raises DeviceError `boot-control` when saving the try fails the way a full disk makes it fail.
        """
        slot = self._pick()
        boot = Boot(slot, secrets.token_hex(16))
        with os_errors(f"device {self.folder}"):
            for part in ("run", "rootfs"):
                shutil.rmtree(self.folder / part, ignore_errors=True)
            self.booted.parent.mkdir(mode=0o700)
            if slot != RECOVERY:
                self._unpack(slot)
            write_atomic(self.booted, msgspec.json.encode({"slot": slot, "boot_id": boot.boot_id}))
        return boot

    def _pick(self) -> str:
        try:
            record = self.disk.record()
        except TwinlockError as problem:
            if problem.code != "boot-record":
                raise
            return RECOVERY
        slot, to_save = bootrecord.next_boot(record)
        if to_save is not record:
            self.disk.save_record(to_save)
        if slot in SLOTS and not self.disk.begins_file_system(slot):
            slot = bootrecord.next_when_unbootable(to_save, slot)
            if slot in SLOTS and not self.disk.begins_file_system(slot):
                return RECOVERY
        return slot

    def _unpack(self, slot: str) -> None:
        """Takes the health checks and the name of the system out of the slot's file system."""
        folder = self.folder / "rootfs/etc"
        folder.mkdir(parents=True)
        offset_bytes = self.disk.slots[slot].offset_bytes
        for inside in ("/etc/twinlock", images.OS_RELEASE):
            ext4.extract(self.disk.path, inside, folder, offset_bytes=offset_bytes)

    def boot_id(self) -> Boot | None:
        """What booted last, or None before the first boot."""
        if not self.booted.exists():
            return None
        return msgspec.json.decode(self.booted.read_bytes(), type=Boot)

    # --- what it holds --------------------------------------------------------------------------------------

    def release_in(self, slot: str, known: Sequence[Release]) -> Release | None:
        """Which of the `known` releases a slot holds, byte for byte; None when it is none of them whole."""
        hashes: dict[int, str] = {}
        for release in known:
            size_bytes = release.size_bytes
            if size_bytes not in hashes:
                hashes[size_bytes] = self.disk.sha256(slot, size_bytes)
            if hashes[size_bytes] == release.sha256:
                return release
        return None

    def floor(self) -> int:
        """The device's floor; 0 when it never committed anything."""
        path = self.state / "floor.json"
        return int(msgspec.json.decode(path.read_bytes())["counter"]) if path.exists() else 0

    # --- the agent ------------------------------------------------------------------------------------------

    def run_agent(
        self,
        *args: str,
        program: Sequence[str] = AGENT,
        timeout_s: float = 120.0,
    ) -> Finished:
        """Runs one command of the agent (`run` without `args`) as a process, to its end."""
        argv = [*program, *(args or ("run",)), "--config", str(self.config)]
        return process.run(argv, timeout_s=timeout_s)

    def settle(
        self,
        *,
        program: Sequence[str] = AGENT,
        boots_max: int = BOOTS_MAX,
    ) -> Settled:
        """Boots and runs the agent, in recovery too, until it wants no reboot any more, or says why not.

        Raises InternalError `internal` when that takes more than `boots_max` boots, DeviceError
        `slot-unusable` when nothing but recovery is left to boot, and does not help.
        """
        boots: list[Boot] = []
        while len(boots) < boots_max:
            boots.append(self.boot())
            done = self.run_agent(program=program)
            if done.exit_code != REBOOT_WANTED:
                if boots[-1].slot == RECOVERY:
                    what = f"{self.folder}: recovery runs, and brings no slot back: {done.stderr[-500:]}"
                    raise error("slot-unusable", what)
                return Settled(done.exit_code, done.stderr, tuple(boots))
        raise error(
            "internal", f"{self.folder} did not settle within {boots_max} boots: {done.stderr[-500:]}"
        )
