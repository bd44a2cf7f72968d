"""Operands of x86 code: those found at once are those that a search byte by byte finds."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlock.core.payload import x86
from twinlock.core.payload.fields import Field, Kind, Shifts

LIKELY = bytes([0xE8, 0xE9, 0x05, 0x0D, 0x35, 0x3D, 0x0F, 0x80, 0x8F, 0x90, 0, 0, 1, 3, 4, 0xFB, 0xFC, 0xFF])


def is_high(byte: int) -> bool:
    return byte <= 3 or byte >= 0xFC


def slowly(window: bytearray, field: Field, shifts: Shifts) -> None:
    """What `move_x86` does, in the words of the format's description."""
    code = bytes(window[field.place : field.place + field.length])
    free = 0
    for at in range(1, len(code) - 3):
        single = code[at - 1] in b"\xe8\xe9\x05\x0d\x15\x1d\x25\x2d\x35\x3d"
        double = at >= 2 and code[at - 2] == 0x0F and 0x80 <= code[at - 1] <= 0x8F
        if not (single or double) or not is_high(code[at + 3]) or at < free:
            continue
        (offset,) = struct.unpack_from("<i", code, at)
        target = field.address + at + 4 + offset
        if shifts.starts[0] <= target < shifts.starts[-1]:
            free = at + 4
            change = shifts.of(target) - shifts.of(field.address + at)
            struct.pack_into("<I", window, field.place + at, offset + change & 0xFFFFFFFF)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_operands_move_as_they_do_one_by_one(seed: int) -> None:
    check(random.Random(seed), 0)


@pytest.mark.parametrize("seed", range(8))
def test_operands_over_the_edges_of_chunks_too(seed: int) -> None:
    rng = random.Random(seed)
    check(rng, rng.choice([65_536, 131_072]))


def check(rng: random.Random, more: int) -> None:
    size = rng.randrange(1, 200)
    place = rng.randrange(min(size, 9))
    size += more
    window = bytearray(rng.choices(LIKELY, k=size))
    starts = sorted(rng.sample(range(1 << rng.choice([10, 18, 26])), rng.randrange(2, 12)))
    shifts = Shifts(starts, [0, *(rng.randrange(-9, 9) for _ in starts[1:]), 0])
    field = Field(Kind.X86, 0, place, size - place, rng.randrange(1 << 20))
    wanted = bytearray(window)
    slowly(wanted, field, shifts)
    x86.move_x86(window, field, shifts)
    assert window == wanted


def test_code_with_ever_new_targets_takes_little_memory() -> None:
    rng = random.Random(5)
    calls = (b"\xe8" + struct.pack("<i", rng.randrange(1 << 24)) + b"\x90\x90\x90" for _ in range(1 << 17))
    window = bytearray(b"".join(calls))
    field = Field(Kind.X86, 0, 0, len(window), 0)
    shifts = Shifts([0, 1 << 23, 1 << 25], [0, 16, -16, 0])
    tracemalloc.start()
    try:
        x86.move_x86(window, field, shifts)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5 << 20
