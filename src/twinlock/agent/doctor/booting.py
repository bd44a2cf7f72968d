"""Checks of the boot record, the loader's own files, and the slot that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.agent.doctor.findings import fine, found
from twinlock.core.bootloader import slot_of
from twinlock.core.bootrecord import fallback
from twinlock.core.errors import TwinlockError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.agent.doctor.case import Case
    from twinlock.agent.doctor.findings import Finding


def record(case: Case) -> Iterator[Finding]:
    """Both copies are valid, the committed slot is good, nothing is pending."""
    control = case.control()
    try:
        whole = control.valid_copies()
        content = control.read()
    except TwinlockError as problem:
        yield found("boot record", "record-unreadable", problem.what)
        return
    bad = [str(number) for number, valid in enumerate(whole) if not valid]
    if bad:
        yield found(
            "boot record", "record-copy-bad", f"copy {', '.join(bad)} of the boot record is not valid"
        )
    if content.default in content.failed:
        yield found("boot record", "record-slot-bad", f"slot {content.default} is committed, and marked bad")
    if content.trying is not None:
        what = f"slot {content.trying} is on trial, {content.tries_left} tries left"
        yield found("boot record", "trial-pending", what)
    if not bad and content.trying is None and content.default not in content.failed:
        yield fine("boot record", f"both copies are valid; slot {content.default} is committed")


def loader(case: Case) -> Iterator[Finding]:
    """What the loader reads follows the record."""
    control = case.control()
    name = control.capabilities.name
    try:
        astray = control.astray()
    except TwinlockError as problem:
        yield found("loader", "loader-unreadable", f"{name}: {problem.what}", hint=problem.hint)
        return
    if astray:
        what = f"{name} would not boot what the record says: {', '.join(astray[:8])}"
        yield found("loader", "loader-differs", what)
    else:
        yield fine("loader", f"{name} follows the boot record")


def booted(case: Case) -> Iterator[Finding]:
    """The note of the booted slot is of this boot, and the slot is the one that the record wants."""
    control = case.control()
    try:
        running = control.booted()
    except TwinlockError as problem:
        yield found("booted slot", "booted-unknown", problem.what)
        return
    named = slot_of(" ".join(case.world.words()))
    boot_id = (case.world.text("/proc/sys/kernel/random/boot_id") or "").strip()
    if named is not None and named != running.slot:
        what = f"the kernel's command line names slot {named}, the agent's note slot {running.slot}"
        yield found("booted slot", "booted-differs", what)
        return
    if named is not None and boot_id and boot_id != running.boot_id:
        yield found(
            "booted slot", "booted-differs", "the agent's note of the booted slot is of an older boot"
        )
        return
    content = control.read()
    if running.slot in (fallback(content), content.trying):
        yield fine("booted slot", f"slot {running.slot} runs")
    else:
        what = f"slot {running.slot} runs, the record wants {fallback(content)}"
        yield found("booted slot", "booted-elsewhere", what)
