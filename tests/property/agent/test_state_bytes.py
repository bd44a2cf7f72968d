"""Laws of what the agent reads from its own disk: any bytes in any file are a state, none, or refused."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.agent.fakes import FakeClock, MemoryStore
from twinlock.agent import config, director, journal, memory, metadata, session
from twinlock.agent import plan as plans
from twinlock.agent.outbox import Outbox
from twinlock.core import bootrecord
from twinlock.core.errors import TwinlockError
from twinlock.core.trust.floors import Floors

WORDS = ["counter", "trusted_s", "device_id", "fingerprint", "job", "payloads", "token", "a", "b", "version"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=200) | JSON.map(msgspec.json.encode)
RECORD = bootrecord.initial()


def refused(step: Any) -> Any:
    """What the step gives, or None when it refuses with a code of its own."""
    try:
        return step()
    except TwinlockError as problem:
        if problem.code == "internal":
            raise
        return None


@given(BYTES)
def test_what_is_remembered_of_slots_time_and_failures(data: bytes) -> None:
    """A floor is never negative, and time never earlier than the agent was built."""
    store = MemoryStore()
    for name in (
        memory.SLOTS_FILE,
        memory.FLOOR_FILE,
        memory.FAILED_FILE,
        memory.TIME_FILE,
        memory.CARD_FILE,
    ):
        store.files[name] = data
    assert isinstance(memory.floor(store, RECORD), int)
    assert isinstance(memory.failures(store), list)
    assert memory.trusted_s(store, FakeClock()) >= memory.BUILD_TIME_S
    card = memory.card(store)
    assert card is None or isinstance(card.device_id, str)


@given(BYTES)
def test_a_plan_a_journal_and_a_session(data: bytes) -> None:
    store = MemoryStore()
    store.files.update({plans.PLAN: data, journal.JOURNAL: data, session.SESSION: data})
    plan = refused(lambda: plans.load(store))
    assert plan is None or isinstance(plan, plans.Plan)
    refused(lambda: journal.load(store))
    known = refused(lambda: session.load(store, 0.0))
    assert known is None or isinstance(known.token, str)


@given(BYTES)
def test_rollback_memory_that_is_none_is_no_memory_lost(data: bytes) -> None:
    """Damaged floors are refused, never taken for those of a client that has seen nothing."""
    for trust in (metadata.TRUST, director.TRUST):
        store = MemoryStore()
        store.files[trust] = data
        found = refused(metadata.FilesApart(store, trust=trust).load_floors)
        if found == Floors():
            assert isinstance(msgspec.json.decode(data), dict)


@given(st.lists(BYTES, max_size=3))
def test_reports_that_wait(pieces: list[bytes]) -> None:
    store = MemoryStore()
    for number, data in enumerate(pieces):
        store.files[f"outbox/{number:010d}.json"] = data
    refused(lambda: Outbox(store).waiting())


KEYS = ["server", "hardware", "product", "state", "slots", "boot", "reboot", "network", "ways", "root", "x"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8))
def test_a_configuration_of_any_shape(table: dict[str, Any]) -> None:
    refused(lambda: config.parse(table))


@given(
    st.sampled_from(["", "network", "boot", "reboot", "slots"]), st.text("abcxyz_", min_size=1, max_size=9)
)
def test_a_configuration_with_a_key_that_nobody_knows(where: str, name: str) -> None:
    """It may be what should have kept the device from something."""
    table: dict[str, Any] = {
        "server": "https://updates.example",
        "hardware": "board",
        "product": "demo",
        "state": "/data/twinlock",
        "slots": {slot: {"path": f"/dev/{slot}"} for slot in "ab"},
        "boot": {"path": "/dev/r", "booted": "/run/b", "offset_bytes": [0, 4096]},
        "reboot": {"mode": "exit"},
        "network": {},
    }
    assert isinstance(config.parse(table), config.Config)
    part = table if not where else table[where]
    if name in part or name in {"ways", "a", "b"} or hasattr(config.parse(table), name):
        return
    part[name] = 1
    assert refused(lambda: config.parse(table)) is None
