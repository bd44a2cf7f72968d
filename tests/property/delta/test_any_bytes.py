"""The fuzzer's own entry, with bytes of hypothesis' choosing: every kind of part, and the index."""

from __future__ import annotations

import random
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.decoder import BASE, KINDS, MEMORY_BYTES_MAX, measured, one_input
from twinlock.core.payload import container
from twinlock.core.payload.parts import Copy, Part, Zero
from twinlock.core.payload.varints import encode, fold

CODES = {"result", "payload-malformed", "payload-index-hash", "format-unknown", "delta-base", "delta-library"}


def watched(data: bytes) -> str:
    tracemalloc.start()
    try:
        return measured(data)
    finally:
        tracemalloc.stop()


@given(st.integers(0, len(KINDS) - 1), st.binary(max_size=600))
@settings(max_examples=400, deadline=None)
def test_any_bytes_as_anything(kind: int, data: bytes) -> None:
    assert watched(bytes([kind]) + data) in CODES


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_a_good_index_with_some_bytes_changed(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randrange(1, 9)
    copies: list[Part] = [Copy(((rng.randrange(9000), 1 << 20),)) for _ in range(count)]
    parts = tuple(rng.choice([Zero(), copy]) for copy in copies)
    index = container.Index(bytes(32), len(parts) << 20, bytes(32), parts)
    data = bytearray(container.encode_tail(index)[: -container.TRAILER_SIZE_BYTES])
    for _ in range(rng.randrange(4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    assert watched(b"\0" + data) in CODES


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_programs_of_plausible_numbers(seed: int) -> None:
    """Columns that say sizes and places near the bounds: what random bytes never reach."""
    rng = random.Random(seed)
    size = rng.choice([0, 99, 5000])
    window = [1, fold(rng.randrange(-5, 64_000)), rng.choice([1, 500, 64_000])]
    numbers = [0, *window, 0, 0, 0, 0]
    covers = rng.randrange(4)
    numbers += [covers]
    numbers += [fold(rng.randrange(-600, 600)) for _ in range(covers)]
    numbers += [rng.randrange(60) for _ in range(covers)]
    numbers += [rng.randrange(600) for _ in range(covers)]
    numbers += [1, rng.randrange(100), rng.randrange(100)]
    control = b"".join(map(encode, numbers))
    body = encode(len(control)) + control + rng.randbytes(rng.choice([0, size + 1, 2 * size]))
    assert watched(b"\x01" + size.to_bytes(2, "little") + body) in CODES


def test_what_takes_too_much_is_told() -> None:
    """The watch itself works."""
    assert MEMORY_BYTES_MAX < 1 << 26
    assert BASE.read_into(memoryview(bytearray(100)), 0) == 100
    assert one_input(b"") == "payload-malformed"
