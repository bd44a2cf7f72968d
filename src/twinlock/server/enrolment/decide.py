"""What an enrolment leads to: a pure function of what is known and what is asked.

| known                              | asked                       | then                                   |
|------------------------------------|-----------------------------|----------------------------------------|
| nothing                            | any key                     | pending                                |
| nothing                            | a key that the fleet's CA   | accepted                               |
|                                    | certified for this id       |                                        |
| the fingerprint is preauthorised   | that key                    | accepted (also in place of an old key) |
| the fingerprint is preauthorised   | another key                 | conflict                               |
| the device, pending or accepted    | same key, same hardware     | as it is; accepted when certified      |
| the device                         | same key, other hardware    | conflict                               |
| the device                         | another key                 | conflict                               |
| the device, rejected               | same key                    | rejected, until the operator accepts   |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from twinlock.server.devices.model import Device, Status


class Action(Enum):
    """What to do with the store."""

    KEEP = "keep"
    ADD = "add"
    REPLACE = "replace"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and the status that the device is told (for a conflict: why)."""

    action: Action
    status: Status = Status.PENDING
    why: str = ""


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asks: the proof of the key has been checked. `certified`: the fleet's CA spoke for it."""

    device_id: str
    hardware: str
    fingerprint: str
    certified: bool = False


def decide(known: Device | None, preauthorised: str | None, applicant: Applicant) -> Verdict:
    """See the table above. `preauthorised` is the fingerprint that the operator named for this id."""
    if preauthorised is not None:
        return _decide_preauthorised(known, preauthorised, applicant)
    if known is None:
        return Verdict(Action.ADD, Status.ACCEPTED if applicant.certified else Status.PENDING)
    if known.fingerprint != applicant.fingerprint:
        return Verdict(Action.CONFLICT, why="it is enrolled with another key")
    if known.hardware != applicant.hardware:
        return Verdict(Action.CONFLICT, why=f"it is enrolled as hardware {known.hardware!r}")
    if applicant.certified and known.status is Status.PENDING:
        return Verdict(Action.REPLACE, Status.ACCEPTED)
    return Verdict(Action.KEEP, known.status)


def _decide_preauthorised(known: Device | None, preauthorised: str, applicant: Applicant) -> Verdict:
    if applicant.fingerprint != preauthorised:
        return Verdict(Action.CONFLICT, why="the operator preauthorised another key for it")
    return Verdict(Action.ADD if known is None else Action.REPLACE, Status.ACCEPTED)
