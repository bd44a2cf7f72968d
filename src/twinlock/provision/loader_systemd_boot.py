"""systemd-boot on the EFI system partition: the loader, its entries and the slots' kernels, as built.

What the entries say, and how they follow from the boot record later, is `core.bootloader_systemd`. For EFI's
boot manager the partition is the same: systemd-boot is what firmware without variables starts. Pure but for
reading the loader itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.core import bootloader_systemd
from twinlock.core.bootloader import slot_folder
from twinlock.core.bootloader_systemd import ENTRIES, PROGRAMS, entry_name
from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.core.names import RECOVERY
from twinlock.provision import loader_fat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.provision.layout import Plan

_EFI: Final = {
    "x86-64": ("BOOTX64.EFI", "systemd-bootx64.efi"),
    "arm64": ("BOOTAA64.EFI", "systemd-bootaa64.efi"),
}
_SOURCE: Final = Path("/usr/lib/systemd/boot/efi")
_LOADER_CONF: Final = "timeout 0\neditor no\nauto-entries no\nauto-firmware no\n"


def entry_text(plan: Plan, slot: str, version: int, *, trial: bool = False) -> str:
    """The content of a slot's entry on a disk of this plan.

    Raises InputError `input-invalid` for a slot that the plan lacks, or a version out of range.
    """
    arguments = loader_fat.arguments(plan)
    if slot not in arguments:
        raise error("input-invalid", f"disk {plan.spec.name!r} has no {slot} partition")
    names = loader_fat.copies(plan.spec.loader).values()
    programs = tuple(name for name in PROGRAMS if name in names)
    return bootloader_systemd.entry_text(slot, arguments[slot], programs, version, trial=trial)


def boot_files(plan: Plan, kernels: Mapping[str, Mapping[str, bytes]], *, target: str) -> dict[str, bytes]:
    """What goes on the EFI system partition, by path.

    `kernels` holds, for each slot that has a system, the contents of its folder by their names there.
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
