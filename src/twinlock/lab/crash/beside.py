"""The loaders that keep files of their own beside the boot record: systemd-boot, tryboot, EFI's boot manager.

What they boot is `core.bootloader`'s; here they read it from the simulated FAT and from EFI's variables, and
leave there what they leave: systemd-boot renames an entry and flushes nothing, firmware removes `BootNext`.
The slots' kernels are copies on that FAT, so a copy that is not of the slot's release is a violation too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.agent.boot.efivars import ATTRIBUTES, GLOBAL
from twinlock.core.bootloader import VARIABLES, applied, slot_folder
from twinlock.core.bootloader_efi import EfiBoot
from twinlock.core.bootloader_systemd import SystemdBoot
from twinlock.core.durable import write_atomic
from twinlock.core.errors import error
from twinlock.core.names import RECOVERY
from twinlock.lab import loaders as media
from twinlock.lab.crash import kernel as kernels
from twinlock.lab.crash.loaders import RecordSectors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from twinlock.core.bootloader import LoaderRules
    from twinlock.core.bootrecord import BootRecord
    from twinlock.lab.crash.kernel import Kernel

KERNEL: Final = "linux"  # what every loader's file in a slot's folder is called
RECOVERY_RELEASE: Final = "recovery"
_LINES: Final = 50  # of a kernel, so that it has more than one sector


def kernel_of(release: str) -> bytes:
    """The kernel that belongs to a release; to none, for a slot that is not whole."""
    return f"kernel of {release}\n".encode() * _LINES


class BesideLoader(RecordSectors):
    """One of the three, by its rules."""

    def __init__(self, name: str) -> None:
        rules = media.form(name).rules
        if rules is None:
            raise error("internal", f"{name} keeps no files beside the record")
        self.name: Final = name
        self.rules: Final[LoaderRules] = rules

    def first_files(self, record: BootRecord, before: BootRecord) -> dict[str, bytes]:
        files = {
            f"{slot_folder(slot)}/{KERNEL}": kernel_of(release)
            for slot, release in (("a", "1.0"), ("b", "0.9"), (RECOVERY, RECOVERY_RELEASE))
        }
        if isinstance(self.rules, SystemdBoot | EfiBoot):
            files |= SystemdBoot(media.ARGUMENTS).recovery_entry()
        for one in (before, record):
            for step in self.rules.follow(files, one):
                files = applied(files, step)
        return {_path(name): _stored(name, data) for name, data in files.items()}

    def start(self, kernel: Kernel) -> list[str]:
        files = _files(kernel)
        slot, after = self.rules.boots(files, flag=kernel.wish)
        kernel.wish = False
        _leave(kernel, files, after)
        order: list[str] = []
        while slot is not None and slot not in order:
            order.append(slot)
            gone = f"{slot_folder(slot)}/"
            files = {name: data for name, data in files.items() if not name.startswith(gone)}
            slot, _ = self.rules.boots(files, flag=False)
        return order

    def kernel(self, kernel: Kernel, slot: str) -> bytes | None:
        return kernel.content(_path(f"{slot_folder(slot)}/{KERNEL}"))


def _path(name: str) -> str:
    if name.startswith(VARIABLES):
        return f"{kernels.VARIABLES}/{name.removeprefix(VARIABLES)}-{GLOBAL}"
    return f"{kernels.BOOT}/{name}"


def _stored(name: str, data: bytes) -> bytes:
    return ATTRIBUTES + data if name.startswith(VARIABLES) else data


def _files(kernel: Kernel) -> dict[str, bytes]:
    """The loader's files and variables, by the names that its rules know."""
    found = {}
    for path, data in kernel.files():
        if path.startswith(f"{kernels.BOOT}/"):
            found[path.removeprefix(f"{kernels.BOOT}/")] = data
        elif path.startswith(f"{kernels.VARIABLES}/"):
            name = path.removeprefix(f"{kernels.VARIABLES}/").removesuffix(f"-{GLOBAL}")
            found[VARIABLES + name] = data[len(ATTRIBUTES) :]
    return found


def _leave(kernel: Kernel, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Performs what the loader did: a rename, or the removal of a variable."""
    gone = sorted(before.keys() - after.keys())
    new = sorted(after.keys() - before.keys())
    for name in gone:
        if new and after[new[0]] == before[name]:
            kernel.rename(_path(name), _path(new.pop(0)))
        else:
            kernel.unlink(_path(name))
    if new or any(after[name] != before[name] for name in after.keys() & before.keys()):
        raise error("internal", "a loader did what this lab cannot do")


class SlotKernels:
    """Stands in for `agent.boot.kernels`, which mounts the slot: copies the kernel of the slot's release."""

    def __init__(self, release_in: Callable[[str], str]) -> None:
        self._release_in = release_in

    def install(self, slot: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / KERNEL
        wanted = kernel_of(self._release_in(slot))
        if path.exists() and path.open("rb").read() == wanted:
            return
        write_atomic(path, wanted)


BESIDE: Final = (
    BesideLoader("systemd-boot"),
    BesideLoader("tryboot"),
    BesideLoader("efi"),
)
