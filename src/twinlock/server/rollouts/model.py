"""Rollouts, assignments and reports as the server keeps them. Times are milliseconds since 1970, UTC."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

from twinlock.server.rollouts.state import OPEN_STATES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.core.protocol import Report
    from twinlock.server.rollouts.state import State, Summary

DEVICES_PER_ROLLOUT_MAX: Final = 10_000
REPORTS_KEPT_PER_DEVICE: Final = 1_000
SEQ_MAX: Final = (1 << 53) - 1


class RolloutStatus(StrEnum):
    """Whether devices are still offered the release."""

    ACTIVE = "active"
    HALTED = "halted"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One release for some devices, or (`everyone`) for all that it fits."""

    number: int
    release_id: int
    product: str
    version: str
    everyone: bool
    status: RolloutStatus
    created_ms: int
    created_by: str
    halted_ms: int | None = None

    @property
    def rollout_id(self) -> str:
        """The name that people and programs use."""
        return f"r{self.number}"


@dataclass(frozen=True, slots=True)
class Progress:
    """A rollout with how many of its assignments are in which state.

    `waiting` counts the devices that a rollout to all will be matched with when they poll next; `outdone`
    means that a newer one takes all of them.
    """

    rollout: Rollout
    counts: Mapping[State, int]
    waiting: int
    outdone: bool = False

    @property
    def status(self) -> Literal["active", "finished", "superseded", "halted"]:
        """The one word for people: a rollout to named devices is finished, one to all is open to new ones."""
        if self.rollout.status is RolloutStatus.HALTED:
            return "halted"
        if any(state in OPEN_STATES for state in self.counts):
            return "active"
        if self.rollout.everyone:
            return "superseded" if self.outdone else "active"
        return "finished"


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """One device in one rollout. `code` and `detail` are of the report that decided the outcome."""

    assignment_id: str
    rollout_number: int
    device_id: str
    summary: Summary
    code: str
    detail: str
    bytes_fetched: int
    bytes_again: int
    duration_s: float
    updated_ms: int


@dataclass(frozen=True, slots=True)
class CheckedReport:
    """A report whose signature was checked: what it says, and the very bytes that were signed."""

    report: Report
    body: bytes
    signature: bytes
    body_sha256: str


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report as it was kept."""

    seq: int
    assignment_id: str
    state: str
    code: str
    detail: str
    product: str
    version: str
    slot: str
    bytes_fetched: int
    bytes_again: int
    duration_s: float
    time_s: int
    received_ms: int
