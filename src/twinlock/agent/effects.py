"""What the agent does to the world: the effects that `machine.step` gives and `run` performs.

Each is repeatable. All but the last of a step only act; the last one brings the next event, or ends the run.
"""

from __future__ import annotations

from dataclasses import dataclass

from twinlock.agent.plan import Job
from twinlock.core.protocol import ReportState


@dataclass(frozen=True, slots=True)
class Tell:
    """Queue a report. A report equal to one that still waits is not queued again."""

    state: ReportState
    assignment_id: str = ""
    product: str = ""
    version: str = ""
    slot: str = ""
    image_sha256: bytes | None = None
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Flush:
    """Try to send what is queued; that it cannot be sent now is no failure."""


@dataclass(frozen=True, slots=True)
class Check:
    """Run the metadata process. Ends in Planned, NothingToDo, RunsAlready, Refused or CheckFailed.

    `inactive` is the slot that a release may go to, None when there is none now.
    """

    inactive: str | None


@dataclass(frozen=True, slots=True)
class AskHooks:
    """Ask the hooks at these points, in order. Ends in HooksAnswered."""

    points: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Install:
    """Bring the job's image into its slot and read it back. Ends in Installed or InstallFailed."""

    job: Job


@dataclass(frozen=True, slots=True)
class Arm:
    """Put the verified slot on trial. Ends in RecordWritten."""

    slot: str
    trial_id: str


@dataclass(frozen=True, slots=True)
class Judge:
    """Run the health gate. Ends in Judged."""

    trial_id: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Make the slot on trial the default. Ends in RecordWritten."""

    trial_id: str


@dataclass(frozen=True, slots=True)
class RollBack:
    """End the trial in the boot record. Ends in RecordWritten."""

    trial_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """From recovery: give up the default, so that it is the one to be written next. Ends in RecordWritten."""

    slot: str


@dataclass(frozen=True, slots=True)
class NoteCommitted:
    """Remember which release the job's slot holds (or that it is not known) and raise the floor."""

    job: Job


@dataclass(frozen=True, slots=True)
class Condemn:
    """Never try this assignment again; nor this release, if `manifest_sha256` is given."""

    assignment_id: str
    manifest_sha256: bytes | None
    code: str


@dataclass(frozen=True, slots=True)
class DropPlan:
    """The plan is done with."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Everything before this was done. Ends in Settled."""


@dataclass(frozen=True, slots=True)
class Reboot:
    """Reboot. Ends the run."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """End the run. `code` and `what` are the error to show, if any."""

    exit_code: int = 0
    code: str = ""
    what: str = ""


Effect = (
    Tell
    | Flush
    | Check
    | AskHooks
    | Install
    | Arm
    | Judge
    | Commit
    | RollBack
    | Abandon
    | NoteCommitted
    | Condemn
    | DropPlan
    | Settle
    | Reboot
    | Finish
)
