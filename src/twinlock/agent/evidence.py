"""Evidence that waits for the server: what a trial, or a panic, left behind.

`evidence/TIME-HASH.json` is an unsigned Evidence; the metadata process signs it on the way out and removes
it once the server holds it durably. Whoever sees a piece first keeps it: the system on trial its own journal
when its gate fails, the next boot the kernel's last words and, of a trial that ended without a verdict, the
journal that it left. A power cut leaves a piece whole or not at all, and the kernel's
records are given back only after they are kept.

At most `WAITING_MAX` pieces wait; the oldest goes to make room. That a piece cannot be kept is said and is
nothing to stop for.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent import memory
from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.protocol import Evidence

if TYPE_CHECKING:
    from typing import Literal

    from twinlock.agent.plan import Job
    from twinlock.agent.ports import Ports, Store

FOLDER: Final = "evidence"
OF_TRIAL: Final = "evidence-of"  # the trial whose journal was kept: it is kept once
WAITING_MAX: Final = 8
FILE_SIZE_BYTES_MAX: Final = 2 * limits.EVIDENCE_SIZE_BYTES_MAX
_LEVEL: Final = 9
_TRIAL_ID_SIZE_BYTES_MAX: Final = 256


def waiting(store: Store) -> list[tuple[str, Evidence]]:
    """The pieces that wait, with their names; a damaged file is removed."""
    found = []
    for name in store.names(FOLDER):
        path = f"{FOLDER}/{name}"
        try:
            data = store.read(path, FILE_SIZE_BYTES_MAX) or b""
            found.append((path, msgspec.json.decode(data, type=Evidence)))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            store.remove(path)
    return found


def keep(ports: Ports, kind: Literal["journal", "pstore"], text: str, job: Job | None) -> bool:
    """Keeps a piece, durably; False when it could not be kept, or there is nothing in it."""
    if not text.strip():
        return False
    piece = Evidence(
        device_id="",  # the metadata process fills in who signs
        kind=kind,
        data=packed(text),
        assignment_id=job.assignment_id if job is not None else "",
        product=job.product if job is not None else "",
        version=job.version if job is not None else "",
        slot=job.slot if job is not None else "",
        time_s=int(memory.trusted_s(ports.store, ports.clock)),
    )
    data = msgspec.json.encode(piece)
    # Names order by time, so that the oldest goes first.
    name = f"{FOLDER}/{piece.time_s:012d}-{hashlib.sha256(data).hexdigest()[:16]}.json"
    try:
        for old in ports.store.names(FOLDER)[: -WAITING_MAX + 1]:
            ports.store.remove(f"{FOLDER}/{old}")
        ports.store.write(name, data)
    except TwinlockError as problem:
        ports.display.note(f"evidence ({kind}) is not kept: {problem}")
        return False
    return True


def packed(text: str) -> bytes:
    """The end of `text`, as much of it as fits packed into `EVIDENCE_SIZE_BYTES_MAX`."""
    from twinlock.core.zstd import compress  # only here: the metadata process sends, and never packs

    data = text.encode("utf-8", "replace")[-limits.EVIDENCE_TEXT_SIZE_BYTES_MAX // 2 :]
    while len(frame := compress(data, _LEVEL)) > limits.EVIDENCE_SIZE_BYTES_MAX:
        data = data[len(data) // 4 :]
    return frame


def keep_journal(ports: Ports, job: Job, *, last: bool) -> None:
    """Keeps the journal of the job's trial: of this boot, or of the `last` one; once for each trial."""
    try:
        kept = ports.store.read(OF_TRIAL, _TRIAL_ID_SIZE_BYTES_MAX) or b""
    except TwinlockError:
        kept = b""
    if kept == job.trial_id.encode():
        return
    if keep(ports, "journal", ports.system.journal(last=last), job):
        try:
            ports.store.write(OF_TRIAL, job.trial_id.encode())
        except TwinlockError as problem:
            ports.display.note(f"the trial's journal may be kept twice: {problem}")


def keep_panics(ports: Ports, job: Job | None) -> None:
    """Keeps the kernel's last words and gives their place back; `job` is the trial under way, if one is."""
    for name, text in ports.system.panics().items():
        if keep(ports, "pstore", f"{name}:\n{text}", job):
            ports.system.forget(name)
