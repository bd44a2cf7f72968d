"""What happens to the agent: the events that `machine.step` takes."""

from __future__ import annotations

from dataclasses import dataclass

from twinlock.agent.plan import Job
from twinlock.agent.states import Verdict
from twinlock.agent.system import LastEnd
from twinlock.core.bootrecord import BootRecord


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins. `planned` is the job in plan.json if that is intact; `damaged`: the journal is not.

    `restored`: the boot record was lost, and recovery has just made `record` anew. `ended` is how the boot
    before this one ended, asked where a trial is to be settled.
    """

    record: BootRecord
    booted: str
    boot_id: str
    planned: Job | None = None
    damaged: bool = False
    restored: bool = False
    ended: LastEnd = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """The check verified an assignment; plan.json is written. `time_s` is the wall clock."""

    job: Job
    time_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NothingToDo:
    """The check reached the server, which has nothing for this device."""


@dataclass(frozen=True, slots=True)
class RunsAlready:
    """The assigned image is the committed one."""

    assignment_id: str
    product: str
    version: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The check refused the assignment; `code` says why."""

    assignment_id: str
    product: str
    version: str
    code: str
    what: str
    manifest_sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class CheckFailed:
    """The check did not get as far as an assignment."""

    code: str
    what: str


@dataclass(frozen=True, slots=True)
class HooksAnswered:
    """The device's own programs were asked. One that failed postpones, and is worth a report."""

    postponed: bool
    what: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Installed:
    """The whole slot was read back and holds the image of the job with this trial id."""

    trial_id: str


@dataclass(frozen=True, slots=True)
class InstallFailed:
    """The slot does not hold the image (yet)."""

    code: str
    what: str


@dataclass(frozen=True, slots=True)
class RecordWritten:
    """Boot control did what the last effect asked; `record` is what it read back."""

    record: BootRecord


@dataclass(frozen=True, slots=True)
class Judged:
    """The health gate of the running trial came to an end. No verdict means passed."""

    verdict: Verdict | None
    remarks: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """Everything that a finished trial leaves to do is done durably."""


@dataclass(frozen=True, slots=True)
class EffectFailed:
    """An effect, or saving the state before it, raised."""

    effect: str
    code: str
    what: str


Event = (
    Started
    | Planned
    | NothingToDo
    | RunsAlready
    | Refused
    | CheckFailed
    | HooksAnswered
    | Installed
    | InstallFailed
    | RecordWritten
    | Judged
    | Settled
    | EffectFailed
)
