"""Differences are added where their runs say, modulo 256, however long runs and gaps are."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.core.payload.bytewise import PIECE_SIZE_BYTES, add_runs

RUNS = st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=40)), max_size=30)


def added(text: bytes, runs: list[tuple[int, bytes]]) -> bytearray:
    """What `add_runs` makes of the text."""
    made = bytearray(text)
    gaps = array("Q", [gap for gap, _ in runs])
    lengths = array("Q", [len(differences) for _, differences in runs])
    add_runs(memoryview(made), gaps, lengths, b"".join(differences for _, differences in runs))
    return made


def added_one_by_one(text: bytes, runs: list[tuple[int, bytes]]) -> bytearray:
    """The same, as the format's description has it."""
    made = bytearray(text)
    at = 0
    for gap, differences in runs:
        at += gap
        for difference in differences:
            made[at] = (made[at] + difference) % 256
            at += 1
    return made


@given(runs=RUNS, tail=st.binary(max_size=20), seed=st.integers(0, 1 << 32))
def test_runs_are_added_byte_by_byte(runs: list[tuple[int, bytes]], tail: bytes, seed: int) -> None:
    size = sum(gap + len(differences) for gap, differences in runs)
    text = random.Random(seed).randbytes(size) + tail
    assert added(text, runs) == added_one_by_one(text, runs)


@pytest.mark.parametrize(
    "shape",
    [
        [(0, 3 * PIECE_SIZE_BYTES + 1)],
        [(5, PIECE_SIZE_BYTES), (0, PIECE_SIZE_BYTES + 7), (1, 1)],
        [(2 * PIECE_SIZE_BYTES, 3), (3 * PIECE_SIZE_BYTES, 0), (0, 2)],
        [(1, PIECE_SIZE_BYTES - 1), (1, 1), (1, PIECE_SIZE_BYTES)],
    ],
)
def test_long_runs_and_gaps_go_in_pieces(shape: list[tuple[int, int]]) -> None:
    rng = random.Random(20)
    runs = [(gap, rng.randbytes(length)) for gap, length in shape]
    text = rng.randbytes(sum(gap + length for gap, length in shape) + 9)
    assert added(text, runs) == added_one_by_one(text, runs)


def test_without_runs_a_text_stays() -> None:
    assert added(b"text", []) == b"text"
