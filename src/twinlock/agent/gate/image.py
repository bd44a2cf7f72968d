"""The booted slot holds the image of its signed manifest, byte for byte, as the medium gives it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.agent.segments import Segments
from twinlock.core import limits
from twinlock.core.errors import error

if TYPE_CHECKING:
    from twinlock.agent.ports import Display, Slots
    from twinlock.core.manifest import Manifest


def verify(slots: Slots, slot: str, manifest: Manifest, display: Display) -> None:
    """Reads the slot once, a segment at a time: two segments of memory, whatever the image's size.

    Raises DeviceError `slot-readback` for the first segment that is not the signed one, `slot-unusable`,
    `io-error`.
    """
    device = slots.look(slot)
    try:
        device.drop_cache()
        segments = Segments(manifest)
        for number in range(manifest.segment_count):
            if not segments.is_signed(number, segments.read(device, number)):
                raise error(
                    "slot-readback",
                    f"segment {number} of slot {slot}, which runs, is not that of {manifest.name}",
                )
            done = min((number + 1) * limits.SEGMENT_SIZE_BYTES, manifest.image_size_bytes)
            display.progress("verify", done, manifest.image_size_bytes)
    finally:
        device.close()
