"""Columns of numbers are read as one by one they are; what does not end is refused without much work."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlock.core.errors import TwinlockError
from twinlock.core.payload.varints import BYTES_MAX, Reader, column, encode, fold, row, signed_row

NUMBERS = st.lists(st.integers(0, (1 << 42) - 1) | st.integers(0, 200), max_size=300)


@given(NUMBERS, st.binary(max_size=9))
@settings(max_examples=200, deadline=None)
def test_a_column_comes_back_and_what_is_behind_it_stays(numbers: list[int], behind: bytes) -> None:
    reader = Reader(column(numbers) + behind, 0)
    assert list(reader.column(len(numbers))) == numbers
    assert bytes(reader.rest()) == behind


@given(st.lists(st.integers(-(1 << 40), 1 << 40), max_size=100))
@settings(max_examples=100, deadline=None)
def test_signed_columns_come_back(numbers: list[int]) -> None:
    assert list(Reader(column(map(fold, numbers)), 0).signed_column(len(numbers))) == numbers


@pytest.mark.parametrize("count", [1, 2, 500])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_column_that_ends_early_is_refused(count: int, missing: int) -> None:
    data = column([1 << 20] * count)[:-missing]
    with pytest.raises(TwinlockError) as caught:
        Reader(data, 7).column(count)
    assert caught.value.code == "payload-malformed"
    assert "part 7 ends within its numbers" in str(caught.value)


def test_numbers_of_more_than_42_bits_are_refused() -> None:
    assert list(Reader(encode((1 << 42) - 1), 0).column(1)) == [(1 << 42) - 1]
    for data in (b"\x80" * BYTES_MAX + b"\1", b"\1" + b"\x80" * BYTES_MAX + b"\0\1"):
        with pytest.raises(TwinlockError) as caught:
            Reader(data, 0).column(data.count(1))
        assert caught.value.code == "payload-malformed"


def test_numbers_that_go_on_for_ever_are_not_followed() -> None:
    reads: list[Any] = []

    class Data(bytes):
        def __getitem__(self, where: Any) -> Any:
            reads.append(where)
            return super().__getitem__(where)

    reader = Reader(b"", 0)
    reader._data = Data(b"\x80" * (1 << 20))  # type: ignore[assignment]
    with pytest.raises(TwinlockError):
        reader.column(1)
    assert len(reads) <= BYTES_MAX + 1


def test_columns_of_any_length_agree_with_numbers_one_by_one() -> None:
    rng = random.Random(3)
    numbers = [rng.getrandbits(rng.choice([3, 7, 8, 14, 30, 42])) for _ in range(5000)]
    whole, single = Reader(column(numbers), 0), Reader(column(numbers), 0)
    assert list(whole.column(5000)) == [single.column(1)[0] for _ in range(5000)] == numbers


# --- rows


@given(st.lists(st.integers(0, (1 << 48) - 1) | st.integers(0, 200), max_size=300), st.binary(max_size=9))
@settings(max_examples=200, deadline=None)
def test_a_row_comes_back_and_what_is_behind_it_stays(numbers: list[int], behind: bytes) -> None:
    reader = Reader(row(numbers) + behind, 0)
    assert list(reader.row(len(numbers))) == numbers
    assert bytes(reader.rest()) == behind


@given(st.lists(st.integers(-(1 << 47), (1 << 47) - 1) | st.integers(-200, 200), max_size=100))
@settings(max_examples=200, deadline=None)
def test_signed_rows_come_back(numbers: list[int]) -> None:
    assert list(Reader(signed_row(numbers), 0).signed_row(len(numbers))) == numbers


@pytest.mark.parametrize("write", [row, signed_row])
def test_numbers_too_large_for_a_row_are_not_written(write: Callable[[list[int]], bytes]) -> None:
    with pytest.raises(ValueError, match="49"):
        write([1, 1 << 48 if write is row else 1 << 47])


@pytest.mark.parametrize("data", [b"", b"\0\1\2", b"\7" + bytes(30), b"\2" + bytes(7)])
@pytest.mark.parametrize("signed", [False, True])
def test_a_row_that_ends_early_or_has_no_width_is_refused(data: bytes, signed: bool) -> None:
    reader = Reader(data, 3)
    with pytest.raises(TwinlockError) as caught:
        (reader.signed_row if signed else reader.row)(4)
    assert caught.value.code == "payload-malformed"
