"""What reports make of an assignment, one transition at a time; any order is in tests/property/server."""

from __future__ import annotations

import pytest

from twinlock.server.rollouts.state import STATES, Summary, contradicts, fold, with_mark


def folded(*reports: tuple[int, str]) -> Summary:
    summary = Summary()
    for seq, state in reports:
        summary = fold(summary, state, seq)
    return summary


@pytest.mark.parametrize(
    ("reports", "state"),
    [
        ([], "assigned"),
        ([(1, "downloading")], "downloading"),
        ([(1, "downloading"), (2, "armed"), (3, "trial")], "trial"),
        ([(3, "trial"), (1, "downloading")], "trial"),
        ([(1, "idle")], "assigned"),
        ([(1, "downloading"), (2, "failed")], "failed"),
        ([(2, "failed"), (1, "downloading")], "failed"),
        ([(1, "succeeded"), (2, "rolled_back")], "rolled_back"),
        ([(2, "rolled_back"), (1, "succeeded")], "rolled_back"),
        ([(1, "rolled_back"), (2, "succeeded")], "rolled_back"),
        ([(1, "failed"), (2, "succeeded")], "failed"),
        ([(2, "succeeded"), (1, "failed")], "failed"),
        ([(1, "failed"), (2, "rolled_back")], "failed"),
        ([(1, "succeeded"), (2, "failed")], "succeeded"),
        ([(1, "succeeded"), (2, "trial")], "succeeded"),
    ],
)
def test_the_state_after_reports(reports: list[tuple[int, str]], state: str) -> None:
    assert folded(*reports).state == state


def test_the_outcome_names_the_report_that_decided_it() -> None:
    assert folded((4, "succeeded"), (9, "rolled_back"), (7, "rolled_back")).outcome_seq == 7
    assert folded((4, "failed"), (7, "rolled_back")).outcome_seq == 4
    assert folded((4, "trial")).outcome_seq is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("succeeded", "rolled_back", False),
        ("succeeded", "succeeded", False),
        ("succeeded", "failed", True),
        ("rolled_back", "succeeded", True),
        ("failed", "succeeded", True),
        ("failed", "trial", False),
    ],
)
def test_a_second_outcome_contradicts_unless_it_is_a_later_fall_back(
    first: str, second: str, expected: bool
) -> None:
    assert contradicts(folded((5, first)), second, 6) is expected
    if second != "trial":
        assert contradicts(folded((6, second)), first, 5) is expected
    assert contradicts(folded((5, first)), second, 5) is False


@pytest.mark.parametrize("mark", ["superseded", "halted"])
def test_a_mark_ends_an_open_assignment_and_an_outcome_outweighs_it(mark: str) -> None:
    marked = with_mark(folded((1, "downloading")), mark)  # type: ignore[arg-type]
    assert (marked.state, marked.is_open) == (mark, False)
    assert fold(marked, "armed", 2).state == mark
    assert fold(marked, "succeeded", 3).state == "succeeded"
    assert fold(marked, "rolled_back", 3).state == "rolled_back"


def test_a_mark_changes_no_outcome() -> None:
    done = folded((1, "failed"))
    assert with_mark(done, "halted") == done


def test_running_the_image_already_counts_as_success_until_the_device_says_otherwise() -> None:
    satisfied = with_mark(Summary(), "satisfied")
    assert (satisfied.state, satisfied.is_open) == ("succeeded", False)
    assert fold(satisfied, "failed", 1).state == "failed"


def test_every_state_is_named() -> None:
    reachable = {folded((1, report)).state for report in ("downloading", "armed", "trial", "failed")}
    assert reachable <= set(STATES)
    assert len(STATES) == len(set(STATES))
