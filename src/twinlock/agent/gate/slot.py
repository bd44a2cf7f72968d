"""The other slot can take the next release: it opens exclusively, is large enough, and keeps what is written.

Written is one block of the slot's reserved end (`limits.SLOT_TAIL_SIZE_BYTES`), outside of any image that
was made to fit: the release in that slot is what the device may have to fall back to. Where it is not
known that the slot's image ends before it, the block is written with the very bytes that it holds: that
proves less (a medium that ignores writes passes), and can harm nothing.

A power cut in the middle leaves the block old, new or torn; nobody reads it but the next probe.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error
from twinlock.core.limits import SLOT_TAIL_SIZE_BYTES

if TYPE_CHECKING:
    from twinlock.agent.ports import BlockDevice, Slots

PROBE_SIZE_BYTES: Final = 4096
ROUNDS_MAX: Final = 3  # a write that is kept wrong once is mended by the next; see `install`


def probe(slots: Slots, slot: str, *, image_size_bytes: int, held_size_bytes: int, token: str) -> None:
    """Proves it for `slot`, which holds an image of `held_size_bytes` (0: not known).

    `image_size_bytes` is the size of the release that runs: the next one will need as much. Raises
    DeviceError `slot-busy` (mounted, for one), `slot-unusable`, `slot-readback`, `io-error`;
    CompatibilityError `image-too-large` when the slot is smaller than that.
    """
    device = slots.open(slot)
    try:
        if device.size_bytes < image_size_bytes:
            what = f"the release that runs has {image_size_bytes} bytes, slot {slot} only {device.size_bytes}"
            raise error("image-too-large", what)
        _write(device, slot, 0 < held_size_bytes <= device.size_bytes - SLOT_TAIL_SIZE_BYTES, token)
    finally:
        device.close()


def pattern(token: str) -> bytes:
    """The block that a probe with this token writes: no two probes write the same."""
    return hashlib.shake_128(f"twinlock probe {token}".encode()).digest(PROBE_SIZE_BYTES)


def _write(device: BlockDevice, slot: str, is_reserved: bool, token: str) -> None:
    """The first block of the reserved end; or, where nothing is known to be reserved, the slot's last one."""
    size = min(PROBE_SIZE_BYTES, device.size_bytes)
    offset = device.size_bytes - (SLOT_TAIL_SIZE_BYTES if is_reserved else size)
    read = memoryview(bytearray(size))
    device.drop_cache()
    device.read_into(read, offset)
    wanted = pattern(token)[:size] if is_reserved else bytes(read)
    for _ in range(ROUNDS_MAX):
        device.write(wanted, offset)
        device.sync()
        device.drop_cache()
        device.read_into(read, offset)
        if read == wanted:
            return
    raise error("slot-readback", f"slot {slot} does not keep what is written to it")
