"""What saves too few bytes for a device's time is left out; what saves many stays."""

from __future__ import annotations

import random
import struct

import pytest

from twinlock.core.payload.fields import Field, Fields, Kind, Shifts
from twinlock.core.payload.moving import move
from twinlock.publish.delta.covers import Cover
from twinlock.publish.delta.fields.worth import without, worthwhile
from twinlock.publish.delta.price import Price

SIZE = 64 * 1024
CHEAP = Price()
DEAR = Price(1 << 40)  # no field saves so many bytes in a second
# Every 256 bytes something grew.
SHIFTS = Shifts(
    list(range(0, 4 * SIZE, 256)), [0, *(random.Random(2).sample(range(4096), 4 * SIZE // 256 - 1)), 0]
)


def words(rng: random.Random) -> bytes:
    """Addresses, all different."""
    return struct.pack(f"<{SIZE // 4}I", *rng.sample(range(SIZE), SIZE // 4))


def code(rng: random.Random) -> bytes:
    """A call of some place behind it, every eight bytes."""
    return b"".join(
        b"\xe8" + struct.pack("<i", rng.randrange(1 << 16)) + b"\x90" * 3 for _ in range(SIZE // 8)
    )


def field(kind: Kind) -> Field:
    if kind is Kind.WORDS:
        return Field(kind, 0, 0, SIZE, 0, 4, SIZE // 4)
    return Field(kind, 0, 0, SIZE, 0x1000)


def judged(kind: Kind, plain: bytes, copied: int, price: Price = CHEAP) -> Fields:
    """The fields that are left of one, when the text has that many bytes of the moved window."""
    fields = Fields([SHIFTS], [field(kind)], [])
    window = bytearray(plain)
    move(window, fields)
    assert window != plain
    return worthwhile(plain, window, bytes(window[:copied]), [Cover(0, 0, copied)], fields, price)


@pytest.mark.parametrize("kind", [Kind.WORDS, Kind.X86])
def test_fields_stay_when_the_text_has_what_they_move(kind: Kind) -> None:
    plain = words(random.Random(1)) if kind is Kind.WORDS else code(random.Random(1))
    assert judged(kind, plain, SIZE).window == [field(kind)]


@pytest.mark.parametrize("kind", [Kind.WORDS, Kind.X86])
def test_fields_go_when_the_text_has_little_of_it(kind: Kind) -> None:
    plain = words(random.Random(1)) if kind is Kind.WORDS else code(random.Random(1))
    assert judged(kind, plain, 64).window == []


@pytest.mark.parametrize("kind", [Kind.WORDS, Kind.X86])
def test_fields_go_when_time_is_dear(kind: Kind) -> None:
    plain = words(random.Random(1)) if kind is Kind.WORDS else code(random.Random(1))
    assert judged(kind, plain, SIZE, DEAR).window == []


@pytest.mark.parametrize(("price", "stay"), [(CHEAP, True), (DEAR, False)])
def test_what_is_finished_in_the_text_goes_with_what_is_moved_for_it(price: Price, *, stay: bool) -> None:
    """A table of distances to a place that moved: each is another number unless all are made addresses."""
    count = SIZE // 4
    rows = Field(Kind.RELATIVE, 0, 0, SIZE, 4 * SIZE, 4, count)
    inodes = Field(Kind.INODES, 0, 0, 6, stride=256, count=1)
    fields = Fields([SHIFTS], [rows], [rows, inodes])
    rng = random.Random(1)
    places = [4 * SIZE + 4 * index for index in range(count)]
    targets = [rng.randrange(256, SIZE) for _ in range(count)]
    pairs = list(zip(targets, places, strict=True))
    plain = struct.pack(f"<{count}i", *(target - place for target, place in pairs))
    text = struct.pack(f"<{count}i", *(target + SHIFTS.of(target) - place for target, place in pairs))
    window = bytearray(plain)
    move(window, fields)
    kept = worthwhile(plain, window, text, [Cover(0, 0, SIZE)], fields, price)
    assert kept == (fields if stay else Fields([SHIFTS], [], [inodes]))


def test_a_kind_goes_as_a_whole() -> None:
    fields = Fields([SHIFTS], [field(Kind.WORDS), field(Kind.X86), field(Kind.WORDS)], [])
    assert without(fields, {Kind.WORDS}).window == [field(Kind.X86)]
    assert without(fields, set()) == fields
