"""Executables: what moved is found, a patch with its addresses is smaller, and decodes to the same bytes."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.publish.delta.elves import A32, ARM, ARM64, X86_64, Build
from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.payload.fields import Field, Fields, Kind, Shifts, decode_fields
from twinlock.core.payload.moving import finish, move, unfinish
from twinlock.core.payload.parts import Patch
from twinlock.core.payload.varints import Reader, encode
from twinlock.publish.delta.executables import Known
from twinlock.publish.delta.fields.analysis import Analysis, analyse
from twinlock.publish.delta.fields.elf import parse
from twinlock.publish.delta.fields.writing import encode_fields
from twinlock.publish.delta.files.model import Extent, ImageFile, ImageMap
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.pairing import Pairing
from twinlock.publish.delta.price import Price
from twinlock.publish.delta.references import Reference
from twinlock.publish.delta.segments import Encoder
from twinlock.publish.delta.stretches import KernelCutter

GROWN = frozenset({3, 40, 41, 77, 120})
NAME = "bin/tool"
SMALL = Build(seed=5).elf()


def pair(machine: int = X86_64, *, kernel: bool = False) -> tuple[bytes, bytes]:
    old = Build(machine=machine, kernel=kernel).elf()
    new = Build(machine=machine, kernel=kernel, grown=GROWN).elf()
    assert old != new
    return old, new


def analysed(old: bytes, new: bytes) -> Analysis:
    found = analyse(old, new)
    assert found is not None
    return found


def patch_bytes(folder: Path, old: bytes, new: bytes, found: Analysis | None) -> int:
    """Bytes of the part that makes `new` out of `old`; the encoder proves it by decoding it."""
    maps = []
    for name, data in (("old", old), ("new", new)):
        (folder / name).write_bytes(data + bytes(-len(data) % 4096))
        maps.append(ImageMap((ImageFile(NAME, len(data), (Extent(0, 0, len(data)),)),)))
    pairing = Pairing(maps[0].files)
    known = {} if found is None else {NAME: Known(NAME, NAME, found)}
    with Image(folder / "old") as base, Image(folder / "new") as image:
        reference = Reference(maps[0], maps[1], pairing, len(base))
        cutter = KernelCutter(base, image, maps[1], pairing, ())
        encoder = Encoder(base, image, reference, cutter, Price())
        encoded = encoder.encode(0, known)
    assert isinstance(encoded.part, Patch)
    return len(encoded.data)


@pytest.mark.parametrize(
    ("machine", "kernel"), [(X86_64, False), (X86_64, True), (ARM64, False), (ARM, False), (A32, False)]
)
def test_moved_addresses_cost_next_to_nothing(tmp_path: Path, machine: int, kernel: bool) -> None:
    old, new = pair(machine, kernel=kernel)
    with_addresses = patch_bytes(tmp_path, old, new, analysed(old, new))
    without = patch_bytes(tmp_path, old, new, None)
    print(machine, kernel, with_addresses, without)
    assert with_addresses < 0.6 * without


def test_what_is_found_in_a_program() -> None:
    old, new = pair()
    kinds = {place.field.kind for place in analysed(old, new).window}
    assert kinds == {Kind.X86, Kind.WORDS, Kind.FRAMES}
    assert {place.field.kind for place in analysed(old, new).text} == {Kind.FRAMES}


def test_what_is_found_in_a_kernel() -> None:
    """Operands that the relocations list, and tables relative to themselves."""
    old, new = pair(kernel=True)
    kinds = {place.field.kind for place in analysed(old, new).window}
    assert kinds == {Kind.X86, Kind.WORDS, Kind.RELATIVE, Kind.LISTED}


@pytest.mark.parametrize(
    ("machine", "code"),
    [(ARM, {Kind.T32, Kind.T32_LITERALS}), (A32, {Kind.A32, Kind.A32_LITERALS})],
)
def test_what_is_found_in_a_program_of_32_bit_arm(machine: int, code: set[Kind]) -> None:
    """Its instruction set is told from its branches: the file's header does not say it."""
    old, new = pair(machine)
    found = analysed(old, new)
    assert {place.field.kind for place in found.window} == {*code, Kind.WORDS}
    assert not found.text


@pytest.mark.parametrize("machine", [ARM, A32])
def test_each_kind_of_arm_field_makes_a_patch_smaller(tmp_path: Path, machine: int) -> None:
    old, new = pair(machine)
    found = analysed(old, new)
    whole = patch_bytes(tmp_path, old, new, found)
    for kind in sorted({place.field.kind for place in found.window} - {Kind.A32_LITERALS}):
        window = tuple(place for place in found.window if place.field.kind is not kind)
        assert whole < 0.95 * patch_bytes(tmp_path, old, new, replace(found, window=window)), kind


def test_shifts_are_those_of_the_functions() -> None:
    before, after = Build(), Build(grown=GROWN)
    found = analysed(before.elf(), after.elf())
    shifts = found.shifts.core()
    for number, start in enumerate(before.starts):
        assert shifts.of(start) == after.starts[number] - start


def test_no_analysis_of_what_is_no_pair_of_programs() -> None:
    old, new = pair()
    arm, _ = pair(ARM64)
    assert analyse(old, arm) is None
    assert analyse(old, b"#!/bin/sh\n") is None
    assert analyse(b"", new) is None
    relocatable = bytearray(new)
    struct.pack_into("<H", relocatable, 16, 1)
    assert analyse(old, bytes(relocatable)) is None


def test_a_machine_whose_code_is_not_known_still_has_tables() -> None:
    old, new = (bytearray(data) for data in pair())
    for data in (old, new):
        struct.pack_into("<H", data, 18, 243)  # RISC-V
    kinds = {place.field.kind for place in analysed(bytes(old), bytes(new)).window}
    assert Kind.WORDS in kinds
    assert not kinds & {Kind.X86, Kind.ARM64}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_any_damage_to_a_program_is_survived(seed: int) -> None:
    """Headers at will: there is an analysis or none, and nothing else."""
    rng = random.Random(seed)
    data = bytearray(SMALL)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(rng.choice([64, 600, len(data)]))
        data[at : at + 4] = rng.choice([rng.randbytes(4), b"\xff" * 4, bytes(4)])
    cut = bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
    parse(cut)
    analyse(SMALL, cut)
    analyse(cut, SMALL)


# --- the arithmetic, and what a decoder is told ------------------------------------------------------------

SHIFTS = Shifts([100, 200, 300], [0, 7, -5, 0])


def moved(kind: Kind, window: bytes, **named: int) -> bytes:
    data = bytearray(window)
    field = Field(kind, 0, **{"place": 0, "length": len(window), **named})
    move(data, Fields([SHIFTS], [field], []))
    return bytes(data)


def test_words_move_by_what_they_refer_to() -> None:
    window = struct.pack("<4Q", 99, 100, 250, 300)
    assert struct.unpack("<4Q", moved(Kind.WORDS, window, stride=8, count=4, width=8)) == (99, 107, 245, 300)
    odd = struct.pack("<IHIH", 150, 1, 250, 2)
    assert struct.unpack("<IHIH", moved(Kind.WORDS, odd, stride=6, count=2, length=10)) == (157, 1, 245, 2)


def test_a_bias_makes_addresses_of_numbers_and_adjusting_them_moves_all() -> None:
    window = struct.pack("<2I", 2**32 - 10, 40)
    found = moved(Kind.WORDS, window, stride=4, count=2, bias=110, adjust=1)
    assert struct.unpack("<2I", found) == (2**32 - 10 + 7 + 1, 48)


def test_relative_numbers_become_moved_addresses_and_are_finished_in_the_text() -> None:
    window = struct.pack("<2i", 150 - 1000, 250 - 1004)
    found = moved(Kind.RELATIVE, window, address=1000, stride=4, count=2)
    assert struct.unpack("<2I", found) == (157, 245)
    text = bytearray(found)
    field = Field(Kind.RELATIVE, 0, 0, 8, 2000, 4, 2)
    finish(text, Fields([], [], [field]))
    assert struct.unpack("<2i", text) == (157 - 2000, 245 - 2004)
    unfinish(text, Fields([], [], [field]))
    assert bytes(text) == found


def test_branches_move_by_where_they_are_and_where_they_go() -> None:
    code = b"\xe8" + struct.pack("<i", 250 - 105) + bytes(5)  # at 100, from which all moves by 7
    assert struct.unpack_from("<i", moved(Kind.X86, code, address=100), 1)[0] == 250 - 105 - 5 - 7
    far = b"\xe8" + struct.pack("<i", 900) + bytes(5)
    assert moved(Kind.X86, far, address=100) == far
    word = struct.pack("<2I", 0x94000000 | (260 - 100) // 4, 0xD503201F)
    shifts = Shifts([100, 200, 300], [0, 8, -8, 0])
    data = bytearray(word)
    move(data, Fields([shifts], [Field(Kind.ARM64, 0, 0, 8, 100)], []))
    assert struct.unpack("<2I", data) == (0x94000000 | (260 - 100 - 16) // 4, 0xD503201F)


def test_listed_words_are_found_by_their_table() -> None:
    window = struct.pack("<3I", 0, 150, 0) + struct.pack("<2I", 1004, 9999)
    found = moved(Kind.LISTED, window, length=12, address=1000, count=2, table=12)
    assert struct.unpack_from("<3I", found) == (0, 157, 0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_any_fields_are_refused_or_move_something(seed: int) -> None:
    """Every number of maps and fields at will: an error of ours, or a window as long as before."""
    rng = random.Random(seed)
    size = rng.choice([1, 40, 3000])

    def number() -> int:
        return rng.choice([0, 1, 2, 3, 4, 8, 12, 20, 33, size, 2 * size, 2**20, 2**33, 2**41])

    control = b"".join(
        bytes([rng.randrange(12)]) if rng.random() < 0.3 else encode(number()) for _ in range(60)
    )
    window = bytearray(rng.randbytes(size))
    assert outcome(control, window) in ("payload-malformed", "format-unknown", "moved")
    assert len(window) == size


def outcome(control: bytes, window: bytearray) -> str:
    try:
        fields = decode_fields(Reader(control, 0), len(window), len(window), 0)
    except TwinlockError as problem:
        return problem.code
    move(window, fields)
    finish(window, fields)
    return "moved"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_fields_come_back_and_move_any_window(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(301, 4000)
    maps = [_map(rng) for _ in range(rng.randrange(1, 4))]
    window = [_field(rng, size, len(maps), rng.choice(list(Kind))) for _ in range(rng.randrange(6))]
    text = [_field(rng, size, 1, rng.choice([Kind.RELATIVE, Kind.FRAMES])) for _ in range(3)]
    text += [_inodes(rng, size, in_text=True) for _ in range(rng.randrange(2))]
    fields = Fields(maps, window, text)
    reader = Reader(encode_fields(fields), 0)
    assert decode_fields(reader, size, size, 0) == fields
    reader.end()
    data = bytearray(rng.choice([rng.randbytes(size), bytes(size), b"\x10\0\0\0" * size])[:size])
    move(data, fields)
    before = bytes(data)
    finish(data, fields)
    assert len(data) == size
    if any(field.kind is Kind.INODES for field in text):
        return  # what their checksums were is gone
    disjoint = sorted((field.place, field.place + field.length) for field in text)
    if all(one[1] <= two[0] for one, two in pairwise(disjoint)):
        unfinish(data, fields)
        assert bytes(data) == before


def _map(rng: random.Random) -> Shifts:
    count = rng.randrange(1, 8)
    starts = sorted(rng.sample(range(5000), count + 1))
    return Shifts(starts, [0, *(rng.randrange(-300, 300) for _ in range(count)), 0])


def _inodes(rng: random.Random, size: int, *, in_text: bool) -> Field:
    stride = rng.randrange(132, 300)
    count = rng.randrange(1, max(2, size // stride))
    length = stride * count if in_text else stride * (count - 1) + 8
    place = rng.randrange(size - length)
    if not in_text:
        return Field(Kind.INODES, 0, place, length, stride=stride, count=count)
    seed, number = rng.getrandbits(32), rng.getrandbits(31)
    return Field(Kind.INODES, 0, place, length, stride=stride, count=count, seed=seed, number=number)


def _field(rng: random.Random, size: int, maps: int, kind: Kind) -> Field:
    if kind is Kind.INODES:
        return _inodes(rng, size, in_text=False)
    which = rng.randrange(maps)
    place = rng.randrange(size - 40)
    room = size - place
    if kind in (Kind.WORDS, Kind.RELATIVE):
        width = rng.choice([4, 8]) if kind is Kind.WORDS else 4
        stride = rng.randrange(width, 30)
        count = rng.randrange(1, (room - width) // stride + 2)
        length = stride * (count - 1) + width
        if kind is Kind.WORDS:
            bias, adjust = rng.randrange(-50, 50), rng.randrange(-50, 50)
            return Field(kind, which, place, length, 0, stride, count, width, bias, adjust)
        return Field(kind, which, place, length, rng.randrange(9000), stride, count)
    length = rng.randrange(8, room)
    address = rng.randrange(9000)
    if kind is Kind.LISTED:
        count = rng.randrange(1, 8)
        table = rng.randrange(size - 4 * count)
        return Field(kind, which, place, length, address, 4, count, rng.choice([4, 8]), 3, 0, table)
    return Field(kind, which, place, length, address)


def test_more_points_and_fields_than_allowed_are_refused() -> None:
    many = Shifts(list(range(limits.FIELD_POINTS_MAX + 2)), [0] * (limits.FIELD_POINTS_MAX + 3))
    data = encode_fields(Fields([many], [], []))
    with pytest.raises(TwinlockError, match="points"):
        decode_fields(Reader(data, 0), 10, 10, 0)
    field = Field(Kind.X86, 0, 0, 100, 0)
    data = encode_fields(Fields([SHIFTS], [field] * 50, []))
    with pytest.raises(TwinlockError, match="again and again"):
        decode_fields(Reader(data, 0), 100, 10, 0)
    data = encode_fields(Fields([], [field], []))
    with pytest.raises(TwinlockError, match="no map"):
        decode_fields(Reader(data, 0), 100, 10, 0)
