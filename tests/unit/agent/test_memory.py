"""What a device remembers: reports, failures, floors, time, journal, and what damage to them does."""

from __future__ import annotations

import random

import msgspec
import pytest

from tests.unit.agent.fakes import FakeClock, MemoryStore, image_of, job_for, pack
from twinlock.agent import journal, memory, progress, session
from twinlock.agent import plan as plans
from twinlock.agent.outbox import WAITING_MAX, Outbox, clip_detail
from twinlock.agent.plan import Running, unknown_job
from twinlock.agent.progress import Progress
from twinlock.agent.states import Phase, State
from twinlock.core import limits
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import TwinlockError, error
from twinlock.core.protocol import Report, encode

JOB = job_for(pack(image_of("a")))


def report(state: str = "succeeded", code: str = "", **given: object) -> Report:
    fields: dict[str, object] = {"device_id": "", "seq": 0, "nonce": "n", "state": state, "code": code}
    return msgspec.convert({**fields, **given}, Report)


# --- the outbox


def test_numbers_rise_by_one_and_are_never_used_twice() -> None:
    store = MemoryStore()
    for number in range(1, 6):
        outbox = Outbox(store)
        assert outbox.add(report(assignment_id=str(number)))
        assert [one.seq for one in outbox.waiting()] == [number]
        outbox.sent([number, 99])
        assert outbox.waiting() == []


@pytest.mark.parametrize("copy", ["seq.0", "seq.1"])
@pytest.mark.parametrize("damage", [b"", b"7 00000000", b"x" * 100, None])
def test_a_damaged_counter_leaves_numbers_out_but_repeats_none(copy: str, damage: bytes | None) -> None:
    store = MemoryStore()
    outbox = Outbox(store)
    used = set()
    for number in range(4):
        outbox.add(report(assignment_id=str(number)))
        used |= {one.seq for one in outbox.waiting()}
        outbox.sent(used)
    if damage is None:
        store.remove(copy)
    else:
        store.files[copy] = damage
    for number in range(4, 9):
        outbox.add(report(assignment_id=str(number)))
        (waiting,) = outbox.waiting()
        assert waiting.seq not in used
        used.add(waiting.seq)
        outbox.sent(used)
    assert max(used) <= 11


def test_the_same_thing_is_not_queued_twice() -> None:
    outbox = Outbox(MemoryStore())
    assert outbox.add(report(code="x"))
    assert not outbox.add(report(code="x"))
    assert outbox.add(report(code="y"))
    assert len(outbox.waiting()) == 2


def test_a_full_outbox_never_drops_an_outcome() -> None:
    outbox = Outbox(MemoryStore())
    for number in range(WAITING_MAX):
        outbox.add(report("downloading" if number % 2 else "failed", assignment_id=str(number)))
    for number in range(WAITING_MAX):
        assert outbox.add(report("rolled_back", assignment_id=f"late {number}"))
    waiting = outbox.waiting()
    assert sum(one.state == "failed" for one in waiting) == WAITING_MAX // 2
    assert sum(one.state == "rolled_back" for one in waiting) == WAITING_MAX
    assert not any(one.state == "downloading" for one in waiting)
    assert not outbox.add(report("downloading"))


def test_a_report_that_is_refused_for_ever_is_kept_aside() -> None:
    store = MemoryStore()
    outbox = Outbox(store)
    for number in range(20):
        outbox.add(report(assignment_id=str(number)))
        outbox.refuse(outbox.waiting()[0])
    assert outbox.waiting() == []
    assert len(store.names("refused")) == 16
    assert outbox.add(report(assignment_id="next"))
    assert outbox.waiting()[0].seq == 21


def test_a_damaged_report_does_not_stop_the_queue() -> None:
    store = MemoryStore()
    outbox = Outbox(store)
    outbox.add(report("failed"))
    outbox.add(report("succeeded"))
    store.files["outbox/0000000001.json"] = b"{"
    assert [one.seq for one in outbox.waiting()] == [2]
    outbox.add(report("rolled_back"))
    assert [one.seq for one in outbox.waiting()] == [2, 3]


def test_numbers_hold_whatever_write_is_the_last(seed: int) -> None:
    """A kill before any write: no report is lost once added, no number is used twice."""
    for at in range(1, 40):
        store = MemoryStore()
        rng = random.Random(f"{seed}:{at}")
        sent: dict[int, str] = {}

        def stop(name: str, store: MemoryStore = store, at: int = at) -> None:
            if store.writes == at:
                raise error("io-error", "killed")

        store.before = stop
        for number in range(8):
            name = str(number)
            for _ in range(2):
                try:
                    Outbox(store).add(report(assignment_id=name))
                except TwinlockError:
                    continue
            if rng.random() < 0.5:
                for one in Outbox(store).waiting():
                    assert sent.setdefault(one.seq, one.assignment_id) == one.assignment_id
                try:
                    Outbox(store).sent(sent)
                except TwinlockError:
                    Outbox(store).sent(sent)
        for one in Outbox(store).waiting():
            assert sent.setdefault(one.seq, one.assignment_id) == one.assignment_id
        assert sorted(set(sent.values())) == [str(number) for number in range(8)]
        assert sorted(sent) == list(range(1, len(sent) + 1))


@pytest.mark.parametrize("text", ["\x00\x1b[2J" * 5000, "\u20ac" * 9000, '"\\' * 9000, "\n" * 9000, "ok"])
def test_details_fit_a_report(text: str) -> None:
    clipped = clip_detail(text)
    assert len(clipped) <= limits.REPORT_DETAIL_LENGTH_MAX
    assert "\x1b" not in clipped
    body = encode(report(detail=clipped, image_sha256=b"x" * 32, assignment_id="a" * 128))
    assert len(body) <= limits.REPORT_SIZE_BYTES_MAX


def test_the_end_of_a_long_detail_is_kept() -> None:
    assert clip_detail("x" * 9000 + "the reason").endswith("the reason")


# --- slots, floor, failures, time


def test_the_floor_rises_to_the_lowest_bootable_counter_and_never_falls() -> None:
    store = MemoryStore()
    record = BootRecord(seq=1, default="a")

    def committed(slot: str, counter: int, failed: frozenset[str] = frozenset()) -> int:
        job = msgspec.structs.replace(JOB, slot=slot, counter=counter)
        now = BootRecord(seq=2, default=slot, failed=failed)
        memory.note_committed(store, now, job)
        return memory.floor(store, now)

    assert memory.floor(store, record) == 0
    assert committed("b", 5) == 0  # what slot a holds is not known
    assert committed("a", 7) == 5
    assert committed("b", 9) == 7
    assert committed("a", 3, frozenset({"b"})) == 7
    assert committed("b", 9, frozenset({"a"})) == 9


def test_a_lost_floor_falls_back_to_what_runs() -> None:
    store = MemoryStore()
    record = BootRecord(seq=1, default="b")
    memory.note_committed(store, record, msgspec.structs.replace(JOB, counter=6))
    for damage in (b"{", b"[]", b"x" * 70_000):
        store.files["floor.json"] = damage
        assert memory.floor(store, record) == 6
    store.files["slots.json"] = b"{"
    assert memory.floor(store, record) == 0
    assert memory.running(store, record) == Running()


def test_an_unknown_release_makes_its_slot_unknown() -> None:
    store = MemoryStore()
    record = BootRecord(seq=1, default="b")
    memory.note_committed(store, record, JOB)
    assert memory.running(store, record).version == "1.1"
    memory.note_committed(store, record, unknown_job("b", "t"))
    assert memory.running(store, record) == Running()


def test_failures_are_kept_once_and_bounded() -> None:
    store = MemoryStore()
    for number in range(200):
        failed = memory.Failed(str(number), None, "x")
        memory.condemn(store, failed)
        memory.condemn(store, failed)
    known = memory.failures(store)
    assert [one.assignment_id for one in known] == [str(number) for number in range(72, 200)]
    store.files["failed.json"] = b"oops"
    assert memory.failures(store) == []


def test_time_only_goes_forward() -> None:
    store = MemoryStore()
    wrong = FakeClock(wall_s=0.0)
    assert memory.trusted_s(store, wrong) == memory.BUILD_TIME_S
    memory.note_time(store, 1_900_000_000.0)
    assert memory.trusted_s(store, wrong) == 1_900_000_000.0
    writes = store.writes
    memory.note_time(store, 1_900_000_010.0)
    memory.note_time(store, 1_800_000_000.0)
    assert store.writes == writes
    assert memory.trusted_s(store, FakeClock(wall_s=2_000_000_000.0)) == 2_000_000_000.0


# --- journal, plan, session


def test_a_journal_comes_back_as_it_was() -> None:
    store = MemoryStore()
    assert journal.load(store) == (State(), False)
    state = State(phase=Phase.ARMED, job=JOB, record=BootRecord(seq=3, default="a", failed=frozenset("b")))
    journal.save(store, state)
    assert journal.load(store) == (state, False)


def test_any_damage_to_the_journal_is_noticed(seed: int) -> None:
    store = MemoryStore()
    journal.save(store, State(phase=Phase.ARMED, job=JOB, boot_id="x"))
    good = store.files[journal.JOURNAL]
    rng = random.Random(seed)
    for _ in range(300):
        bad = bytearray(good)
        if rng.random() < 0.3:
            bad = bad[: rng.randrange(len(bad))]
        else:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        store.files[journal.JOURNAL] = bytes(bad)
        assert journal.load(store) == (State(), True), bytes(bad)
    store.files[journal.JOURNAL] = b"x" * 100_000
    assert journal.load(store) == (State(), True)


def test_a_newer_agents_journal_is_read_and_a_newer_version_is_not() -> None:
    import zlib

    def stored(**more: object) -> MemoryStore:
        table = {**msgspec.to_builtins(State(phase=Phase.TRIAL, job=JOB)), **more}
        raw = msgspec.json.encode(table)
        body = msgspec.json.encode({"crc32": zlib.crc32(raw), "state": msgspec.Raw(raw)})
        return MemoryStore({journal.JOURNAL: body})

    assert journal.load(stored(later_field=1))[0].phase is Phase.TRIAL
    assert journal.load(stored(version=2)) == (State(), True)
    assert journal.load(stored(phase="dreaming")) == (State(), True)


def test_a_plan_that_is_not_whole_is_none() -> None:
    from tests.unit.agent.fakes import plan_for

    plan = plan_for(pack(image_of("a")))
    store = MemoryStore()
    assert plans.load(store) is None
    for bad in (
        b"{",
        msgspec.json.encode(msgspec.structs.replace(plan, manifest=plan.manifest + b" ")),
        msgspec.json.encode(msgspec.structs.replace(plan, version=2)),
        msgspec.json.encode(
            msgspec.structs.replace(plan, job=msgspec.structs.replace(plan.job, assignment_id="r9"))
        ),
        msgspec.json.encode(msgspec.structs.replace(plan, job=msgspec.structs.replace(plan.job, slot="a"))),
    ):
        store.files[plans.PLAN] = bad
        assert plans.load(store) is None
    store.files[plans.PLAN] = msgspec.json.encode(plan)
    assert plans.load(store) == plan


def test_a_session_is_good_between_its_times() -> None:
    store = MemoryStore()
    assert session.load(store, 5) is None
    session.save(store, "t", 600, 1000.0)
    found = [session.load(store, now_s) is not None for now_s in (999, 1000, 1500, 1571, 9999)]
    assert found == [False, True, True, False, False]
    store.files[session.SESSION] = b"{"
    assert session.load(store, 1000) is None
    for token in ("", "a b", "a\r\nX: y", "\u20ac", "x" * 5000):
        with pytest.raises(TwinlockError) as caught:
            session.save(store, token, 600, 0.0)
        assert caught.value.code == "answer-malformed"


# --- the progress log


def progress_with(store: MemoryStore, count: int = 10) -> Progress:
    return Progress.open(store, JOB, count)


def test_a_torn_log_is_believed_up_to_the_tear(seed: int) -> None:
    store = MemoryStore()
    log = progress_with(store)
    for number in range(8):
        log.tally.fetched_bytes += 100
        log.received(number)
        log.held(number)
    log.lost(3)
    whole = store.files[progress.PROGRESS]
    rng = random.Random(seed)
    for _ in range(200):
        cut = rng.randint(64, len(whole))
        store.files[progress.PROGRESS] = whole[:cut] + rng.randbytes(rng.randint(0, 40))
        again = progress_with(store)
        records = (cut - 64) // progress.RECORD_SIZE_BYTES
        held = {number for number in range(10) if again.is_held(number)}
        assert held <= set(range(8))
        assert len(held) <= records
        assert again.tally.fetched_bytes in range(0, 801, 100)
    store.files[progress.PROGRESS] = whole
    assert list(progress_with(store).missing()) == [3, 8, 9]
    assert (
        progress.tally_of(store, msgspec.structs.replace(JOB, image_size_bytes=10 << 20)).fetched_bytes == 800
    )


def test_a_log_of_another_slot_or_image_is_not_believed() -> None:
    for other in (
        msgspec.structs.replace(JOB, slot="a"),
        msgspec.structs.replace(JOB, image_sha256=b"z" * 32),
    ):
        store = MemoryStore()
        log = Progress.open(store, other, 10)
        log.held(1)
        assert not progress_with(store).is_held(1)
    store = MemoryStore()
    Progress.open(store, JOB, 11).held(1)
    assert not progress_with(store).is_held(1)


def test_a_log_that_grew_out_of_bounds_starts_over() -> None:
    store = MemoryStore()
    progress_with(store).held(1)
    store.files[progress.PROGRESS] += bytes(1 << 20)
    assert not progress_with(store).is_held(1)
    assert len(store.files[progress.PROGRESS]) < 200


def test_a_partial_part_is_only_given_back_whole_and_to_its_owner() -> None:
    store = MemoryStore()
    into = memoryview(bytearray(20))
    progress.save_partial(store, b"s" * 32, 5, memoryview(b"first bytes"))
    assert progress.load_partial(store, b"s" * 32, 5, into) == 11
    assert bytes(into[:11]) == b"first bytes"
    assert progress.load_partial(store, b"t" * 32, 5, into) == 0
    assert progress.load_partial(store, b"s" * 32, 6, into) == 0
    assert progress.load_partial(store, b"s" * 32, 5, into[:11]) == 0
    store.files[progress.PARTIAL] = store.files[progress.PARTIAL][:-1]
    assert progress.load_partial(store, b"s" * 32, 5, into) == 0
    store.files[progress.PARTIAL] = bytes(4 << 20)
    assert progress.load_partial(store, b"s" * 32, 5, into) == 0
    progress.save_partial(store, b"s" * 32, 5, memoryview(b""))
