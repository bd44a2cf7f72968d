"""The boot control that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.agent.boot.beside import BesideBootControl
from twinlock.agent.boot.efivars import EfiVariables
from twinlock.agent.boot.file import FileBootControl
from twinlock.agent.boot.grub import GrubBootControl
from twinlock.agent.boot.kernels import Kernels
from twinlock.agent.boot.mounts import Mounts
from twinlock.agent.boot.place import BootPlace
from twinlock.agent.boot.uboot import UbootBootControl
from twinlock.core.bootloader_efi import BootPartition, EfiBoot
from twinlock.core.bootloader_systemd import PROGRAMS, SystemdBoot
from twinlock.core.bootloader_tryboot import Tryboot
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.agent.config import BootConfig, LoaderConfig, SlotConfig
    from twinlock.core.bootloader import LoaderRules

_CONTROLS: Final = {control.name: control for control in (FileBootControl, UbootBootControl, GrubBootControl)}


def boot_control(boot: BootConfig, slots: Mapping[str, SlotConfig]) -> FileBootControl:
    """Boot control for this device; nothing is read or written yet."""
    if boot.loader is None:
        return _CONTROLS[boot.control](boot.path, boot.offset_bytes, boot.booted)
    loader = boot.loader
    mounts = Mounts()
    kernels = Kernels(loader.copies, slots, mounts, loader.slot_folder)
    variables = EfiVariables(loader.variables) if boot.control == "efi" else None
    place = BootPlace(loader.folder, loader.device, mounts, kernels, variables)
    rules = loader_rules(boot.control, loader)
    return BesideBootControl(boot.path, boot.offset_bytes, boot.booted, rules, place)


def loader_rules(control: str, loader: LoaderConfig) -> LoaderRules:
    """What the loader of this kind reads. Raises DeviceError `config-invalid` without what it needs."""
    programs = tuple(name for name in PROGRAMS if name in loader.copies.values())
    match control, loader.partition:
        case "systemd-boot", _:
            return SystemdBoot(loader.arguments, programs)
        case "tryboot", _:
            return Tryboot(loader.arguments)
        case "efi", part if part is not None:
            place = BootPartition(part.number, part.start_sectors, part.size_sectors, part.partuuid)
            return EfiBoot(loader.arguments, place, programs)
    raise error("config-invalid", f"[boot.loader] does not fit the boot control {control!r}")
