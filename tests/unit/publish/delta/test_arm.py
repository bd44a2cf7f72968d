"""Branches and literals of 32-bit ARM code: those found at once are those that a look at each place finds."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlock.core.payload import arm
from twinlock.core.payload.fields import Field, Fields, Kind, Shifts
from twinlock.core.payload.moving import move

# Halfwords that begin, end or surround what is looked for.
LIKELY = [
    *(0xF000, 0xF001, 0xF3FF, 0xF7FF, 0xF43F, 0xF080, 0xF3AF, 0xF400, 0xF8DF),
    *(0xF800, 0xFFFE, 0xD000, 0xB800, 0xB7FF, 0x8000, 0x87FE, 0xAFFF, 0xE800, 0xEFFE, 0xC000),
    *(0x4800, 0x4B01, 0x4F05, 0x447B, 0x4478, 0x44F8, 0x4488, 0xBF00, 0x0000, 0x0010, 0xFFFF),
    *(0x3010, 0xE59F, 0x2008, 0xE51F, 0x3003, 0xE08F, 0x2003, 0xE79F, 0xEB00, 0xEAFF, 0xFA00, 0x0AFF),
]
KINDS = (Kind.A32, Kind.T32, Kind.A32_LITERALS, Kind.T32_LITERALS)


def halves(window: bytes, at: int) -> tuple[int, int]:
    first, second = struct.unpack_from("<HH", window, at)
    return first, second


def instructions(window: bytearray, field: Field, width: int) -> Iterator[tuple[int, bytes]]:
    """(address, the window as it was when the chunk's turn came) of what may be an instruction."""
    code = b""
    for begin in range(0, field.length // width * width - 3, width):
        if begin % arm.CHUNK_BYTES == 0:
            code = bytes(window)
        yield field.address + begin, code


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


# --- T32, bit by bit as the manual draws it ----------------------------------------------------------------


def t32_offset(first: int, second: int) -> tuple[int, bool] | None:
    """(offset, whether it counts from a multiple of four) of a branch; None for anything else."""
    if first >> 11 != 0b11110 or not second & 0x8000:
        return None
    s, j1, j2 = first >> 10 & 1, second >> 13 & 1, second >> 11 & 1
    if second & 0x5000:
        i1, i2 = 1 - (j1 ^ s), 1 - (j2 ^ s)
        bits = s << 24 | i1 << 23 | i2 << 22 | (first & 0x3FF) << 12 | (second & 0x7FF) << 1
        return signed(bits, 25), second & 0x5000 == 0x4000
    if first >> 7 & 7 == 7 or first & 0x3F in (0, 0x3F):
        return None
    bits = s << 20 | j2 << 19 | j1 << 18 | (first & 0x3F) << 12 | (second & 0x7FF) << 1
    return signed(bits, 21), False


def t32_branch(first: int, second: int, offset: int) -> tuple[int, int] | None:
    """The branch with another offset; None when it cannot have it."""

    def bit(number: int) -> int:
        return offset >> number & 1

    if second & 0x5000:
        if not -(1 << 24) <= offset < 1 << 24 or offset & (3 if second & 0x5000 == 0x4000 else 1):
            return None
        s = bit(24)
        j1, j2 = 1 - (bit(23) ^ s), 1 - (bit(22) ^ s)
        first = 0xF000 | s << 10 | offset >> 12 & 0x3FF
    else:
        if not -(1 << 20) <= offset < 1 << 20 or offset & 1:
            return None
        j1, j2 = bit(18), bit(19)
        first = first & 0xFBC0 | bit(20) << 10 | offset >> 12 & 0x3F
    return first, second & 0xD000 | j1 << 13 | j2 << 11 | offset >> 1 & 0x7FF


def slow_t32(window: bytearray, field: Field, shifts: Shifts) -> None:
    place = field.place - field.address
    for own, code in instructions(window, field, 2):
        first, second = halves(code, own + place)
        found = t32_offset(first, second)
        if found is None:
            continue
        offset, aligned = found
        down = -4 if aligned else -1
        target = (own + 4 & down) + offset
        if not shifts.starts[0] <= target < shifts.starts[-1]:
            continue
        after = target + shifts.of(target) - (own + shifts.of(own) + 4 & down)
        changed = t32_branch(first, second, after) if after != offset else None
        if changed is not None:
            struct.pack_into("<HH", window, own + place, *changed)


def slow_t32_literals(window: bytearray, field: Field, shifts: Shifts) -> None:
    held = [-1] * 16
    place = field.place - field.address
    for own, code in instructions(window, field, 2):
        first, second = halves(code, own + place)
        if first >> 11 == 0b01001:
            held[first >> 8 & 7] = (own + 4 & -4) + 4 * (first & 0xFF)
        elif first == 0xF8DF:
            held[second >> 12] = (own + 4 & -4) + (second & 0xFFF)
        elif first & 0xFF78 == 0x4478:
            literal(window, field, shifts, held, first & 7 | first >> 4 & 8, own + 4)


# --- A32 ---------------------------------------------------------------------------------------------------


def slow_a32(window: bytearray, field: Field, shifts: Shifts) -> None:
    place = field.place - field.address
    for own, code in instructions(window, field, 4):
        (word,) = struct.unpack_from("<I", code, own + place)
        if word >> 25 & 7 != 0b101:
            continue
        offset = 4 * signed(word & 0xFFFFFF, 24)
        target = own + 8 + offset + (2 if word >> 28 == 15 and word >> 24 & 1 else 0)
        if not shifts.starts[0] <= target < shifts.starts[-1]:
            continue
        after = offset + shifts.of(target) - shifts.of(own)
        if not after & 3 and -(1 << 25) <= after < 1 << 25:
            struct.pack_into("<I", window, own + place, word & 0xFF000000 | after >> 2 & 0xFFFFFF)


def slow_a32_literals(window: bytearray, field: Field, shifts: Shifts) -> None:
    held = [-1] * 16
    place = field.place - field.address
    for own, code in instructions(window, field, 4):
        (word,) = struct.unpack_from("<I", code, own + place)
        if word & 0xFFFF0000 in (0xE59F0000, 0xE51F0000):
            sign = 1 if word & 0x800000 else -1
            held[word >> 12 & 15] = own + 8 + sign * (word & 0xFFF)
        elif word & 0xFFFF0FF0 in (0xE08F0000, 0xE79F0000):
            literal(window, field, shifts, held, word & 15, own + 8)


def literal(
    window: bytearray, field: Field, shifts: Shifts, held: list[int], register: int, base: int
) -> None:
    at, held[register] = held[register], -1
    if not field.address <= at <= field.address + field.length - 4:
        return
    place = at + field.place - field.address
    (word,) = struct.unpack_from("<I", window, place)
    target = word + base & 0xFFFFFFFF
    if shifts.starts[0] <= target < shifts.starts[-1]:
        moved = word + shifts.of(target) - shifts.of(base)
        struct.pack_into("<I", window, place, moved & 0xFFFFFFFF)


SLOWLY = {
    Kind.T32: slow_t32,
    Kind.A32: slow_a32,
    Kind.T32_LITERALS: slow_t32_literals,
    Kind.A32_LITERALS: slow_a32_literals,
}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=120, deadline=None)
def test_what_moves_is_what_moves_place_by_place(kind: Kind, seed: int) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    size = 2 * rng.randrange(4, 120) + rng.randrange(2)
    check(rng, kind, size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_over_the_edges_of_chunks_too(kind: Kind, seed: int) -> None:
    check(random.Random(seed), kind, 2 * arm.CHUNK_BYTES + 40)


def check(rng: random.Random, kind: Kind, size: int) -> None:
    before = struct.pack(f"<{size // 2}H", *rng.choices(LIKELY, k=size // 2)) + bytes(size % 2)
    place = rng.choice([0, 4])
    address = 4 * rng.randrange(1 << 18)
    field = Field(kind, 0, place, size - place, address)
    reach = 1 << rng.choice([8, 14, 22, 26])
    starts = sorted(rng.sample(range(max(0, address - reach), address + reach), rng.randrange(2, 12)))
    shifts = Shifts(starts, [0, *(rng.randrange(-40, 40) * rng.choice([1, 2, 4]) for _ in starts[1:]), 0])
    window, wanted = bytearray(before), bytearray(before)
    move(window, Fields([shifts], [field], []))
    SLOWLY[kind](wanted, field, shifts)
    assert window == wanted


def moved(kind: Kind, code: bytes, shifts: Shifts, address: int = 0x1000) -> bytes:
    window = bytearray(code)
    move(window, Fields([shifts], [Field(kind, 0, 0, len(code), address)], []))
    return bytes(window)


GROWN = Shifts([0x1000, 0x8000, 0x2000000], [0, 0, 0x1236, 0])  # what begins at 0x8000 moves behind


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        # What an assembler makes of these at 0x1000, for a target of 0x8000 and of 0x9236.
        pytest.param(Kind.T32, "06f0feff", "08f019f9", id="bl"),
        pytest.param(Kind.T32, "06f0febf", "08f019b9", id="b.w"),
        pytest.param(Kind.T32, "06f0fe87", "08f01981", id="b.w with a condition"),
        pytest.param(Kind.A32, "fe1b00eb", "8b2000eb", id="a32, not a multiple of four"),
    ],
)
def test_branches_as_an_assembler_writes_them(kind: Kind, before: str, after: str) -> None:
    code, wanted = bytes.fromhex(before), bytes.fromhex(after)
    found = moved(kind, code + b"\x00\xbf\x00\xbf", GROWN)
    assert found[:4] == (code if kind is Kind.A32 else wanted)


def test_a_literal_moves_with_what_it_refers_to() -> None:
    code = struct.pack("<HHI", 0x4B00, 0x447B, 0x8010 - 0x1006)  # ldr r3, [pc]; add r3, pc
    assert struct.unpack("<HHI", moved(Kind.T32_LITERALS, code, GROWN))[2] == 0x8010 + 0x1236 - 0x1006
    a32 = struct.pack("<III", 0xE59F3000, 0xE08F3003, 0x8010 - 0x100C)
    assert struct.unpack("<III", moved(Kind.A32_LITERALS, a32, GROWN))[2] == 0x8010 + 0x1236 - 0x100C


def test_a_literal_outside_the_field_stays() -> None:
    code = struct.pack("<HHI", 0x4B7F, 0x447B, 0x7000)
    assert moved(Kind.T32_LITERALS, code, GROWN) == code


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_fields_too_short_for_an_instruction_are_survived(kind: Kind, size: int) -> None:
    code = b"\xff\xf7\xfe\xff\x00\x4b\x7b"[:size]
    assert len(moved(kind, code, GROWN)) == size


@pytest.mark.parametrize("kind", KINDS)
def test_code_takes_little_memory(kind: Kind) -> None:
    rng = random.Random(5)
    shapes = {
        Kind.T32: lambda: struct.pack("<HH", 0xF000 | rng.randrange(2048), 0xF800 | rng.randrange(2048)),
        Kind.A32: lambda: struct.pack("<I", 0xEB000000 | rng.randrange(1 << 20)),
        Kind.T32_LITERALS: lambda: struct.pack("<HHI", 0x4B00, 0x447B, rng.randrange(1 << 22)),
        Kind.A32_LITERALS: lambda: struct.pack("<III", 0xE59F3000, 0xE08F3003, rng.randrange(1 << 22)),
    }
    window = bytearray(b"".join(shapes[kind]() for _ in range(1 << 14)))
    shifts = Shifts([0, 1 << 21, 1 << 25], [0, 16, -16, 0])
    tracemalloc.start()
    try:
        move(window, Fields([shifts], [Field(kind, 0, 0, len(window), 0)], []))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5 << 20


def test_targets_that_are_known_do_not_grow_without_end() -> None:
    targets = arm.KnownShifts(Shifts([0, 1 << 21, 1 << 22], [0, 16, -16, 0]))
    for target in range(0, 1 << 22, 64):
        assert targets.find(target) == (16 if target < 1 << 21 else -16)
    assert len(targets) <= 1 << 14
    assert targets.find(1 << 22) is None
