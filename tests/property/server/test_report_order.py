"""Laws of reports: any order and any repetition of a device's reports ends in the same state."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.server.rig import Server, make_release
from twinlock.core.protocol import FINAL_STATES
from twinlock.server.rollouts.state import STEPS, Mark, Summary, contradicts, fold, with_mark

REPORT_STATES = ("downloading", "armed", "trial", "succeeded", "failed", "rolled_back", "idle")
# One report per seq: two different ones with the same seq never get as far as the fold.
REPORTS = st.dictionaries(st.integers(1, 12), st.sampled_from(REPORT_STATES), max_size=8)
MARKS: st.SearchStrategy[Mark] = st.sampled_from(("", "superseded", "halted", "satisfied"))


def folded(reports: list[tuple[int, str]], summary: Summary | None = None) -> Summary:
    summary = summary or Summary()
    for seq, state in reports:
        summary = fold(summary, state, seq)
    return summary


@given(REPORTS, st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(reports: dict[int, str], rng: random.Random) -> None:
    inorder = sorted(reports.items())
    shuffled = inorder + [one for one in inorder if rng.random() < 0.5]
    rng.shuffle(shuffled)
    assert folded(shuffled) == folded(inorder)


@given(REPORTS, REPORTS, MARKS)
def test_progress_never_goes_back(first: dict[int, str], more: dict[int, str], mark: Mark) -> None:
    before = with_mark(folded(list(first.items())), mark)
    after = folded([(seq + 100, state) for seq, state in more.items()], before)
    assert STEPS.index(after.progress) >= STEPS.index(before.progress)
    assert before.is_open or not after.is_open
    assert after.mark == before.mark


@given(REPORTS, REPORTS)
def test_an_outcome_is_final_but_for_a_later_fall_back(first: dict[int, str], more: dict[int, str]) -> None:
    before = folded(list(first.items()))
    after = folded([(seq + 100, state) for seq, state in more.items()], before)
    if before.outcome and after.outcome != before.outcome:
        assert (before.outcome, after.outcome) == ("succeeded", "rolled_back")


@given(REPORTS)
def test_the_outcome_is_the_first_one_said_or_a_fall_back_from_success(reports: dict[int, str]) -> None:
    finals = [state for _, state in sorted(reports.items()) if state in FINAL_STATES]
    expected = finals[0] if finals else ""
    if expected == "succeeded" and "rolled_back" in finals:
        expected = "rolled_back"
    assert folded(list(reports.items())).outcome == expected


@given(REPORTS, st.randoms(use_true_random=False))
def test_reports_that_contradict_nothing_are_never_called_contradictions(
    reports: dict[int, str], rng: random.Random
) -> None:
    """Whatever the order: among reports whose finals all agree none is noted."""
    finals = {state for state in reports.values() if state in FINAL_STATES}
    items = list(reports.items())
    rng.shuffle(items)
    summary, found = Summary(), False
    for seq, state in items:
        found |= contradicts(summary, state, seq)
        summary = fold(summary, state, seq)
    if len(finals) <= 1:
        assert not found
    if "failed" in finals and len(finals) > 1:
        assert found


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one release."""
    server = Server(Path(tmp_path_factory.mktemp("stocked")))
    server.publish(make_release("1.1"))
    yield server
    server.close()


NUMBERS = itertools.count()


@settings(max_examples=15)
@given(REPORTS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_a_server_ends_in_the_same_state_whatever_way_reports_came(
    stocked: Server, reports: dict[int, str], rng: random.Random, batch: int
) -> None:
    assert tell(stocked, reports, rng, batch) == tell(stocked, reports, None, 1)


def tell(server: Server, reports: dict[int, str], rng: random.Random | None, batch: int) -> object:
    """Tells the server the reports of a new device, in order or shuffled; returns what it knows."""
    name = f"dev-{next(NUMBERS)}"
    device = server.device(name)
    rollout = server.roll_out("1.1", [name])
    signed = [
        device.sign(device.report(state, f"{rollout}-{name}", seq=seq, detail=f"{seq} {state}"))
        for seq, state in sorted(reports.items())
    ]
    if rng is not None:
        signed += [one for one in signed if rng.random() < 0.5]
        rng.shuffle(signed)
    for start in range(0, len(signed), batch):
        assert device.send_reports(*signed[start : start + batch]).status_code == 200
    (assignment,) = server.operator("GET", f"/rollouts/{rollout}").json()["assignments"]
    kept = server.operator("GET", f"/devices/{name}/reports").json()["reports"]
    same = {key: assignment[key] for key in ("state", "code", "detail", "bytes_fetched", "duration_s")}
    return same, [{key: one[key] for key in ("seq", "state", "detail")} for one in kept]
