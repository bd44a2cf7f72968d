"""How the device was before it rebooted into a trial, so that a release is not blamed for what it found.

`baseline.json` is written by the old system just before the reboot and belongs to one trial. A power cut, a
full disk or a damaged file leave none: then nothing is excused.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.core import limits
from twinlock.core.errors import TwinlockError

if TYPE_CHECKING:
    from twinlock.agent.ports import Ports

BASELINE: Final = "baseline.json"


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """`failed_units` had failed, `free_bytes` were left (None: not known), `reached` says whether the server
    was reached in the last run before the reboot (None: nobody asked). `lame_slot` could not be written.
    """

    trial_id: str
    failed_units: tuple[str, ...] = ()
    free_bytes: int | None = None
    reached: bool | None = None
    lame_slot: str = ""


def take(ports: Ports, trial_id: str, reached: bool | None, lame_slot: str = "") -> None:
    """Writes it, as far as it can be known; what fails here must not keep the device from its trial."""
    failed: tuple[str, ...] = ()
    with suppress(TwinlockError):  # unknown: then nothing is excused
        failed = ports.system.failed_units() if ports.system.has_units else ()
    found = Baseline(
        trial_id=trial_id,
        failed_units=failed,
        free_bytes=ports.system.free_bytes(),
        reached=reached,
        lame_slot=lame_slot,
    )
    try:
        ports.store.write(BASELINE, msgspec.json.encode(found))
    except TwinlockError as problem:
        ports.display.note(f"how the device is before the trial is not kept: {problem}")


def load(ports: Ports, trial_id: str) -> Baseline:
    """The baseline of this trial; an empty one when there is none."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
        data = ports.store.read(BASELINE, limits.MESSAGE_SIZE_BYTES_MAX)
        found = None if data is None else msgspec.json.decode(data, type=Baseline)
        if found is not None and found.trial_id == trial_id:
            return found
    return Baseline(trial_id=trial_id)
