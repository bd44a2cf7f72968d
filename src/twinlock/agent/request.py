"""What the metadata process is told of the device: made from the boot record and what is remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from twinlock.agent import memory
from twinlock.agent.plan import CheckRequest, Mode, Running
from twinlock.core.bootrecord import other
from twinlock.core.names import RECOVERY

if TYPE_CHECKING:
    from twinlock.agent.plan import Job
    from twinlock.agent.ports import Ports
    from twinlock.core.bootrecord import BootRecord


def made_of(
    ports: Ports, record: BootRecord, booted: str, inactive: str | None, *, mode: Mode, phase: str
) -> CheckRequest:
    """The request of a device in this state. Raises DeviceError `slot-unusable`.

    Recovery speaks of the release that the device should run, without an image: nobody runs it.
    """
    running = memory.running(ports.store, record)
    if booted == RECOVERY:
        running = msgspec.structs.replace(running, image_sha256=None)
    return CheckRequest(
        mode=mode,
        slot=booted,
        is_committed=booted == record.default and record.trying is None,
        inactive=inactive,
        inactive_size_bytes=0 if inactive is None else ports.slots.size_bytes(inactive),
        running=running,
        floor=memory.floor(ports.store, record),
        phase=phase,
    )


def made_here(ports: Ports, mode: Mode) -> CheckRequest:
    """The request of this device as its boot record says, for a check that nobody else started."""
    record, booted = ports.boot.read(), ports.boot.booted().slot
    free = None if record.trying is not None else other(record.default)
    inactive = None if free == booted else free
    return made_of(ports, record, booted, inactive, mode=mode, phase="idle")


def gate(job: Job, booted: str) -> CheckRequest:
    """The request of the system on trial."""
    running = Running(
        product=job.product, version=job.version, counter=job.counter, image_sha256=job.image_sha256 or None
    )
    return CheckRequest(mode="gate", slot=booted, running=running, phase="trial")
