"""`twinlock-agent status`: what this device runs, what its boot record says, and what the agent is doing.

Reads only; works beside a run that is under way, and says what cannot be read instead of failing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent import config as configs
from twinlock.agent import journal, memory
from twinlock.agent.boot.choose import boot_control
from twinlock.agent.display import PROGRESS_FILE, Shown
from twinlock.agent.outbox import Outbox
from twinlock.agent.plan import Running
from twinlock.agent.run import LAST, LastRun
from twinlock.agent.states import Phase
from twinlock.agent.store import FolderStore
from twinlock.core import limits
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import TwinlockError
from twinlock.core.names import SLOTS

if TYPE_CHECKING:
    import argparse
    from pathlib import Path
    from typing import TypeVar

    from twinlock.agent.config import Config

    T = TypeVar("T")

UNKNOWN: Final = "unknown"


class SlotStatus(msgspec.Struct, frozen=True):
    """One slot: `running` is its release as far as it is known."""

    name: str
    booted: bool
    committed: bool
    bootable: bool
    on_trial: bool
    running: Running


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All that `status --json` prints. `problems` names what could not be read."""

    version: int = 1
    server: str
    device: memory.Card | None
    hardware: str
    product: str
    booted: str
    slots: list[SlotStatus]
    tries_left: int
    rollback_reason: str
    phase: Phase
    assigned: str
    floor: int
    reports_waiting: int
    releases_failed: int
    progress: Shown | None
    last_run: LastRun | None
    problems: list[str]


def gather(config: Config) -> Status:
    """The device's status."""
    store = FolderStore(config.state)
    control = boot_control(config.boot, config.slots)
    problems: list[str] = []
    record: BootRecord | None = None
    booted = UNKNOWN
    try:
        record = control.read()
    except TwinlockError as problem:
        problems.append(str(problem))
    try:
        booted = control.booted().slot
    except TwinlockError as problem:
        problems.append(str(problem))
    state, damaged = journal.load(store)
    if damaged:
        problems.append("the journal is damaged [journal-corrupt]")
    busy = state.phase in (Phase.INSTALLING, Phase.VERIFIED)
    job = state.job
    return Status(
        server=config.server,
        device=memory.card(store),
        hardware=config.hardware,
        product=config.product,
        booted=booted,
        slots=[] if record is None else _slots(record, booted, memory.slots(store)),
        tries_left=0 if record is None else record.tries_left,
        rollback_reason="" if record is None else record.reason,
        phase=state.phase,
        assigned="" if job is None else f"{job.product} {job.version}",
        floor=0 if record is None else memory.floor(store, record),
        reports_waiting=len(Outbox(store).waiting()),
        releases_failed=len(memory.failures(store)),
        progress=_read(store, PROGRESS_FILE, Shown) if busy else None,
        last_run=_read(store, LAST, LastRun),
        problems=problems,
    )


def _slots(record: BootRecord, booted: str, known: dict[str, Running]) -> list[SlotStatus]:
    return [
        SlotStatus(
            name=slot,
            booted=slot == booted,
            committed=slot == record.default,
            bootable=slot not in record.failed,
            on_trial=slot == record.trying,
            running=known.get(slot, Running()),
        )
        for slot in SLOTS
    ]


def _read(store: FolderStore, name: str, kind: type[T]) -> T | None:
    try:
        data = store.read(name, limits.MESSAGE_SIZE_BYTES_MAX)
        return None if data is None else msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
        return None


def lines(status: Status) -> list[str]:
    """The status for a person."""
    card = status.device
    shown = [
        f"server      {status.server}",
        f"device      {card.device_id if card else 'not enrolled yet'} ({status.hardware}, {status.product})",
    ]
    if card is not None:
        shown.append(f"key         {card.fingerprint}")
    for slot in status.slots:
        release = f"{slot.running.product} {slot.running.version}".strip() or "an unknown release"
        if not slot.bootable:
            release = "nothing bootable"
        words = [
            word
            for word, is_so in (
                ("running", slot.booted),
                ("committed", slot.committed),
                (f"on trial, {status.tries_left} tries left", slot.on_trial),
            )
            if is_so
        ]
        shown.append(f"slot {slot.name}      {release}{' (' + ', '.join(words) + ')' if words else ''}")
    doing = status.phase.value + (f": {status.assigned}" if status.assigned else "")
    if status.progress is not None and status.progress.total_bytes:
        part = status.progress.done_bytes / status.progress.total_bytes
        doing += f", {status.progress.phase} {part:.0%}"
    shown.append(f"agent       {doing}")
    if status.rollback_reason:
        shown.append(f"reason      {status.rollback_reason}")
    shown.append(f"floor       {status.floor}")
    if status.reports_waiting:
        shown.append(f"reports     {status.reports_waiting} wait for the server")
    last = status.last_run
    if last is not None:
        shown.append(f"last run    {f'{last.what} [{last.code}]' if last.code else 'without a failure'}")
    return shown + [f"problem     {problem}" for problem in status.problems]


def command(config_path: Path, args: argparse.Namespace) -> int:
    """Exit code 0, or 6 when the boot record or the booted slot cannot be read."""
    status = gather(configs.load(config_path))
    if args.json:
        sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
    else:
        sys.stdout.write("\n".join(lines(status)) + "\n")
    return 6 if status.problems else 0
