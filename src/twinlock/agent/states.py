"""The agent's state: what the journal holds (see `machine` for how it moves)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from twinlock.agent.plan import Job
from twinlock.core.bootrecord import BootRecord

VERSION: Final = 1


class Phase(StrEnum):
    """How far the job is. `armed` lasts over the reboot, `trial` until the boot record is committed."""

    IDLE = "idle"
    INSTALLING = "installing"
    VERIFIED = "verified"
    ARMED = "armed"
    TRIAL = "trial"
    COMMITTED = "committed"
    ROLLING_BACK = "rolling_back"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Why a trial ended badly. `condemns` is False when the release may not be at fault (an outage).

    `excused` says that it was so before the reboot as well: then not even the old slot's success condemns.
    """

    code: str
    detail: str
    condemns: bool = True
    excused: bool = False


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The journal. Unknown fields are ignored on reading, so that an older agent reads a newer one's.

    `record`, `booted` and `boot_id` are what the last start saw. `armed_boot_id` is the boot in which the
    trial was armed with `tries`, `fallbacks` how many boots since then ended elsewhere with tries left.
    `started_s` is when the job was first planned, on the wall clock. `remarks` is what hooks that do not
    decide had to say of the trial. `acquit` holds a rolled back job that is condemned only once its old slot
    has reached the server. `last_told` keeps the same non-final failure from being reported at every run.
    `recoveries` counts boots of recovery in a row in which the free slot could not be written; one more than
    the machine allows means that the other slot has been taken instead.
    `rearms` is how often the boot record lost the job's trial, which was then armed again.
    """

    version: int = VERSION
    phase: Phase = Phase.IDLE
    job: Job | None = None
    record: BootRecord | None = None
    booted: str = ""
    boot_id: str = ""
    armed_boot_id: str = ""
    tries: int = 0
    fallbacks: int = 0
    verdict: Verdict | None = None
    started_s: float = 0.0
    remarks: str = ""
    acquit: Job | None = None
    last_told: str = ""
    recoveries: int = 0
    rearms: int = 0
