"""One disk file of a virtual device: the plan of a real board, with the boot record as its loader sees it.

The layout is `twinlock.provision.layout`'s: GPT, boot partition, two copies of the boot record in erase
blocks of their own, slot a, slot b, recovery, data. `fdisk -l disk.img` shows it. The file is sparse.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from twinlock.core import bootrecord
from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.core.limits import KIB, MIB, SLOT_TAIL_SIZE_BYTES
from twinlock.core.names import SLOTS
from twinlock.lab import ext4, images
from twinlock.provision import gpt, layout

if TYPE_CHECKING:
    from pathlib import Path

    from twinlock.core.bootrecord import BootRecord

ALIGN_BYTES: Final = 64 * KIB
SLOT_SIZE_BYTES_MIN: Final = 8 * MIB
_RECOVERY_SIZE_BYTES: Final = 8 * MIB
_DATA_SIZE_BYTES: Final = 8 * MIB
_BLOCK_BYTES: Final = MIB


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a slot is on the disk, in bytes."""

    offset_bytes: int
    size_bytes: int


def slot_size_for(image_size_bytes: int) -> int:
    """The smallest slot for images of this size, the tail that no image may fill included."""
    whole = -(-(image_size_bytes + SLOT_TAIL_SIZE_BYTES) // ALIGN_BYTES) * ALIGN_BYTES
    return max(SLOT_SIZE_BYTES_MIN, whole)


class Disk:
    """The disk file at `path` with slots of `slot_size_bytes`."""

    def __init__(self, path: Path, slot_size_bytes: int) -> None:
        plan = layout.plan(
            layout.DiskSpec(
                name="virtual",
                align=ALIGN_BYTES,
                boot=layout.BootSpec(size=4 * MIB),
                slot=layout.SlotSpec(size=slot_size_bytes),
                recovery=layout.RecoverySpec(size=_RECOVERY_SIZE_BYTES),
                data=layout.DataSpec(size=_DATA_SIZE_BYTES, grow=False),
            )
        )
        self.path: Final = path
        self.plan: Final = plan
        self.record_offsets_bytes: Final = plan.record_offsets
        self.slots: Final = {
            slot: Slot(plan.need(slot).start_bytes, plan.need(slot).size_bytes) for slot in SLOTS
        }

    @classmethod
    def make(cls, path: Path, slot_size_bytes: int) -> Self:
        """A new disk: partition table, an initial boot record in both copies, nothing in the slots.

        Raises InputError `input-invalid` for a slot size out of bounds, DeviceError if it cannot be written.
        """
        disk = cls(path, slot_size_bytes)
        sector = bootrecord.encode(bootrecord.initial())
        with os_errors(f"disk {path}"), path.open("wb") as file:
            file.truncate(disk.plan.disk_size_bytes)
            writes = gpt.encode(gpt.of_plan(disk.plan))
            writes += [(offset, sector) for offset in disk.record_offsets_bytes]
            for offset, data in writes:
                file.seek(offset)
                file.write(data)
        return disk

    # --- the boot record, as a loader has it ----------------------------------------------------------------

    def copies(self) -> tuple[BootRecord | None, ...]:
        """Both copies; None for one that is torn."""
        with os_errors(f"disk {self.path}"), self.path.open("rb") as file:
            sectors = []
            for offset in self.record_offsets_bytes:
                file.seek(offset)
                sectors.append(file.read(bootrecord.SECTOR_SIZE_BYTES))
        return tuple(map(bootrecord.decode, sectors))

    def record(self) -> BootRecord:
        """The record that counts. Raises DeviceError `boot-record` when no copy is valid."""
        return bootrecord.newest(self.copies())[1]

    def save_record(self, record: BootRecord) -> None:
        """Writes the older copy, durable when it returns: the newer one stays as it was until then."""
        number, _ = bootrecord.newest(self.copies())
        offset = self.record_offsets_bytes[bootrecord.COPIES - 1 - number]
        with os_errors(f"disk {self.path}"):
            fd = os.open(self.path, os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC)
            try:
                os.pwrite(fd, bootrecord.encode(record), offset)
            finally:
                os.close(fd)

    # --- slots ----------------------------------------------------------------------------------------------

    def write_image(self, slot: str, image: Path) -> None:
        """Puts an image into a slot as a factory does. Raises CompatibilityError `image-too-large`."""
        where = self.slots[slot]
        with os_errors(f"image {image}"), image.open("rb") as source, self.path.open("r+b") as file:
            size_bytes = os.fstat(source.fileno()).st_size
            if size_bytes > where.size_bytes - SLOT_TAIL_SIZE_BYTES:
                raise error(
                    "image-too-large", f"{image} has {size_bytes} bytes, slot {slot} {where.size_bytes}"
                )
            file.seek(where.offset_bytes)
            while block := source.read(_BLOCK_BYTES):
                file.write(block)

    def begins_file_system(self, slot: str) -> bool:
        """Whether a loader would find a file system there; says nothing of what is behind its first block."""
        with os_errors(f"disk {self.path}"), self.path.open("rb") as file:
            file.seek(self.slots[slot].offset_bytes)
            return ext4.is_ext4(file.read(2 * KIB))

    def sha256(self, slot: str, size_bytes: int) -> str:
        """The hash of the first `size_bytes` of a slot, in hex."""
        return images.sha256_range(self.path, self.slots[slot].offset_bytes, size_bytes)
