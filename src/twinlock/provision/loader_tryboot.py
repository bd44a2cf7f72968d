"""The Raspberry Pi's boot partition for tryboot: two files that choose the slot, and a folder for each. Pure.

The Pi's own firmware files (start4.elf, fixup4.dat, ...) and `board.txt`, which is what config.txt would be
otherwise, are the user's: they come with the further boot files of the build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.core.bootloader import applied, slot_folder
from twinlock.core.bootloader_tryboot import BOARD, Tryboot
from twinlock.provision import loader_fat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.core.bootrecord import BootRecord
    from twinlock.provision.layout import Plan

BOARD_TEXT: Final = "arm_64bit=1\nenable_uart=1\n"


def boot_files(
    plan: Plan, kernels: Mapping[str, Mapping[str, bytes]], record: BootRecord
) -> dict[str, bytes]:
    """What goes on the boot partition, by path; `kernels` as `loader_systemd_boot.boot_files` has them."""
    files: dict[str, bytes] = {BOARD: BOARD_TEXT.encode("ascii")}
    for slot, contents in kernels.items():
        if slot != "recovery":  # the firmware knows two ways, and both are slots
            files |= {f"{slot_folder(slot)}/{name}": content for name, content in contents.items()}
    for step in Tryboot(loader_fat.arguments(plan)).follow({}, record):
        files = applied(files, step)
    return files
