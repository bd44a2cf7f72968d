"""GRUB on EFI: its script (pure, `scripts/grub.cfg`) and its core image (by grub-mkimage)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.provision import recordfat
from twinlock.provision.loader_uboot import kernel_args
from twinlock.provision.render import render, shipped
from twinlock.provision.tools import run

if TYPE_CHECKING:
    from twinlock.provision.layout import LoaderSpec, Plan

PREFIX: Final = "/EFI/twinlock"
# Name that firmware looks for on a disk without boot entries, and grub-mkimage's format
_TARGETS: Final = {"x86-64": ("BOOTX64.EFI", "x86_64-efi"), "arm64": ("BOOTAA64.EFI", "arm64-efi")}
_MODULES: Final = (
    *("part_gpt", "part_msdos", "fat", "ext2", "squash4", "normal", "configfile", "linux", "loadenv"),
    *("regexp", "test", "echo", "sleep", "reboot"),
)


def script(plan: Plan) -> str:
    """The text of grub.cfg for a plan."""
    loader = plan.spec.loader
    recovery = plan.get("recovery")
    slot_a, slot_b = plan.need("a"), plan.need("b")
    return render(
        shipped("scripts", "grub.cfg"),
        {
            "NAME": plan.spec.name,
            "SCHEME": "gpt" if plan.spec.table == "gpt" else "msdos",
            "NUMBER_RECORD": str(plan.need("record").number),
            "RECORD_0": recordfat.FILES[0],
            "RECORD_1": recordfat.FILES[1],
            "NUMBER_A": str(slot_a.number),
            "NUMBER_B": str(slot_b.number),
            # No partition has the number 0: loading from it fails, and the script goes on.
            "NUMBER_RECOVERY": str(recovery.number if recovery else 0),
            "PARTUUID_A": slot_a.partuuid,
            "PARTUUID_B": slot_b.partuuid,
            "PARTUUID_RECOVERY": recovery.partuuid if recovery else "none",
            "KERNEL": loader.kernel,
            "KERNEL_ARGS": kernel_args(loader),
            "LOAD_MORE": _load_more(loader),
        },
    )


def _load_more(loader: LoaderSpec) -> str:
    command = "boot"
    if loader.initrd:
        command = f'if initrd "${{tl_from}}{loader.initrd}"; then {command}; fi'
    if loader.device_tree:
        command = f'if devicetree "${{tl_from}}{loader.device_tree}"; then {command}; fi'
    return command


def core_image(target: str) -> bytes:
    """GRUB's EFI program with the modules that the script uses built in.

    Raises InputError `input-invalid` for an unknown target, DeviceError `package-missing` without
    grub-common or grub-efi-amd64-bin / grub-efi-arm64-bin.
    """
    if target not in _TARGETS:
        raise error("input-invalid", f"GRUB target {target!r} is not known: {sorted(_TARGETS)}")
    form = _TARGETS[target][1]
    modules = _MODULES if target == "x86-64" else [*_MODULES, "fdt"]
    if not Path("/usr/lib/grub", form).is_dir():
        raise error("package-missing", f"GRUB's modules for {form} are not installed (grub-efi-*-bin)")
    with TemporaryDirectory(prefix="twinlock-grub-") as folder:
        image = Path(folder, "core.efi")
        run(["grub-mkimage", "-O", form, "-o", str(image), "-p", PREFIX, *modules], package="grub-common")
        with os_errors("GRUB's core image"):
            return image.read_bytes()


def boot_files(plan: Plan, *, target: str = "x86-64") -> dict[str, bytes]:
    """What goes on the EFI system partition, by path."""
    return {
        f"EFI/BOOT/{_TARGETS[target][0] if target in _TARGETS else ''}": core_image(target),
        f"{PREFIX.lstrip('/')}/grub.cfg": script(plan).encode("ascii"),
    }
