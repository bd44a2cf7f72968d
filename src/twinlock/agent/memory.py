"""What the device remembers for good: what its slots hold, its floor, what failed, what time it has been.

| file        | what                                               | when it is damaged                     |
|-------------|----------------------------------------------------|----------------------------------------|
| slots.json  | slot -> release, from the signed manifest          | the release counts as unknown          |
| floor.json  | the lowest release counter that is accepted        | the committed release's counter counts |
| failed.json | assignments and releases that are not tried again  | the list starts over                   |
| time.json   | the latest time at which signed metadata was fresh | the time of the build counts           |
| identity.json | id and fingerprint of the enrolled device        | `enrol` writes it again                |

The floor rises only after a commit, to the lowest counter of the slots that can boot, and never falls: so the
release in the other slot stays allowed for as long as a fall back to it is possible. Unknown fields are
ignored, so that an older agent reads what a newer one wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from twinlock.agent.plan import Running
from twinlock.core import limits
from twinlock.core.bootrecord import other
from twinlock.core.errors import TwinlockError

if TYPE_CHECKING:
    from twinlock.agent.plan import Job
    from twinlock.agent.ports import Clock, Store
    from twinlock.core.bootrecord import BootRecord

SLOTS_FILE: Final = "slots.json"
FLOOR_FILE: Final = "floor.json"
FAILED_FILE: Final = "failed.json"
TIME_FILE: Final = "time.json"
CARD_FILE: Final = "identity.json"
FAILED_MAX: Final = 128  # the oldest is forgotten beyond that
BUILD_TIME_S: Final = 1_767_225_600  # 2026-01-01: no clock that says less can be right

T = TypeVar("T")


class Card(msgspec.Struct, frozen=True):
    """Who this device is, for whoever must not load the key: its id and its key's SHA-256 in hex."""

    device_id: str
    fingerprint: str


class _Floor(msgspec.Struct, frozen=True):
    counter: int


class _Time(msgspec.Struct, frozen=True):
    trusted_s: float


class Failed(msgspec.Struct, frozen=True):
    """One failure. Without `manifest_sha256` only this assignment is not tried again, not the release."""

    assignment_id: str
    manifest_sha256: bytes | None
    code: str
    time_s: int = 0


def _read(store: Store, name: str, kind: type[T]) -> T | None:
    try:
        data = store.read(name, limits.MESSAGE_SIZE_BYTES_MAX)
        return None if data is None else msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
        return None


def card(store: Store) -> Card | None:
    """The device's card; None before it was enrolled."""
    return _read(store, CARD_FILE, Card)


def slots(store: Store) -> dict[str, Running]:
    """What is known of the releases in the slots."""
    return _read(store, SLOTS_FILE, dict[str, Running]) or {}


def running(store: Store, record: BootRecord) -> Running:
    """What is known of the release in the committed slot."""
    return slots(store).get(record.default, Running())


def floor(store: Store, record: BootRecord) -> int:
    """The lowest counter that this device accepts."""
    known = _read(store, FLOOR_FILE, _Floor)
    return running(store, record).counter if known is None else known.counter


def note_committed(store: Store, record: BootRecord, job: Job) -> None:
    """After a commit: what the slot holds now, and the floor. Repeatable; a cut between both is mended so."""
    known = slots(store)
    known.pop(job.slot, None)
    if job.known:
        known[job.slot] = Running(
            product=job.product,
            version=job.version,
            counter=job.counter,
            image_sha256=job.image_sha256,
            image_size_bytes=job.image_size_bytes,
        )
    lowest = floor(store, record)
    bootable = [slot for slot in (record.default, other(record.default)) if slot not in record.failed]
    counters = [known[slot].counter for slot in bootable if slot in known]
    if len(counters) == len(bootable):
        lowest = max(lowest, min(counters))
    store.write(SLOTS_FILE, msgspec.json.encode(known))
    store.write(FLOOR_FILE, msgspec.json.encode(_Floor(lowest)))


def failures(store: Store) -> list[Failed]:
    """What is not tried again, oldest first."""
    return _read(store, FAILED_FILE, list[Failed]) or []


def condemn(store: Store, failed: Failed) -> None:
    """Adds to the failures; one that is there already is not added again."""
    known = failures(store)
    if any(
        one.assignment_id == failed.assignment_id and one.manifest_sha256 == failed.manifest_sha256
        for one in known
    ):
        return
    store.write(FAILED_FILE, msgspec.json.encode([*known, failed][-FAILED_MAX:]))


def trusted_s(store: Store, clock: Clock) -> float:
    """Seconds since 1970 that only go forward: the clock, the build's time, the latest trusted time."""
    known = _read(store, TIME_FILE, _Time)
    return max(clock.now_s(), BUILD_TIME_S, 0.0 if known is None else known.trusted_s)


def note_time(store: Store, time_s: float) -> None:
    """Signed metadata was fresh at `time_s`: it has been that late. Written at most once an hour."""
    known = _read(store, TIME_FILE, _Time)
    if known is None or time_s - known.trusted_s > 3600:
        store.write(TIME_FILE, msgspec.json.encode(_Time(time_s)))
