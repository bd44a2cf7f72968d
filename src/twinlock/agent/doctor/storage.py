"""Checks of slots, mounts, state folder, space and identity."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from twinlock.agent import identity, memory
from twinlock.agent.doctor.findings import fine, found
from twinlock.agent.metadata import PINNED
from twinlock.agent.slots import ConfiguredSlots
from twinlock.core.bootrecord import other
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.core.names import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.agent.doctor.case import Case
    from twinlock.agent.doctor.findings import Finding
    from twinlock.agent.identity import Identity

SPACE_SPARE_BYTES: Final = 8 * MIB
OTHERS: Final = 0o077


def slots(case: Case) -> Iterator[Finding]:
    """Both slots are there, of one size, two different devices, and the one that runs is the root."""
    configured = ConfiguredSlots(case.config.slots)
    sizes: dict[str, int] = {}
    devices: dict[str, str] = {}
    root = case.world.mount_at("/")
    for slot in SLOTS:
        path = case.config.slots[slot].path
        shown = f"slot {slot} ({path})"
        try:
            sizes[slot] = configured.size_bytes(slot)
        except TwinlockError as problem:
            yield found("slots", "slot-unusable", problem.what)
            continue
        if case.world.kind_at(path) == "block":
            devices[slot] = case.world.device_at(path)
            yield fine("slots", f"{shown} has {sizes[slot] // MIB} MiB")
        else:
            yield found("slots", "slot-is-file", f"{shown} is a file, not a block device")
    if len(set(sizes.values())) == 2:
        yield found("slots", "slots-differ", f"slot a has {sizes['a']} bytes, slot b {sizes['b']}")
    if len(devices) == 2 and devices["a"] == devices["b"] and _whole(case):
        yield found("slots", "slots-are-one", f"both slots are the device {devices['a']}")
    booted = case.control().booted().slot
    if booted in devices and root is not None and root.device != devices[booted]:
        what = f"slot {booted} runs and is {devices[booted]}, but the root is on {root.device}"
        yield found("slots", "slot-not-root", what)


def _whole(case: Case) -> bool:
    """Whether both slots are whole devices, not two places on one."""
    return all(slot.size_bytes is None for slot in case.config.slots.values())


def inactive_slot(case: Case) -> Iterator[Finding]:
    """The slot that does not run is mounted nowhere and can be opened as an install opens it."""
    booted = case.control().booted().slot
    if booted not in SLOTS:
        yield found("inactive slot", "check-skipped", f"{booted} runs: both slots may be written")
        return
    slot = other(booted)
    path = case.config.slots[slot].path
    if case.world.kind_at(path) == "block":
        device = case.world.device_at(path)
        points = [one.point for one in case.world.mounts() if one.device == device]
        if points:
            yield found("inactive slot", "slot-in-use", f"slot {slot} is mounted at {', '.join(points[:5])}")
            return
    try:
        ConfiguredSlots(case.config.slots).open(slot).close()
    except TwinlockError as problem:
        code = "slot-in-use" if problem.code == "slot-busy" else "slot-unusable"
        yield found("inactive slot", code, problem.what)
        return
    yield fine("inactive slot", f"slot {slot} can be opened for writing by the agent alone")


def mounts(case: Case) -> Iterator[Finding]:
    """The root is read-only, and the data partition is no stand-in in memory."""
    failed = case.world.text("/run/twinlock/data-failed")
    if failed is not None:
        yield found("mounts", "data-failed", f"the data partition was not mounted: {failed.strip()[:200]}")
    root = case.world.mount_at("/")
    if root is None:
        yield found("mounts", "check-skipped", "/proc/self/mountinfo names no root")
    elif "ro" in root.options:
        yield fine("mounts", "the root is mounted read-only")
    else:
        yield found("mounts", "root-writable", "the root file system is mounted for writing")


def state(case: Case) -> Iterator[Finding]:
    """The state folder is the agent's alone, can be written, and does not go with a slot."""
    folder = case.config.state
    if not folder.is_dir():
        yield found("state", "state-missing", f"there is no folder {folder}")
        return
    good = True
    if folder.stat().st_mode & OTHERS:
        good = False
        yield found("state", "state-open", f"{folder} has mode {folder.stat().st_mode & 0o7777:04o}")
    if not os.access(folder, os.W_OK | os.X_OK):
        good = False
        yield found("state", "state-unwritable", f"{folder} cannot be written")
    if _in_slot(case):
        good = False
        yield found("state", "state-in-slot", f"{folder} is on the root file system, in the slot that runs")
    if good:
        yield fine("state", f"{folder} is the agent's own, and can be written")


def _in_slot(case: Case) -> bool:
    """Whether the mount that holds the state is the root, on a device whose root is a slot."""
    shown = case.world.shown(case.config.state)
    points = [
        one
        for one in case.world.mounts()
        if shown == one.point or shown.startswith(f"{one.point.rstrip('/')}/")
    ]
    if not points or case.control().booted().slot not in SLOTS:
        return False
    deepest = max(points, key=lambda one: len(one.point))
    root = case.world.mount_at("/")
    return root is not None and deepest.device == root.device


def space(case: Case) -> Iterator[Finding]:
    """What the agent writes during an update fits."""
    if not case.config.state.is_dir():
        yield found("space", "check-skipped", f"there is no folder {case.config.state}")
        return
    least = case.config.health.free_bytes_min
    free = case.world.free_bytes(case.config.state)
    shown = f"{free // MIB} MiB are free where the state is"
    if free < least:
        yield found("space", "space-out", f"{shown}; an update needs {least // MIB} MiB")
    elif free < least + SPACE_SPARE_BYTES:
        yield found("space", "space-low", f"{shown}; an update needs {least // MIB} MiB")
    else:
        yield fine("space", shown)


def identity_and_trust(case: Case) -> Iterator[Finding]:
    """The device's key loads and is its own alone; it has been enrolled; it has a root of trust."""
    folder = case.config.state
    yield from _key_file(case) if case.config.identity is None else _key_on_token(case)
    places = [folder / PINNED, *([case.config.root] if case.config.root is not None else [])]
    if not any(place.is_file() for place in places):
        named = " and no ".join(map(str, places))
        yield found("identity", "trust-missing", f"there is no {named}")


def _key_file(case: Case) -> Iterator[Finding]:
    path = case.config.state / identity.KEY
    try:
        own = identity.load(case.store, case.config)
    except TwinlockError as problem:
        yield found("identity", "identity-unusable" if path.exists() else "identity-none", problem.what)
        return
    mode = path.stat().st_mode
    if mode & OTHERS:
        what = f"{path} has mode {mode & 0o7777:04o}: others can read the key"
        yield found("identity", "state-open", what, hint="chmod 0600 it; then enrol with a new key")
    yield _enrolled(case, own)


def _key_on_token(case: Case) -> Iterator[Finding]:
    """The token answers to its PIN, has the key that was enrolled, and signs with it."""
    key = identity.token_key(case.store, case.config)
    try:
        key.prove()
    except TwinlockError as problem:
        code = {"identity-missing": "identity-none", "identity-lost": "identity-lost"}.get(problem.code)
        hint = "" if code == "identity-none" else problem.hint
        yield found("identity", code or "pkcs11-unusable", problem.what, hint=hint)
        return
    if key.is_extractable:
        yield found("identity", "key-extractable", "the token would give the device's private key out")
    yield _enrolled(case, identity.load(case.store, case.config))


def _enrolled(case: Case, own: Identity) -> Finding:
    card = memory.card(case.store)
    if card is None or card.fingerprint != own.fingerprint:
        what = f"device {own.device_id} was not enrolled with this key"
        return found("identity", "enrolment-unknown", what)
    where = "" if case.config.identity is None else " on its token"
    return fine("identity", f"device {own.device_id} has its key{where} and was enrolled")
