"""What is known of a device. Times are milliseconds since 1970, UTC; hashes are lower-case hex.

What every poll makes is a msgspec Struct: several times quicker to make than a frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.names import RECOVERY, SLOTS, check_name, check_version

if TYPE_CHECKING:
    from twinlock.core.protocol import PollRequest


class Status(StrEnum):
    """Whether a device may take part. Only an operator (or a preauthorised key) moves it."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Device:
    """An identity: the id, its key, and what the operator decided."""

    device_id: str
    hardware: str
    public_key: str
    fingerprint: str
    status: Status
    enrolled_ms: int
    decided_ms: int | None = None


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What a device said of itself in a poll. Bounded and checked, never trusted for a decision on safety."""

    product: str = ""
    version: str = ""
    counter: int = 0
    image_sha256: str = ""
    slot: str = ""
    floor: int = 0
    agent: str = ""
    state: str = ""
    abilities: tuple[str, ...] = ()


class CheckIn(msgspec.Struct, frozen=True, gc=False):
    """One poll to be noted: may be lost when the server dies within a second after it."""

    device_id: str
    seen_ms: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class InUse:
    """How many devices say that they run an image."""

    version: str
    image_sha256: str
    devices: int


@dataclass(frozen=True, slots=True)
class Indicator:
    """Something that an honest device does not do, counted per device, kind and key."""

    device_id: str
    kind: str
    key: str
    detail: str
    first_ms: int
    last_ms: int
    count: int


INDICATOR_ENROLMENT: Final = "enrolment-conflict"
INDICATOR_REPORT: Final = "report-conflict"
INDICATOR_FOREIGN: Final = "report-of-another-assignment"
INDICATOR_CONTRADICTION: Final = "outcome-contradicted"
INDICATOR_FORK: Final = "session-forked"
INDICATOR_NOTICED: Final = "refused-by-device"  # the device's own word on what it was offered
INDICATORS_PER_DEVICE_MAX: Final = 64

_TEXT_LENGTH_MAX: Final = 64
_ABILITIES_MAX: Final = 32


def facts_of(poll: PollRequest) -> Facts:
    """The facts in a poll. Raises InputError `input-invalid` when one is out of its bounds."""
    if poll.product:
        check_name(poll.product, "product")
    if poll.version:
        check_version(poll.version)
    if poll.slot not in (*SLOTS, RECOVERY, ""):
        raise error("input-invalid", f"{poll.slot[:40]!r} is no slot")
    for name, number in (("counter", poll.counter), ("floor", poll.floor)):
        if not 0 <= number <= limits.COUNTER_MAX:
            raise error("input-invalid", f"{name} {number} is outside 0..{limits.COUNTER_MAX}")
    if poll.image_sha256 is not None and len(poll.image_sha256) != 32:
        raise error("input-invalid", "the image hash is not 32 bytes")
    if len(poll.abilities) > _ABILITIES_MAX:
        raise error("input-invalid", f"more than {_ABILITIES_MAX} abilities are named")
    for text in (poll.agent, poll.state, *poll.abilities):
        if len(text) > _TEXT_LENGTH_MAX or not text.isprintable() or "," in text:
            raise error("input-invalid", f"{text[:40]!r} is too long, or has characters that it may not have")
    return Facts(
        product=poll.product,
        version=poll.version,
        counter=poll.counter,
        image_sha256="" if poll.image_sha256 is None else poll.image_sha256.hex(),
        slot=poll.slot,
        floor=poll.floor,
        agent=poll.agent,
        state=poll.state,
        abilities=poll.abilities,
    )
