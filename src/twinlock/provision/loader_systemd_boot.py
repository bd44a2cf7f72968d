"""systemd-boot: its entries with boot counting in their file names. Pure but for reading the loader itself.

    loader/entries/twinlock-a.conf        committed: no counter
    loader/entries/twinlock-b+3.conf      on trial, three tries left; after one boot twinlock-b+2-1.conf
    loader/entries/twinlock-b+0-3.conf    tried and found bad: sorted behind all others

The loader counts by renaming the file, boots the first entry in its order, and an entry without tries comes
last; among the others the higher `version` comes first (systemd's Automatic Boot Assessment, and the UAPI
Group's Boot Loader Specification). systemd's own systemd-bless-boot.service takes the counter away once
boot-complete.target is reached, which `twinlock-trial.service` holds back until the health gate has passed.

The loader reads FAT only. So kernel, initrd and device tree of a slot are copied to the boot partition, into
a folder of that slot: written before the entry is, and checked against the signed image like the slot itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.core.limits import TRIES_MAX
from twinlock.core.names import RECOVERY, SLOTS
from twinlock.provision.loader_uboot import kernel_args

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.provision.layout import LoaderSpec, Plan

ENTRIES: Final = "loader/entries"
VERSION_MAX: Final = (1 << 31) - 1
_EFI: Final = {
    "x86-64": ("BOOTX64.EFI", "systemd-bootx64.efi"),
    "arm64": ("BOOTAA64.EFI", "systemd-bootaa64.efi"),
}
_SOURCE: Final = Path("/usr/lib/systemd/boot/efi")
_LOADER_CONF: Final = "timeout 0\neditor no\nauto-entries no\nauto-firmware no\n"


def slot_folder(slot: str) -> str:
    """Where a slot's kernel lies on the boot partition."""
    return f"twinlock/{slot}"


def slot_files(loader: LoaderSpec) -> dict[str, str]:
    """What is copied from a slot to its folder: path inside the slot -> name in the folder."""
    files = {loader.kernel: "linux"}
    if loader.initrd:
        files[loader.initrd] = "initrd"
    if loader.device_tree:
        files[loader.device_tree] = "devicetree"
    return files


def entry_name(slot: str, tries_left: int | None = None, tries_done: int = 0) -> str:
    """The file name of a slot's entry; `tries_left` is None for a committed one.

    Raises InputError `input-invalid` for an unknown slot or a count out of range.
    """
    if slot not in (*SLOTS, RECOVERY):
        raise error("input-invalid", f"there is no slot {slot!r}")
    if tries_left is None:
        return f"twinlock-{slot}.conf"
    if not 0 <= tries_left <= TRIES_MAX or not 0 <= tries_done <= TRIES_MAX:
        raise error("input-invalid", f"{tries_left} tries left and {tries_done} done are not a trial's")
    done = f"-{tries_done}" if tries_done else ""
    return f"twinlock-{slot}+{tries_left}{done}.conf"


def entry_text(plan: Plan, slot: str, version: int, *, trial: bool = False) -> str:
    """The content of a slot's entry. The slot with the higher `version` boots, while it has tries."""
    if not 0 <= version <= VERSION_MAX:
        raise error("input-invalid", f"entry version {version} is out of range")
    loader = plan.spec.loader
    part = next((part for part in plan.partitions if part.role == slot), None)
    if part is None:
        raise error("input-invalid", f"disk {plan.spec.name!r} has no {slot} partition")
    folder = slot_folder(slot)
    options = f"{kernel_args(loader)} root=PARTUUID={part.partuuid} twinlock.slot={slot}"
    lines = [
        f"title Twinlock {slot}",
        # One key for all, so that only the version decides; recovery is 0 and comes last.
        "sort-key twinlock",
        f"version {version}",
        f"linux /{folder}/linux",
        *([f"initrd /{folder}/initrd"] if loader.initrd else []),
        *([f"devicetree /{folder}/devicetree"] if loader.device_tree else []),
        f"options {options}{' twinlock.trial' if trial else ''}",
    ]
    return "\n".join([*lines, ""])


def boot_files(plan: Plan, kernels: Mapping[str, Mapping[str, bytes]], *, target: str) -> dict[str, bytes]:
    """What goes on the EFI system partition, by path.

    `kernels` holds, for each slot that has a system, the contents of `slot_files` by their names there.
    Raises InputError `input-invalid` for an unknown target, DeviceError `package-missing` without
    systemd-boot-efi.
    """
    if target not in _EFI:
        raise error("input-invalid", f"systemd-boot target {target!r} is not known: {sorted(_EFI)}")
    removable, source = _EFI[target]
    if not (_SOURCE / source).is_file():
        raise error("package-missing", f"{source} is not installed", hint="apt-get install systemd-boot-efi")
    with os_errors("systemd-boot"):
        program = (_SOURCE / source).read_bytes()
    files = {
        f"EFI/BOOT/{removable}": program,
        f"EFI/systemd/{source}": program,
        "loader/loader.conf": _LOADER_CONF.encode("ascii"),
    }
    versions = {"a": 2, "b": 1, RECOVERY: 0}
    for slot, contents in kernels.items():
        text = entry_text(plan, slot, versions[slot])
        files[f"{ENTRIES}/{entry_name(slot)}"] = text.encode("ascii")
        files |= {f"{slot_folder(slot)}/{name}": content for name, content in contents.items()}
    return files
