"""Rollouts made, halted and offered: `policy` and `state` decide, a transaction keeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from twinlock.core.errors import error
from twinlock.core.names import RECOVERY, check_device_id, check_name, check_version
from twinlock.server.audit.chain import append
from twinlock.server.devices.model import Status
from twinlock.server.rollouts.model import DEVICES_PER_ROLLOUT_MAX, Rollout, RolloutStatus
from twinlock.server.rollouts.policy import choose, choose_again
from twinlock.server.rollouts.state import OPEN_STATES, with_mark

if TYPE_CHECKING:
    from twinlock.server.devices.model import Facts
    from twinlock.server.ports import PollView, Transaction
    from twinlock.server.releases.ports import Release

RECOVERER: Final = "recovery"  # who makes the rollouts that bring devices back
HISTORY_MAX: Final = 100
_ROLLOUT_ID: Final = re.compile(r"r([1-9][0-9]{0,8})", re.ASCII)


def number_of(rollout_id: str) -> int:
    """The number in a rollout's id. Raises InputError `not-found` for a text that is no such id."""
    match = _ROLLOUT_ID.fullmatch(rollout_id)
    if match is None:
        raise error("not-found", f"no rollout is called {rollout_id[:40]!r}")
    return int(match.group(1))


def known_release(transaction: Transaction, product: str, version: str) -> Release:
    """The published release. Raises InputError `not-found`, `input-invalid`."""
    found = transaction.releases.get(check_name(product, "product"), check_version(version))
    if found is None:
        raise error("not-found", f"no release {product} {version} is published here")
    return found


def create(
    transaction: Transaction,
    product: str,
    version: str,
    devices: Sequence[str] | Literal["all"],
    actor: str,
    now_ms: int,
) -> Rollout:
    """A rollout of one release to the named devices, or to all that it fits; see `policy`.

    Raises InputError `not-found` (release or device), `input-invalid` (none or too many devices), TrustError
    `release-unknown` (no metadata names the release any more), PolicyError `enrolment-pending` or
    `enrolment-rejected`, CompatibilityError `hardware-mismatch`; then nothing is made.
    """
    release = known_release(transaction, product, version)
    if release.unlisted_ms is not None:
        raise error(
            "release-unknown",
            f"the signed metadata does not name {product} {version} any more: no device would take it",
            hint="sign the release again, or roll out another",
        )
    everyone = devices == "all"
    named = [] if everyone else sorted(set(devices))
    if not everyone:
        _check_devices(transaction, release, named)
    rollout = transaction.rollouts.add(release.release_id, everyone, now_ms, actor)
    for device_id in named:
        transaction.rollouts.assign(rollout.number, device_id, now_ms)
    who = "all" if everyone else f"{len(named)} devices: {', '.join(named)}"
    append(
        transaction.audit,
        now_ms,
        actor,
        "rollout-created",
        rollout.rollout_id,
        f"{product} {version} to {who}",
    )
    return rollout


def _check_devices(transaction: Transaction, release: Release, named: Sequence[str]) -> None:
    if not 1 <= len(named) <= DEVICES_PER_ROLLOUT_MAX:
        raise error("input-invalid", f"a rollout names 1 to {DEVICES_PER_ROLLOUT_MAX} devices, or 'all'")
    for device_id in named:
        device = transaction.devices.get(check_device_id(device_id))
        if device is None:
            raise error("not-found", f"no device is called {device_id!r}")
        if device.status is not Status.ACCEPTED:
            code = "enrolment-pending" if device.status is Status.PENDING else "enrolment-rejected"
            raise error(code, f"{device_id} is {device.status}", hint="accept the device first")
        if device.hardware not in release.hardware:
            raise error(
                "hardware-mismatch",
                f"{device_id} is {device.hardware!r}; {release.product} {release.version} is for "
                + ", ".join(release.hardware),
            )


def halt(transaction: Transaction, rollout_id: str, actor: str, now_ms: int) -> Rollout:
    """Stops a rollout for good; see `policy` for what devices in it do. Halting twice changes nothing.

    Raises InputError `not-found`.
    """
    number = number_of(rollout_id)
    rollout = transaction.rollouts.get(number, lock=True)
    if rollout is None:
        raise error("not-found", f"no rollout is called {rollout_id!r}")
    if rollout.status is RolloutStatus.HALTED:
        return rollout
    transaction.rollouts.halt(number, now_ms)
    append(transaction.audit, now_ms, actor, "rollout-halted", rollout_id)
    halted = transaction.rollouts.get(number)
    assert halted is not None
    return halted


def needs_change(view: PollView, facts: Facts) -> bool:
    """Whether a poll must change something before it is answered: a new rollout to all, or nothing to do."""
    return view.newest_to_all > view.considered or _is_satisfied(view, facts)


def _is_satisfied(view: PollView, facts: Facts) -> bool:
    """The device runs the assigned image already and never began; one that did begin reports by itself."""
    return view.state == "assigned" and view.rollout_open and facts.image_sha256 == view.image_sha256


def change(transaction: Transaction, device_id: str, view: PollView, facts: Facts, now_ms: int) -> None:
    """Matches open rollouts to all with a polling device, and closes an assignment that has nothing to do."""
    current = transaction.rollouts.current_number(device_id)
    candidates = transaction.rollouts.open_to_all(view.considered)
    number = choose(candidates, current, view.hardware, facts.product)
    if number is not None:
        transaction.rollouts.assign(number, device_id, now_ms)
    transaction.rollouts.considered(device_id, view.newest_to_all)
    if number is None and view.assignment_id is not None and _is_satisfied(view, facts):
        found = transaction.rollouts.summary(view.assignment_id)
        if found is not None:
            transaction.rollouts.save(view.assignment_id, with_mark(found[1], "satisfied"), now_ms)


def is_offered(view: PollView) -> bool:
    """Whether the device shall be told to run the release of its assignment."""
    return view.assignment_id is not None and view.rollout_open and view.state in OPEN_STATES


def needs_release_again(view: PollView, facts: Facts) -> bool:
    """Whether a device polls from its recovery system and no rollout names it."""
    return facts.slot == RECOVERY and not is_offered(view)


def offer_again(transaction: Transaction, device_id: str, view: PollView, facts: Facts, now_ms: int) -> bool:
    """Makes a rollout that brings the device its own release again; see `policy`. False if there is none."""
    # Locks the device: of two polls at once one makes the rollout, the other finds it.
    transaction.rollouts.current_number(device_id)
    history = transaction.rollouts.history(device_id, HISTORY_MAX)
    if history and history[0].state in OPEN_STATES and view.state not in OPEN_STATES:
        return True
    told = transaction.releases.get(facts.product, facts.version) if facts.version else None
    fits = told is not None and view.hardware in told.hardware and told.unlisted_ms is None
    release_id = choose_again(history, told.release_id if told is not None and fits else None)
    if release_id is None:
        return False
    rollout = transaction.rollouts.add(release_id, False, now_ms, RECOVERER)
    transaction.rollouts.assign(rollout.number, device_id, now_ms)
    what = f"{rollout.product} {rollout.version} again to {device_id}, which runs its recovery system"
    append(transaction.audit, now_ms, RECOVERER, "rollout-created", rollout.rollout_id, what)
    return True
