"""The boot record: which slot boots, which one is on trial, and what may never boot.

Two copies, each inside one 512-byte sector of its own, each with a CRC; the valid one with the higher `seq`
counts. The agent always writes the *older* copy, so a torn write leaves the newer one as it was. A loader
counts all tries of a trial in *one* copy (`copy_to_spend`), and leaves the one that armed it alone: it may
flush nothing, and any number of its writes may be lost or torn, boot after boot. There are no writes in the
steady state: tries are counted only while a trial is pending.

| transition              | if the power goes during its one write                        |
|-------------------------|---------------------------------------------------------------|
| `invalidate(b)`         | old or new record, both boot a                                |
| `arm(b, 3, trial)`      | boots a, or a trial of a complete b                           |
| `next_boot` (loader)    | one try lost at worst; a loader that cannot save boots default |
| `commit(trial)`         | still in trial, or committed; repeatable                      |
| `roll_back(trial, why)` | b is tried again until its tries end, then a                  |
| `abandon(a)`            | recovery boots, with the old record or the new                |
| `restored(a, {b})`      | recovery boots, or a                                          |

The last two are of the recovery system alone: it gives up a default that does not load, so that this slot can
be written too, and makes a record anew where both copies are lost.

The functions here are pure. `arm` does not know whether the slot is complete: the agent arms only after it
has read the whole slot back and found the signed hashes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace
from typing import Final

from twinlock.core.errors import error
from twinlock.core.limits import BOOT_REASON_BYTES_MAX, TRIES_MAX
from twinlock.core.names import RECOVERY, SLOTS

SECTOR_SIZE_BYTES: Final = 512
COPIES: Final = 2
MAGIC: Final = b"TWLKBOOT"
VERSION: Final = 1
SEQ_MAX: Final = (1 << 32) - 1  # what every loader's arithmetic can hold
TRIAL_ID_BYTES_MAX: Final = 32

# magic, version, default, try, tries_left, failed mask, seq, trial id, reason; then CRC-32 of all before it
_BODY: Final = struct.Struct(f"<8sHBBBBxxI{TRIAL_ID_BYTES_MAX}s{BOOT_REASON_BYTES_MAX}s")
_CRC: Final = struct.Struct("<I")
_NO_SLOT: Final = 0xFF


@dataclass(frozen=True, slots=True)
class BootRecord:
    """One record. `failed` holds the slots that must not boot: invalidated, or tried and found bad."""

    seq: int
    default: str
    trying: str | None = None
    tries_left: int = 0
    trial_id: str = ""
    failed: frozenset[str] = field(default_factory=frozenset)
    reason: str = ""


def other(slot: str) -> str:
    """The slot that is not `slot`. Raises DeviceError `boot-refused` for anything but a and b."""
    if slot not in SLOTS:
        raise error("boot-refused", f"there is no slot {slot!r}")
    return SLOTS[1 - SLOTS.index(slot)]


def encode(record: BootRecord) -> bytes:
    """One sector of 512 bytes."""
    trying = _NO_SLOT if record.trying is None else SLOTS.index(record.trying)
    body = _BODY.pack(
        MAGIC,
        VERSION,
        SLOTS.index(record.default),
        trying,
        record.tries_left,
        sum(1 << SLOTS.index(slot) for slot in record.failed),
        record.seq,
        record.trial_id.encode("ascii"),
        clip_reason(record.reason).encode("utf-8"),
    )
    return (body + _CRC.pack(zlib.crc32(body))).ljust(SECTOR_SIZE_BYTES, b"\0")


def clip_reason(reason: str) -> str:
    """`reason` cut to what a record holds: printable, at most `BOOT_REASON_BYTES_MAX` bytes of UTF-8."""
    text = "".join(char if char.isprintable() else " " for char in reason)
    return text.encode("utf-8", "replace")[:BOOT_REASON_BYTES_MAX].decode("utf-8", "ignore")


def decode(sector: bytes) -> BootRecord | None:
    """The record in a sector, or None when it is torn, blank or of an unknown version."""
    if len(sector) < _BODY.size + _CRC.size:
        return None
    body = sector[: _BODY.size]
    (crc,) = _CRC.unpack_from(sector, _BODY.size)
    if zlib.crc32(body) != crc:
        return None
    magic, version, default, trying, tries_left, mask, seq, trial_id, reason = _BODY.unpack(body)
    known = default < len(SLOTS) and (trying == _NO_SLOT or trying < len(SLOTS)) and mask < 1 << len(SLOTS)
    if magic != MAGIC or version != VERSION or not known or tries_left > TRIES_MAX:
        return None
    try:
        return BootRecord(
            seq=seq,
            default=SLOTS[default],
            trying=None if trying == _NO_SLOT else SLOTS[trying],
            tries_left=tries_left,
            trial_id=trial_id.rstrip(b"\0").decode("ascii"),
            failed=frozenset(slot for number, slot in enumerate(SLOTS) if mask >> number & 1),
            reason=reason.rstrip(b"\0").decode("utf-8"),
        )
    except UnicodeDecodeError:
        return None


def newest(copies: tuple[BootRecord | None, ...]) -> tuple[int, BootRecord]:
    """The number and content of the copy that counts.

    Raises DeviceError `boot-record` when no copy is valid.
    """
    valid = [(record.seq, -number) for number, record in enumerate(copies) if record is not None]
    if not valid:
        raise error("boot-record", "no copy of the boot record is valid")
    number = -max(valid)[1]
    record = copies[number]
    assert record is not None
    return number, record


def copy_to_spend(copies: tuple[BootRecord | None, ...]) -> int:
    """The copy that a loader writes to take a try off: where it counted this trial before, else the older.

    The agent writes no copy of a trial with fewer tries than the one before, so the copy with fewer is the
    loader's. Raises DeviceError `boot-record` when no copy is valid.
    """
    number, record = newest(copies)
    beside = copies[COPIES - 1 - number]
    counted = (
        beside is not None
        and (beside.trying, beside.trial_id) == (record.trying, record.trial_id)
        and beside.tries_left > record.tries_left
    )
    return number if counted else COPIES - 1 - number


def initial(default: str = "a") -> BootRecord:
    """What a freshly provisioned device holds: `default` boots, the other slot is not bootable yet."""
    return BootRecord(seq=1, default=default, failed=frozenset({other(default)}))


def _next(record: BootRecord) -> BootRecord:
    if record.seq >= SEQ_MAX:
        raise error("boot-record", "the boot record's sequence number is used up")
    return replace(record, seq=record.seq + 1)


def in_trial(record: BootRecord) -> bool:
    """Whether a trial is armed or running, tries left or not: it needs to be settled."""
    return record.trying is not None


def invalidate(record: BootRecord, slot: str) -> BootRecord:
    """Marks `slot` as not bootable, before its first byte is overwritten. Repeatable.

    Raises DeviceError `boot-refused` for the default slot, or while a trial is pending.
    """
    if slot not in SLOTS or slot == record.default:
        raise error("boot-refused", f"slot {slot!r} is the committed one and must stay bootable")
    if in_trial(record):
        raise error("boot-refused", f"a trial of slot {record.trying} is pending")
    if slot in record.failed:
        return record
    return replace(_next(record), failed=record.failed | {slot}, reason="being written")


def arm(record: BootRecord, slot: str, tries: int, trial_id: str) -> BootRecord:
    """Puts `slot` on trial for the next `tries` boots. Repeatable for the same trial.

    Raises DeviceError `boot-refused` for the default slot, another pending trial or tries out of 1..7.
    """
    if in_trial(record) and record.trial_id == trial_id and record.trying == slot:
        return record
    if slot not in SLOTS or slot == record.default or in_trial(record):
        raise error("boot-refused", f"slot {slot!r} cannot be armed now")
    if not 1 <= tries <= TRIES_MAX or not 0 < len(trial_id) <= TRIAL_ID_BYTES_MAX or not trial_id.isascii():
        raise error(
            "boot-refused", f"a trial has 1 to {TRIES_MAX} tries and an ASCII id of 1 to {TRIAL_ID_BYTES_MAX}"
        )
    return replace(
        _next(record),
        trying=slot,
        tries_left=tries,
        trial_id=trial_id,
        failed=record.failed - {slot},
        reason="",
    )


def next_boot(record: BootRecord) -> tuple[str, BootRecord]:
    """What a loader does: the slot to boot and the record to save *before* the jump.

    When nothing needs to be saved the same record comes back. When saving fails the loader boots
    `fallback(record)`. A trial whose tries are used up stays in the record for the agent to settle.
    """
    if record.trying is not None and record.tries_left > 0:
        return record.trying, replace(_next(record), tries_left=record.tries_left - 1)
    return fallback(record), record


def fallback(record: BootRecord) -> str:
    """What boots when there is no trial to boot: the default, or recovery when it is bad."""
    return RECOVERY if record.default in record.failed else record.default


def next_when_unbootable(record: BootRecord, slot: str) -> str:
    """What a loader boots when `slot` does not even load: the other slot if it is good, else recovery."""
    if slot not in SLOTS:
        return RECOVERY
    second = other(slot)
    return RECOVERY if second in record.failed or second == record.trying else second


def commit(record: BootRecord, trial_id: str) -> BootRecord:
    """Makes the slot on trial the default; the old default stays bootable. Repeatable.

    Raises DeviceError `boot-refused` when another trial, or none, is pending.
    """
    if not in_trial(record) and record.trial_id == trial_id and not record.reason:
        return record
    if record.trying is None or record.trial_id != trial_id:
        raise error("boot-refused", f"trial {trial_id!r} is not the pending one")
    return replace(_next(record), default=record.trying, trying=None, tries_left=0, reason="")


def roll_back(record: BootRecord, trial_id: str, reason: str) -> BootRecord:
    """Ends the trial: its slot is bad, the default boots next. Repeatable.

    Raises DeviceError `boot-refused` when another trial, or none, is pending.
    """
    if not in_trial(record) and record.trial_id == trial_id and record.reason:
        return record
    if record.trying is None or record.trial_id != trial_id:
        raise error("boot-refused", f"trial {trial_id!r} is not the pending one")
    return replace(
        _next(record),
        trying=None,
        tries_left=0,
        failed=record.failed | {record.trying},
        reason=clip_reason(reason) or "rolled back",
    )


def abandon(record: BootRecord, slot: str) -> BootRecord:
    """Gives up `slot`, the default, which does not load: it is the one to be written next. Repeatable.

    Neither slot is good then, and recovery boots until a trial of `slot` is committed. The other slot is the
    default in name only, so that all other transitions stay as they are. Only for the recovery system, which
    runs because the loader could start neither. Raises DeviceError `boot-refused` while a trial is pending.
    """
    if in_trial(record):
        raise error("boot-refused", f"a trial of slot {record.trying} is pending")
    second = other(slot)
    if record.default == second and record.failed == frozenset(SLOTS):
        return record
    return replace(
        _next(record),
        default=second,
        trial_id="",
        failed=frozenset(SLOTS),
        reason=f"slot {slot} was given up",
    )


def restored(default: str, failed: frozenset[str]) -> BootRecord:
    """A record where both copies are lost; `failed` are the slots that do not hold a whole release."""
    return BootRecord(seq=1, default=default, failed=failed, reason="the boot record was lost")
