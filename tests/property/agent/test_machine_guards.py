"""What the machine never does, whatever state it is in and whatever happens: also in ones that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.agent.machine_world import Image, job_for
from twinlock.agent import effects as do
from twinlock.agent import events as on
from twinlock.agent import machine
from twinlock.agent.states import Phase, State, Verdict
from twinlock.core.bootrecord import BootRecord
from twinlock.core.names import RECOVERY, SLOTS

BRINGS_AN_EVENT = (
    do.Check, do.AskHooks, do.Install, do.Arm, do.Judge, do.Commit, do.RollBack, do.Settle,
)  # fmt: skip
ENDS = (do.Reboot, do.Finish)

slots = st.sampled_from(SLOTS)
codes = st.sampled_from(
    ["server-unreachable", "payload-part-hash", "slot-busy", "boot-control", "health-failed", "internal",
     "metadata-expired", "disk-full", "enrolment-pending", "hardware-mismatch", "no-such-code"]
)  # fmt: skip
jobs = st.builds(
    lambda number, slot, image: job_for(f"r{number}", Image(image, "good"), slot),
    st.integers(1, 2),
    slots,
    st.integers(1, 2),
)


@st.composite
def records(draw: st.DrawFn) -> BootRecord:
    trying = draw(st.none() | slots)
    job = draw(jobs)
    return BootRecord(
        seq=draw(st.integers(1, 9)),
        default=draw(slots),
        trying=trying,
        tries_left=draw(st.integers(0, 3)) if trying else 0,
        trial_id=draw(st.sampled_from(["", "other", job.trial_id])),
        failed=draw(st.frozensets(slots)),
        reason=draw(st.sampled_from(["", "being written", "health-failed: x", "odd"])),
    )


verdicts = st.builds(Verdict, code=codes, detail=st.just("x"), condemns=st.booleans())
boots = st.sampled_from(["", "boot-1", "boot-2"])
states = st.builds(
    State,
    phase=st.sampled_from(Phase),
    job=st.none() | jobs,
    record=st.none() | records(),
    booted=st.sampled_from([*SLOTS, RECOVERY, ""]),
    boot_id=boots,
    armed_boot_id=boots,
    tries=st.integers(0, 3),
    fallbacks=st.integers(0, 5),
    rearms=st.integers(0, 5),
    verdict=st.none() | verdicts,
    acquit=st.none() | jobs,
)
started = st.builds(
    on.Started,
    record=records(),
    booted=st.sampled_from([*SLOTS, RECOVERY]),
    boot_id=boots,
    planned=st.none() | jobs,
    damaged=st.booleans(),
)
events: st.SearchStrategy[Any] = st.one_of(
    started,
    st.builds(on.Planned, job=jobs),
    st.just(on.NothingToDo()),
    st.just(on.RunsAlready("r1", "demo", "1")),
    st.builds(on.Refused, st.just("r1"), st.just("demo"), st.just("1"), code=codes, what=st.just("x")),
    st.builds(on.CheckFailed, code=codes, what=st.just("x")),
    st.builds(on.HooksAnswered, postponed=st.booleans(), what=st.just("x"), failed=st.booleans()),
    st.builds(on.Installed, trial_id=jobs.map(lambda job: job.trial_id)),
    st.builds(on.InstallFailed, code=codes, what=st.just("x")),
    st.builds(on.RecordWritten, record=records()),
    st.builds(on.Judged, verdict=st.none() | verdicts),
    st.just(on.Settled()),
    st.builds(
        on.EffectFailed, effect=st.sampled_from(["Commit", "Save", "Arm"]), code=codes, what=st.just("x")
    ),
)


@settings(max_examples=600)
@given(states, events)
def test_no_state_and_no_event_makes_it_touch_a_live_slot(state: State, event: on.Event) -> None:
    after, effects = machine.step(state, event)
    record, booted = after.record, after.booted
    assert isinstance(effects[-1], (*BRINGS_AN_EVENT, *ENDS)), "a step without an end"
    assert not any(isinstance(effect, (*BRINGS_AN_EVENT, *ENDS)) for effect in effects[:-1])
    for effect in effects:
        match effect:
            case do.Install(job):
                assert record is not None
                assert job.slot not in (record.default, booted)
                assert record.trying is None
            case do.Arm(slot, trial_id):
                assert record is not None
                assert isinstance(event, on.Installed), "armed what was not verified just now"
                assert event.trial_id == trial_id
                assert slot not in (record.default, booted)
                assert record.trying is None
            case do.Commit(trial_id):
                assert record is not None
                assert record.trying == booted
                assert record.trial_id == trial_id
                assert isinstance(event, on.Judged)
                assert event.verdict is None
            case do.RollBack(trial_id):
                assert record is not None
                assert record.trying is not None
                assert record.trial_id == trial_id
            case do.Judge(trial_id):
                assert record is not None
                assert record.trying == booted
            case do.Check(inactive):
                assert inactive is None or (record is not None and inactive not in (record.default, booted))


@pytest.mark.parametrize(
    ("record", "booted", "free"),
    [
        (BootRecord(seq=1, default="a"), "a", "b"),
        (BootRecord(seq=1, default="b"), "b", "a"),
        (BootRecord(seq=1, default="a"), "b", None),
        (BootRecord(seq=1, default="a", failed=frozenset("a")), RECOVERY, "b"),
        (BootRecord(seq=1, default="a", trying="b", tries_left=1), "a", None),
        (BootRecord(seq=1, default="a", trying="b", tries_left=0), "a", None),
        (None, "a", None),
    ],
)
def test_the_free_slot(record: BootRecord | None, booted: str, free: str | None) -> None:
    assert machine.inactive_slot(State(record=record, booted=booted)) == free


def test_only_the_job_at_hand_is_armed() -> None:
    job = job_for("r1", Image(1, "good"), "b")
    state = State(phase=Phase.INSTALLING, job=job, record=BootRecord(seq=1, default="a"), booted="a")
    assert machine.step(state, on.Installed(job.trial_id))[1] == (do.Arm("b", job.trial_id),)
    (end,) = machine.step(state, on.Installed("another"))[1]
    assert isinstance(end, do.Finish)
    assert end.code == "internal"


@pytest.mark.parametrize("phase", [Phase.ARMED, Phase.TRIAL])
def test_a_trial_that_the_boot_record_lost_is_armed_again_and_given_up_in_the_end(phase: Phase) -> None:
    """The medium may lose the copy that armed it: then the record is one from before."""
    job = job_for("r1", Image(1, "good"), "b")
    record = BootRecord(seq=8, default="a", failed=frozenset("b"), reason="being written")
    event = on.Started(record, booted="a", boot_id="boot-2")
    state = State(phase=phase, job=job, boot_id="boot-1", tries=3, started_s=5.0)
    for count in (1, 2, 3):
        state, effects = machine.step(state, event)
        assert effects == (do.Check("b"),)
        assert (state.phase, state.job, state.started_s, state.rearms) == (
            Phase.INSTALLING, job, 5.0, count,
        )  # fmt: skip
        for following in (on.Planned(job, 6.0), on.HooksAnswered(False), on.Installed(job.trial_id)):
            state, effects = machine.step(state, following)
        assert effects == (do.Arm("b", job.trial_id),)
        armed = BootRecord(seq=9, default="a", trying="b", tries_left=3, trial_id=job.trial_id)
        state, _ = machine.step(state, on.RecordWritten(armed))
        assert state.phase is Phase.ARMED
    state, effects = machine.step(state, event)
    assert isinstance(effects[0], do.Tell)
    assert (effects[0].state, effects[0].code) == ("failed", "boot-record")
