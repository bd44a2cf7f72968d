"""The boot control that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.agent.boot.file import FileBootControl
from twinlock.agent.boot.grub import GrubBootControl
from twinlock.agent.boot.uboot import UbootBootControl

if TYPE_CHECKING:
    from twinlock.agent.config import BootConfig

_CONTROLS: Final = {control.name: control for control in (FileBootControl, UbootBootControl, GrubBootControl)}


def boot_control(boot: BootConfig) -> FileBootControl:
    """Boot control for this device; nothing is read or written yet."""
    return _CONTROLS[boot.control](boot.path, boot.offset_bytes, boot.booted)
