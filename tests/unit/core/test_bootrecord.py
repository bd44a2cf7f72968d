"""The boot record: one transition at a time, and what each of them refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from twinlock.core import bootrecord as br
from twinlock.core.errors import DeviceError
from twinlock.core.limits import BOOT_REASON_BYTES_MAX, TRIES_MAX


def armed(tries: int = 3) -> br.BootRecord:
    return br.arm(br.invalidate(br.initial(), "b"), "b", tries, "t1")


def refused(problem: pytest.ExceptionInfo[DeviceError], code: str = "boot-refused") -> None:
    assert problem.value.code == code


def test_a_fresh_device_boots_its_default_and_never_the_empty_slot() -> None:
    record = br.initial()
    assert br.next_boot(record) == ("a", record)
    assert br.next_when_unbootable(record, "a") == "recovery"


def test_the_steady_state_writes_nothing() -> None:
    record = br.commit(armed(), "t1")
    for _ in range(5):
        slot, saved = br.next_boot(record)
        assert (slot, saved) == ("b", record)


def test_a_trial_counts_down_and_then_falls_back() -> None:
    record = armed(tries=2)
    booted = []
    for _ in range(4):
        slot, record = br.next_boot(record)
        booted.append(slot)
    assert booted == ["b", "b", "a", "a"]
    assert br.in_trial(record)


def test_commit_makes_the_tried_slot_the_default_and_keeps_the_old_one_bootable() -> None:
    record = br.commit(armed(), "t1")
    assert (record.default, record.trying, record.failed) == ("b", None, frozenset())
    assert br.next_when_unbootable(record, "b") == "a"


def test_roll_back_marks_the_slot_bad_and_says_why() -> None:
    record = br.roll_back(armed(), "t1", "health: app down")
    assert (record.default, record.failed, record.reason) == ("a", frozenset({"b"}), "health: app down")
    assert br.next_when_unbootable(record, "a") == "recovery"


def test_roll_back_without_a_reason_still_has_one() -> None:
    assert br.roll_back(armed(), "t1", "").reason


@pytest.mark.parametrize("slot", ["a", "recovery", "c", ""])
def test_invalidate_refuses_the_default_and_what_is_no_slot(slot: str) -> None:
    with pytest.raises(DeviceError) as problem:
        br.invalidate(br.initial(), slot)
    refused(problem)


def test_invalidate_refuses_while_a_trial_is_pending_even_a_used_up_one() -> None:
    used_up = replace(armed(), tries_left=0)
    for record in (armed(), used_up):
        with pytest.raises(DeviceError) as problem:
            br.invalidate(record, "b")
        refused(problem)


def test_each_transition_repeats_without_a_second_write() -> None:
    invalid = br.invalidate(br.commit(armed(), "t1"), "a")
    assert br.invalidate(invalid, "a") is invalid
    pending = armed()
    assert br.arm(pending, "b", 3, "t1") is pending
    committed = br.commit(pending, "t1")
    assert br.commit(committed, "t1") is committed
    rolled = br.roll_back(pending, "t1", "why")
    assert br.roll_back(rolled, "t1", "why") is rolled


def test_an_ended_trial_can_not_be_turned_round() -> None:
    with pytest.raises(DeviceError) as problem:
        br.commit(br.roll_back(armed(), "t1", "why"), "t1")
    refused(problem)
    with pytest.raises(DeviceError) as problem:
        br.roll_back(br.commit(armed(), "t1"), "t1", "why")
    refused(problem)


@pytest.mark.parametrize("trial_id", ["t2", ""])
def test_another_trials_id_settles_nothing(trial_id: str) -> None:
    for settle in (br.commit, lambda record, trial: br.roll_back(record, trial, "why")):
        with pytest.raises(DeviceError) as problem:
            settle(armed(), trial_id)
        refused(problem)


@pytest.mark.parametrize(
    ("slot", "tries", "trial_id"),
    [
        ("a", 3, "t"),
        ("c", 3, "t"),
        ("b", 0, "t"),
        ("b", TRIES_MAX + 1, "t"),
        ("b", 3, ""),
        ("b", 3, "t" * 33),
    ],
)
def test_arm_refuses_what_is_out_of_bounds(slot: str, tries: int, trial_id: str) -> None:
    with pytest.raises(DeviceError) as problem:
        br.arm(br.invalidate(br.initial(), "b"), slot, tries, trial_id)
    refused(problem)


def test_both_slots_bad_is_recovery() -> None:
    record = br.BootRecord(seq=9, default="a", failed=frozenset({"a", "b"}))
    assert br.next_boot(record) == ("recovery", record)
    assert br.next_when_unbootable(record, "recovery") == "recovery"


def test_a_trial_that_does_not_load_falls_back_and_the_default_never_to_the_trial() -> None:
    assert br.next_when_unbootable(armed(), "b") == "a"
    assert br.next_when_unbootable(armed(), "a") == "recovery"


def test_a_copy_is_one_sector_and_the_reason_is_cut_to_fit() -> None:
    record = br.roll_back(armed(), "t1", "ü" * 200 + "\n\x1b[31m")
    sector = br.encode(record)
    assert len(sector) == br.SECTOR_SIZE_BYTES
    read = br.decode(sector)
    assert read == record
    assert len(record.reason.encode()) <= BOOT_REASON_BYTES_MAX
    assert br.clip_reason("a\nb\x1b[0m") == "a b [0m"


def test_the_newest_valid_copy_counts_and_none_is_an_error() -> None:
    old, new = br.initial(), br.invalidate(replace(br.initial(), failed=frozenset()), "b")
    assert br.newest((old, new)) == (1, new)
    assert br.newest((new, old)) == (0, new)
    assert br.newest((None, old)) == (1, old)
    assert br.newest((old, old))[0] == 0
    with pytest.raises(DeviceError) as problem:
        br.newest((None, None))
    refused(problem, "boot-record")


def test_a_used_up_sequence_number_refuses_rather_than_wraps() -> None:
    with pytest.raises(DeviceError) as problem:
        br.invalidate(br.BootRecord(seq=br.SEQ_MAX, default="a"), "b")
    refused(problem, "boot-record")


@pytest.mark.parametrize("data", [b"", bytes(512), b"\xff" * 512, br.encode(br.initial())[:100]])
def test_blank_or_short_sectors_hold_no_record(data: bytes) -> None:
    assert br.decode(data) is None


# --- from recovery


def test_the_default_that_does_not_load_is_given_up_and_written_next() -> None:
    given_up = br.abandon(br.BootRecord(seq=5, default="a", trial_id="t0", failed=frozenset("b")), "a")
    assert (given_up.seq, given_up.default, given_up.failed) == (6, "b", frozenset("ab"))
    assert br.next_boot(given_up) == ("recovery", given_up)
    assert br.abandon(given_up, "a") is given_up, "repeatable"
    tried = br.arm(br.invalidate(given_up, "a"), "a", 2, "t1")
    assert br.next_boot(tried)[0] == "a"
    assert br.next_when_unbootable(tried, "a") == "recovery"
    assert br.fallback(tried) == "recovery", "what was given up never serves as a way out"
    rolled = br.roll_back(tried, "t1", "why")
    assert br.next_boot(rolled)[0] == "recovery"
    committed = br.commit(tried, "t1")
    assert (committed.default, committed.failed) == ("a", frozenset("b"))


def test_a_pending_trial_is_settled_before_anything_is_given_up() -> None:
    for record, slot in ((armed(), "a"), (br.initial(), "recovery")):
        with pytest.raises(DeviceError) as problem:
            br.abandon(record, slot)
        refused(problem)


@pytest.mark.parametrize(("failed", "boots"), [("", "a"), ("b", "a"), ("a", "recovery"), ("ab", "recovery")])
def test_a_record_made_anew_boots_only_what_is_whole(failed: str, boots: str) -> None:
    record = br.restored("a", frozenset(failed))
    assert br.next_boot(record) == (boots, record)
    assert br.decode(br.encode(record)) == record


def test_a_loader_counts_where_it_counted_before_and_else_over_the_older_copy() -> None:
    new = armed()
    once = br.next_boot(new)[1]
    assert br.copy_to_spend((br.initial(), new)) == 0
    assert br.copy_to_spend((once, new)) == 0
    assert br.copy_to_spend((new, once)) == 1
    assert br.copy_to_spend((None, new)) == 0
    assert br.copy_to_spend((None, once)) == 0
    proved = replace(once, seq=once.seq + 1)  # the agent's own, in the trial
    assert br.copy_to_spend((once, proved)) == 0
