"""What loaders that read FAT only have in common: kernels copied to the boot partition. Pure.

systemd-boot, EFI's boot manager and the Raspberry Pi's firmware start a slot's kernel from `twinlock/SLOT/`
on the boot partition. Who copies there, at build time and later, takes the same files by the same names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.core.errors import error
from twinlock.provision.loader_uboot import kernel_args
from twinlock.provision.sizes import show_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.provision.layout import LoaderSpec, Plan


def copies(loader: LoaderSpec) -> dict[str, str]:
    """What is copied from a slot: path inside the slot -> name in the slot's folder ("": all of a folder)."""
    wanted = {loader.kernel: "linux"}
    if loader.initrd:
        wanted[loader.initrd] = "initrd"
    if loader.device_tree:
        # The Pi's firmware looks for a tree by the board's name.
        own_name = loader.device_tree.rpartition("/")[2]
        wanted[loader.device_tree] = own_name if loader.kind == "tryboot" else "devicetree"
    if loader.files:
        wanted[loader.files] = ""
    return wanted


def arguments(plan: Plan) -> dict[str, str]:
    """The kernel's command line for each slot that the plan has."""
    return {
        part.role: f"{kernel_args(plan.spec.loader)} root=PARTUUID={part.partuuid} twinlock.slot={part.role}"
        for part in plan.partitions
        if part.role in ("a", "b") or (part.role == "recovery" and plan.spec.loader.kind != "tryboot")
    }


def check_room(plan: Plan, files: Mapping[str, bytes], kernels: Mapping[str, Mapping[str, bytes]]) -> None:
    """Raises CompatibilityError `image-too-large` when a release could not be copied beside what is there.

    While slot b is filled the old and the new copy of one of its files lie side by side.
    """
    largest = max((sum(map(len, contents.values())) for contents in kernels.values()), default=0)
    room = plan.need("boot").size_bytes
    needed = sum(map(len, files.values())) + 2 * largest
    if needed > room:
        raise error(
            "image-too-large",
            f"the boot partition of {show_size(room)} does not hold the kernels of two slots and a change "
            f"of one: {show_size(needed)}",
            hint="raise boot.size",
        )
