"""The U-Boot boot script of a disk. Pure; `scripts/boot.cmd` is the script itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.provision.render import render, shipped
from twinlock.provision.uimage import script_image

if TYPE_CHECKING:
    from twinlock.provision.layout import LoaderSpec, Plan

_NO_PARTITION = "0"  # of a disk without recovery: loading from it fails, and the script goes on


def _load_command(loader: LoaderSpec) -> str:
    """Loads and starts the kernel of partition `${tl_part}`, as one command line."""
    load = "load ${devtype} ${devnum}:${tl_part}"
    initrd = f"{loader.initrd_address}:${{filesize}}" if loader.initrd else "-"
    tree = loader.device_tree_address if loader.device_tree else "${fdtcontroladdr}"
    command = f"{loader.boot_command} {loader.kernel_address}"
    if loader.boot_command != "bootm" or loader.initrd or loader.device_tree:
        command += f" {initrd} {tree}"
    if loader.initrd:
        # Last, so that ${filesize} is the initrd's.
        command = f"if {load} {loader.initrd_address} {loader.initrd}; then {command}; fi"
    if loader.device_tree:
        command = f"if {load} {loader.device_tree_address} {loader.device_tree}; then {command}; fi"
    return f"if {load} {loader.kernel_address} {loader.kernel}; then {command}; fi"


def script(plan: Plan) -> str:
    """The text of boot.cmd for a plan."""
    loader = plan.spec.loader
    sector = plan.spec.sector_size
    recovery = plan.get("recovery")
    slot_a, slot_b = plan.need("a"), plan.need("b")
    return render(
        shipped("scripts", "boot.cmd"),
        {
            "NAME": plan.spec.name,
            "KERNEL_ADDRESS": loader.kernel_address,
            "RECORD_0": f"{plan.record_offsets[0] // sector:x}",
            "RECORD_1": f"{plan.record_offsets[1] // sector:x}",
            "PARTUUID_A": slot_a.partuuid,
            "PARTUUID_B": slot_b.partuuid,
            "PARTUUID_RECOVERY": recovery.partuuid if recovery else "none",
            "NUMBER_A": f"{slot_a.number:x}",
            "NUMBER_B": f"{slot_b.number:x}",
            "NUMBER_RECOVERY": f"{recovery.number:x}" if recovery else _NO_PARTITION,
            "KERNEL_ARGS": kernel_args(loader),
            "LOAD": _load_command(loader),
        },
    )


def kernel_args(loader: LoaderSpec) -> str:
    """The kernel's arguments that are the same for every slot.

    The root is mounted read-only and never checked: a check that mends it changes bytes that were signed. A
    panic restarts the device, and an oops is one: a system on trial must not stay half dead.
    """
    given = loader.kernel_args.split()
    names = {word.partition("=")[0] for word in given}
    given += [word for word in ("panic=10", "oops=panic") if word.partition("=")[0] not in names]
    return " ".join([*given, "ro", "rootwait", "fsck.mode=skip", "init=/usr/lib/twinlock/preinit"])


def boot_files(plan: Plan, *, architecture: str = "arm64") -> dict[str, bytes]:
    """What goes on the boot partition, by path."""
    text = script(plan)
    return {"boot.scr": script_image(text, architecture=architecture), "boot.cmd": text.encode("ascii")}
