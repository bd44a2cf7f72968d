"""Which rollout a device gets, as pure functions.

The newest rollout that names a device wins: it supersedes an older one that has not ended. A rollout to *all*
names every accepted device of the release's hardware and product, now or later; it is matched when the device
polls, so making one costs the same for ten devices and for a million. A device that does not say what product
it runs is matched by its hardware alone; the signed manifest decides on the device in any case.

Halting: from then on no device is offered the release. A device that is still downloading stops at its next
poll, and nothing bootable was touched. One that has armed its slot finishes its trial by itself and reports;
taking the release away half way through a trial would gain nothing and lose the outcome.

Recovery: a device whose slots are both bad polls from its recovery system. When no rollout names it, it is
offered the release that it last committed, or the one that it says it should run, as a rollout of its own:
made by the server, seen by operators, with an outcome like any other. A release that then fails is not
offered again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """An open rollout to all, and what its release is for."""

    number: int
    product: str
    hardware: Collection[str]


def matches(candidate: Candidate, hardware: str, product: str) -> bool:
    """Whether a rollout to all names a device with this hardware that says it runs this product."""
    return hardware in candidate.hardware and product in ("", candidate.product)


def choose(candidates: Iterable[Candidate], current: int, hardware: str, product: str) -> int | None:
    """The number of the newest rollout to all that names the device and is newer than its `current` one."""
    numbers = [one.number for one in candidates if one.number > current and matches(one, hardware, product)]
    return max(numbers, default=None)


@dataclass(frozen=True, slots=True)
class Past:
    """One assignment that a device had: of which release, how it stands, and whether that is still signed."""

    release_id: int
    state: str
    listed: bool = True


def choose_again(history: Sequence[Past], told: int | None) -> int | None:
    """The release that a device in recovery gets again, by its number; `history` has the newest first.

    `told` is the release that the device says it should run, if it is published for this device. A release
    whose newest assignment failed or was rolled back is passed over, and one that no metadata names any more.
    """
    bad: set[int] = set()
    for past in history:
        if past.state == "succeeded" and past.listed and past.release_id not in bad:
            return past.release_id
        if past.state in ("failed", "rolled_back", "lost"):
            bad.add(past.release_id)
    return None if told in bad else told
