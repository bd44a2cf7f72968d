"""What the metadata process hands to the installing one: requests, answers, and the verified plan.

`plan.json` is written by `check` only after everything in it was verified. The installing process checks the
manifest's hash against the plan's once more, since it is all that decides what ends on the disk.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from twinlock.core import limits
from twinlock.core.errors import CATALOGUE, TwinlockError, error
from twinlock.core.protocol import PayloadOffer

if TYPE_CHECKING:
    from twinlock.agent.ports import Store

PLAN: Final = "plan.json"
PLAN_SIZE_BYTES_MAX: Final = 2 * limits.MANIFEST_SIZE_BYTES_MAX
CHECKED: Final = "checked.json"
CHECK_MESSAGE_SIZE_BYTES_MAX: Final = 64 * limits.KIB

# poll: reports, poll, metadata, decision; flush: reports only; gate: proves that a next release can be taken;
# session: a new token only
Mode = Literal["poll", "flush", "gate", "session"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One assignment of one release to one slot of this device, as far as decisions need it.

    `trial_id` follows from the other fields, so that a lost journal can be found again by the boot record.
    """

    assignment_id: str
    product: str
    version: str
    counter: int
    slot: str
    trial_id: str
    manifest_sha256: bytes
    image_sha256: bytes
    image_size_bytes: int

    @property
    def known(self) -> bool:
        """False for a trial of which only the boot record tells (see `unknown_job`)."""
        return bool(self.manifest_sha256)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A verified job with all that is needed to carry it out; `manifest` holds the signed bytes."""

    version: int = 1
    job: Job
    manifest: bytes
    payloads: tuple[PayloadOffer, ...]
    server: str
    token: str
    token_expires_s: float


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the release in a slot; an `image_size_bytes` of 0 is not known."""

    product: str = ""
    version: str = ""
    counter: int = 0
    image_sha256: bytes | None = None
    image_size_bytes: int = 0


class CheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `run` tells the metadata process on its standard input.

    `slot` is what runs, `is_committed` whether that is the committed slot and no trial is pending, `inactive`
    where a release would go (None when there is no such slot now), `inactive_size_bytes` how large that is.
    `running` is the release to speak of: the committed one, or in a gate the one on trial. The answer repeats
    `nonce`.
    """

    mode: Mode
    nonce: str = ""
    slot: str = ""
    is_committed: bool = False
    inactive: str | None = None
    inactive_size_bytes: int = 0
    running: Running = Running()
    floor: int = 0
    phase: str = "idle"


class CheckAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How it went. `job` is set when plan.json was written, `code` when something failed.

    With `code` and `assignment_id` the assignment itself was refused; with `code` alone the check did not get
    that far. `runs_already` says that the assigned image is the committed one. `peak_bytes` is the memory
    that the check needed.
    """

    nonce: str = ""
    time_s: float = 0.0
    job: Job | None = None
    wait_s: int = 0
    assignment_id: str = ""
    product: str = ""
    version: str = ""
    manifest_sha256: bytes | None = None
    runs_already: bool = False
    code: str = ""
    what: str = ""
    peak_bytes: int = 0


def trial_id(assignment_id: str, manifest_sha256: bytes, slot: str) -> str:
    """The boot record's id (32 hex digits) for the trial of this release for this assignment."""
    text = b"\0".join((assignment_id.encode(), manifest_sha256, slot.encode()))
    return hashlib.sha256(text).hexdigest()[:32]


def unknown_job(slot: str, trial: str) -> Job:
    """A stand-in for the job of a trial whose journal and plan are both lost."""
    return Job(
        assignment_id="",
        product="",
        version="",
        counter=0,
        slot=slot,
        trial_id=trial,
        manifest_sha256=b"",
        image_sha256=b"",
        image_size_bytes=0,
    )


def load(store: Store) -> Plan | None:
    """The plan in the state folder; None when there is none or it is damaged (a check makes it anew)."""
    try:
        data = store.read(PLAN, PLAN_SIZE_BYTES_MAX)
        plan = None if data is None else msgspec.json.decode(data, type=Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
        return None
    if plan is None or plan.version != 1:
        return None
    job = plan.job
    fits = hashlib.sha256(plan.manifest).digest() == job.manifest_sha256
    named = job.trial_id == trial_id(job.assignment_id, job.manifest_sha256, job.slot)
    return plan if fits and named else None


def answer_error(answer: CheckAnswer) -> TwinlockError | None:
    """The failure that an answer carries, or None."""
    if not answer.code:
        return None
    code = answer.code if answer.code in CATALOGUE else "internal"
    return error(code, answer.what)
