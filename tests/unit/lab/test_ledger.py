"""The ledger counts over processes; points are chosen by the seed, evenly over the phases."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from twinlock.lab import ledger
from twinlock.lab.ledger import Ledger, Point

TRACE = [
    *["check poll", "net.open poll", "store.write plan.json"] * 4,
    *["net.read payloads", "slot.write", "slot.sync", "store.append progress"] * 20,
    *["boot.arm", "store.write journal.json armed", "power.reboot"],
    *["store.write outbox/*", "net.open reports"] * 2,
    *["boot.commit", "store.write slots.json"],
]


def test_it_counts_on_where_another_process_stopped(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    parent = Ledger(path)
    assert [parent.next("one"), parent.next("two")] == [1, 2]
    child = Ledger(path)
    assert child.count == 2
    assert child.next("three") == 3
    assert parent.count == 2
    parent.sync()
    assert parent.next("four") == 4
    assert ledger.read(path) == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("label", "phase"),
    [
        ("net.open payloads", ledger.DOWNLOAD),
        ("slot.write", ledger.INSTALL),
        ("store.write journal.json verified", ledger.ARM),
        ("boot.commit", ledger.COMMIT),
        ("boot.roll_back", ledger.ROLL_BACK),
        ("net.read reports", ledger.REPORT),
        ("check flush", ledger.REPORT),
        ("check poll", ledger.CHECK),
        ("something new", ledger.CHECK),
    ],
)
def test_phases(label: str, phase: str) -> None:
    assert ledger.phase_of(label) == phase


def test_only_what_can_be_torn_is_torn() -> None:
    torn = {point.label for point in ledger.points(TRACE) if point.mode == ledger.TORN}
    assert torn == {
        label for label in TRACE if label.startswith(("store.", "net.read", "slot.write", "boot."))
    }


def test_points_cover_all_phases_evenly_and_repeat() -> None:
    chosen = ledger.choose(TRACE, 36, random.Random(5))
    assert chosen == ledger.choose(TRACE, 36, random.Random(5))
    assert chosen != ledger.choose(TRACE, 36, random.Random(6))
    assert ledger.choose(TRACE, 12, random.Random(5)) == chosen[:12]
    counts = Counter(point.phase for point in chosen)
    assert set(counts) == set(map(ledger.phase_of, TRACE))
    assert max(counts.values()) - min(counts.values()) <= 4  # the small phases run out
    assert len(set(chosen)) == 36


def test_no_more_points_than_there_are() -> None:
    every = ledger.points(["slot.sync", "slot.write"])
    assert len(every) == 5
    chosen = ledger.choose(["slot.sync", "slot.write"], 99, random.Random(1))
    assert set(chosen) == set(every)


def test_a_point_says_where_it_is() -> None:
    point = Point(7, "torn", "boot.arm")
    assert point.argument == "7:torn"
    assert str(point) == "torn call 7 (boot.arm, arm)"
