"""Boot control for GRUB on EFI: the record as two environment blocks, written in place.

The loader's side is `provision/scripts/grub.cfg`. GRUB sees the blocks as files of a FAT that never changes
(`provision/recordfat.py`); the agent writes the same bytes straight to the partition, and mounts nothing.
What the loader decides by lies in the first 512 bytes of a block, which the medium writes whole or not at
all; a block that is torn all the same contradicts itself and is ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from twinlock.agent.boot.file import FileBootControl
from twinlock.core import bootenv_grub

if TYPE_CHECKING:
    from twinlock.core.bootrecord import BootRecord


class GrubBootControl(FileBootControl):
    """Is a `ports.BootControl`."""

    name: ClassVar[str] = "grub"
    block_size_bytes: ClassVar[int] = bootenv_grub.SIZE_BYTES

    def _encode(self, record: BootRecord) -> bytes:
        return bootenv_grub.encode(record)

    def _decode(self, block: bytes) -> BootRecord | None:
        return bootenv_grub.decode(block)

    def _is_whole(self, block: bytes) -> bool:
        """`save_env` writes to no block whose last line has no end."""
        return super()._is_whole(block) and bootenv_grub.takes_changes(block)
