"""Boot control for U-Boot: the record as two environment blocks in a raw partition.

The loader's side is `provision/scripts/boot.cmd`. A change is one write of one 512-byte sector to the older
copy; everything that the file boot control says of power cuts holds here too. The loader counts a try down in
the older copy as well, so a cut at any time leaves the newer one whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from twinlock.agent.boot.file import FileBootControl
from twinlock.core import bootenv_uboot

if TYPE_CHECKING:
    from twinlock.core.bootrecord import BootRecord


class UbootBootControl(FileBootControl):
    """Is a `ports.BootControl`."""

    name: ClassVar[str] = "uboot"
    block_size_bytes: ClassVar[int] = bootenv_uboot.SIZE_BYTES
    _flags_byte = False

    def _encode(self, record: BootRecord) -> bytes:
        return bootenv_uboot.encode(record, flags_byte=self._flags_byte)

    def _decode(self, block: bytes) -> BootRecord | None:
        # A U-Boot with a redundant environment writes one byte more; what it wrote tells, and is kept up.
        if bootenv_uboot.has_flags_byte(block):
            self._flags_byte = True
        return bootenv_uboot.decode(block)
