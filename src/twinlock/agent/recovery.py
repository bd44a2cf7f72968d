"""What only the recovery system does: make a boot record anew from what the slots really hold.

When both copies of the record are lost, the loader starts recovery, since nothing says which slot is whole.
What the slots should hold is remembered from the signed manifests (`memory`); a slot that still holds it,
byte for byte, is good and boots again, without any download. The record comes last: a cut before it changes
nothing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from twinlock.agent import memory
from twinlock.agent.gate import slot
from twinlock.core import limits
from twinlock.core.bootrecord import other
from twinlock.core.errors import TwinlockError
from twinlock.core.names import SLOTS

if TYPE_CHECKING:
    from twinlock.agent.plan import Job, Running
    from twinlock.agent.ports import Ports
    from twinlock.core.bootrecord import BootRecord


def restore(ports: Ports, last: BootRecord | None) -> BootRecord:
    """Makes the record. Of two whole slots the default of the `last` known record counts.

    Raises DeviceError `boot-control` when it cannot be written.
    """
    known = memory.slots(ports.store)
    whole = [name for name in SLOTS if name in known and holds(ports, name, known[name])]
    for name in SLOTS:
        how = "holds its release whole" if name in whole else "is not known to be good"
        ports.display.note(f"slot {name} {how}")
    default = SLOTS[0] if last is None else last.default
    if whole and default not in whole:
        default = whole[0]
    return ports.boot.restore(default, frozenset(SLOTS) - frozenset(whole))


def holds(ports: Ports, name: str, known: Running) -> bool:
    """Whether the slot holds the image that it should hold, read from the medium a segment at a time."""
    if known.image_sha256 is None or not 0 < known.image_size_bytes <= limits.IMAGE_SIZE_BYTES_MAX:
        return False
    try:
        device = ports.slots.look(name)
        try:
            if known.image_size_bytes > device.size_bytes:
                return False
            device.drop_cache()
            digest = hashlib.sha256()
            buffer = memoryview(bytearray(limits.SEGMENT_SIZE_BYTES))
            for offset in range(0, known.image_size_bytes, limits.SEGMENT_SIZE_BYTES):
                view = buffer[: min(limits.SEGMENT_SIZE_BYTES, known.image_size_bytes - offset)]
                device.read_into(view, offset)
                digest.update(view)
        finally:
            device.close()
    except TwinlockError as problem:
        ports.display.note(f"slot {name} cannot be read: {problem}")
        return False
    return digest.digest() == known.image_sha256


def lame_slot(ports: Ports, job: Job) -> str:
    """The slot that the job does not go to, if it does not keep what is written to it; else an empty text.

    Asked before a trial that recovery armed: a device with one sound slot left is better than none.
    """
    second = other(job.slot)
    try:
        slot.probe(ports.slots, second, image_size_bytes=0, held_size_bytes=0, token=ports.random.token())
    except TwinlockError as problem:
        ports.display.note(f"only slot {job.slot} is left: {problem}")
        return second
    return ""
