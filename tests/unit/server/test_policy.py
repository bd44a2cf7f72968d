"""Which rollout a device gets."""

from __future__ import annotations

import pytest

from twinlock.server.rollouts.policy import Candidate, Past, choose, choose_again, matches

BOARD = Candidate(3, "demo", ("demo-board", "demo-board-2"))


@pytest.mark.parametrize(
    ("hardware", "product", "expected"),
    [
        ("demo-board", "demo", True),
        ("demo-board-2", "demo", True),
        ("demo-board", "", True),
        ("demo-board", "other", False),
        ("demo", "demo", False),
        ("", "demo", False),
    ],
)
def test_a_rollout_to_all_names_devices_of_its_hardware_and_product(
    hardware: str, product: str, expected: bool
) -> None:
    assert matches(BOARD, hardware, product) is expected


def test_the_newest_that_matches_wins() -> None:
    candidates = [Candidate(2, "demo", ("b",)), Candidate(5, "demo", ("b",)), Candidate(7, "other", ("b",))]
    assert choose(candidates, 0, "b", "demo") == 5
    assert choose(reversed(candidates), 0, "b", "demo") == 5


def test_an_older_one_does_not_take_the_place_of_the_present_one() -> None:
    candidates = [Candidate(2, "demo", ("b",)), Candidate(5, "demo", ("b",))]
    assert choose(candidates, 5, "b", "demo") is None
    assert choose(candidates, 4, "b", "demo") == 5
    assert choose([], 0, "b", "demo") is None


@pytest.mark.parametrize(
    ("history", "told", "expected"),
    [
        ([], None, None),
        ([], 4, 4),
        ([(3, "succeeded")], 4, 3),
        ([(5, "rolled_back"), (3, "succeeded")], 4, 3),
        ([(3, "failed"), (3, "succeeded"), (2, "succeeded")], 4, 2),
        ([(3, "failed"), (3, "succeeded")], 4, 4),
        ([(4, "lost")], 4, None),
        ([(4, "superseded"), (4, "halted")], 4, 4),
    ],
)
def test_what_a_device_in_recovery_gets_again(
    history: list[tuple[int, str]], told: int | None, expected: int | None
) -> None:
    assert choose_again([Past(*one) for one in history], told) == expected
