"""Laws of the boot record: what holds for every record and every order of transitions."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from twinlock.core import bootrecord as br
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import TRIES_MAX
from twinlock.core.names import RECOVERY

slots = st.sampled_from(["a", "b"])
trial_ids = st.text("0123456789abcdef", min_size=1, max_size=32)
reasons = st.text(max_size=120).map(br.clip_reason).filter(lambda text: not text.endswith("\0"))


@st.composite
def records(draw: st.DrawFn) -> br.BootRecord:
    return br.BootRecord(
        seq=draw(st.integers(0, br.SEQ_MAX - 10)),
        default=draw(slots),
        trying=draw(st.none() | slots),
        tries_left=draw(st.integers(0, TRIES_MAX)),
        trial_id=draw(st.just("") | trial_ids),
        failed=draw(st.frozensets(slots)),
        reason=draw(reasons),
    )


@given(records())
def test_decoding_undoes_encoding(record: br.BootRecord) -> None:
    assert br.decode(br.encode(record)) == record


@given(records(), st.integers(0, 152 * 8 - 1))
def test_no_changed_bit_is_read_as_a_record(record: br.BootRecord, bit: int) -> None:
    sector = bytearray(br.encode(record))
    sector[bit // 8] ^= 1 << bit % 8
    assert br.decode(bytes(sector)) is None


@given(records(), records(), st.integers(0, br.SECTOR_SIZE_BYTES))
def test_a_torn_copy_reads_as_old_new_or_nothing(old: br.BootRecord, new: br.BootRecord, cut: int) -> None:
    torn = br.encode(new)[:cut] + br.encode(old)[cut:]
    assert br.decode(torn) in (old, new, None)


Step = Callable[[br.BootRecord], br.BootRecord]


def _steps(slot: str, trial: str, tries: int) -> list[Step]:
    return [
        lambda record: br.invalidate(record, slot),
        lambda record: br.arm(record, slot, tries, trial),
        lambda record: br.next_boot(record)[1],
        lambda record: br.commit(record, trial),
        lambda record: br.roll_back(record, trial, "why"),
    ]


moves = st.lists(
    st.tuples(st.integers(0, 4), slots, st.sampled_from(["t1", "t2"]), st.integers(1, 3), st.booleans()),
    max_size=40,
)


@given(moves)
def test_whatever_the_order_a_written_slot_never_boots(steps: list[tuple[int, str, str, int, bool]]) -> None:
    """The model: a slot is `whole` from its arm on, and not whole from its invalidate on.

    Each write may be lost to a power cut (`kept` False): then the record stays as it was, but a slot that was
    to be written is only written after the invalidate was kept.
    """
    record = br.initial()
    whole = {"a": True, "b": False}
    for number, slot, trial, tries, kept in steps:
        if number == 1 and not whole[slot] and slot != record.default and not br.in_trial(record):
            whole[slot] = True  # the agent arms only what it wrote and read back
        try:
            after = _steps(slot, trial, tries)[number](record)
        except TwinlockError:
            continue
        assert after.seq in (record.seq, record.seq + 1)
        if not kept:
            continue
        record = after
        if number == 0:
            whole[slot] = False
        booted, _ = br.next_boot(record)
        assert booted == RECOVERY or whole[booted]
        second = br.next_when_unbootable(record, booted)
        assert second == RECOVERY or whole[second]


@given(records(), slots, trial_ids, st.integers(1, TRIES_MAX))
def test_no_transition_touches_the_default_but_commit(
    record: br.BootRecord, slot: str, trial: str, tries: int
) -> None:
    for number, step in enumerate(_steps(slot, trial, tries)):
        try:
            after = step(record)
        except TwinlockError:
            continue
        if number != 3:
            assert after.default == record.default
        assert record.default in after.failed or record.default not in record.failed
        if number in (0, 1, 4) and record.default not in record.failed and record.trying != record.default:
            assert record.default not in after.failed
