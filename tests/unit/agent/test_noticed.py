"""What a device refused, counted until a report tells it."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.agent.fakes import MemoryStore
from twinlock.agent import noticed
from twinlock.agent.outbox import Outbox
from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.protocol import Report

FORGED = error("metadata-signature", "forged")


def report(state: str = "idle", **fields: object) -> Report:
    values = {"device_id": "d", "seq": 0, "nonce": "n", "state": state} | fields
    return msgspec.convert(values, Report)


def test_refusals_are_counted_by_code() -> None:
    store = MemoryStore()
    for problem in (FORGED, error("payload-part-hash", "wrong"), FORGED):
        noticed.note(store, problem)
    assert noticed.waiting(store) == {"metadata-signature": 2, "payload-part-hash": 1}


@pytest.mark.parametrize("code", ["connection-lost", "disk-full", "release-older", "unauthorised"])
def test_other_failures_are_no_refusals(code: str) -> None:
    store = MemoryStore()
    noticed.note(store, error(code, "what"))
    assert noticed.waiting(store) == {}


def test_counts_are_bounded() -> None:
    store = MemoryStore()
    full = {f"code-{number}": 1 for number in range(limits.NOTICED_CODES_MAX)}
    store.write(noticed.NOTICED, msgspec.json.encode(full))
    noticed.note(store, FORGED)
    assert noticed.waiting(store) == full
    store.write(noticed.NOTICED, msgspec.json.encode({FORGED.code: limits.NOTICED_COUNT_MAX}))
    noticed.note(store, FORGED)
    assert noticed.waiting(store) == {FORGED.code: limits.NOTICED_COUNT_MAX}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"a":"b"}', b"\xff", b"x" * 100_000])
def test_damaged_counts_begin_anew(damage: bytes) -> None:
    store = MemoryStore()
    store.write(noticed.NOTICED, damage)
    assert noticed.waiting(store) == {}
    noticed.note(store, FORGED)
    assert noticed.waiting(store) == {FORGED.code: 1}


def test_a_report_takes_the_counts_along_once() -> None:
    store = MemoryStore()
    box = Outbox(store)
    noticed.note(store, FORGED)
    assert box.add(report())
    assert box.add(report("armed"))
    assert [one.noticed for one in box.waiting()] == [{FORGED.code: 1}, {}]
    assert noticed.waiting(store) == {}


def test_a_report_that_is_not_queued_leaves_the_counts() -> None:
    store = MemoryStore()
    box = Outbox(store)
    assert box.add(report())
    noticed.note(store, FORGED)
    assert not box.add(report())
    assert noticed.waiting(store) == {FORGED.code: 1}
