"""Laws of delta parts: what is encoded decodes to itself, and nothing else than an error comes of damage."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.payload import patch, streams
from twinlock.core.payload.base import BytesBase, decode_ranges
from twinlock.core.payload.parts import Part, Patch, Prefix, check_part, decode_part
from twinlock.core.payload.varints import Reader, encode, fold
from twinlock.publish.delta.covers import Cover, find_covers
from twinlock.publish.delta.model import Ref
from twinlock.publish.delta.program import build_program, encode_ranges, pack, pack_step
from twinlock.publish.delta.segments import prefix_part
from twinlock.publish.delta.trim import trimmed

seeds = st.integers(0, 2**32 - 1)


def words(rng: random.Random, size_bytes: int) -> bytes:
    pool = [rng.randbytes(rng.randrange(2, 9)) for _ in range(200)]
    out = bytearray()
    while len(out) < size_bytes:
        out += rng.choice(pool)
    return bytes(out[:size_bytes])


def edited(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randrange(30)):
        at = rng.randrange(len(out))
        kind = rng.randrange(3)
        if kind == 0:
            out[at] = rng.randrange(256)
        elif kind == 1:
            out[at:at] = rng.randbytes(rng.randrange(1, 300))
        else:
            del out[at : at + rng.randrange(1, 300)]
    return bytes(out) or b"\0"


def some_ranges(rng: random.Random, size_bytes: int) -> list[tuple[int, int]]:
    """Ranges of a base of that size, in any order, overlapping at will."""
    found = []
    for _ in range(rng.randrange(1, 8)):
        offset = rng.randrange(size_bytes)
        found.append((offset, rng.randrange(1, size_bytes - offset + 1)))
    return found


def part_of(kind: type[Patch | Prefix], data: bytes) -> Part:
    part = kind(len(data), hashlib.sha256(data).digest())
    check_part(part)
    return part


def outcome(step: Callable[[], bytes | bytearray]) -> int | str:
    """How many bytes came out, or the code of the error; anything else fails the test."""
    try:
        return len(step())
    except TwinlockError as problem:
        return problem.code


def patched(rng: random.Random, base: bytes, plain: bytes) -> bytes:
    return pack_step(patched_program(rng, base, plain), len(plain))


def patched_program(rng: random.Random, base: bytes, plain: bytes) -> bytes:
    ranges = some_ranges(rng, len(base))
    window = b"".join(base[offset : offset + length] for offset, length in ranges)
    refs, covers = trimmed([Ref(None, *found) for found in ranges], find_covers(window, plain))
    window = b"".join(base[ref.offset : ref.end] for ref in refs)
    return build_program(refs, window, plain, covers)


@given(seeds)
@settings(max_examples=40)
def test_a_patch_decodes_to_what_was_encoded(seed: int) -> None:
    rng = random.Random(seed)
    base = words(rng, rng.randrange(1, 20_000))
    plain = edited(rng, base)
    data = patched(rng, base, plain)
    assert decode_part(part_of(Patch, data), data, len(plain), 0, BytesBase(base)) == plain


@given(seeds)
@settings(max_examples=40)
def test_steps_are_joined(seed: int) -> None:
    rng = random.Random(seed)
    base = words(rng, 6_000)
    plains = [edited(rng, base) for _ in range(rng.randrange(1, 5))]
    data = b"".join(patched(rng, base, plain) for plain in plains)
    whole = b"".join(plains)
    assert decode_part(part_of(Patch, data), data, len(whole), 0, BytesBase(base)) == whole


@given(seeds)
@settings(max_examples=40)
def test_what_a_step_keeps_back_is_there_for_the_next_one_alone(seed: int) -> None:
    rng = random.Random(seed)
    base = words(rng, 6_000)
    draft, last = edited(rng, base), edited(rng, base)
    plain = edited(rng, draft)
    window = draft + base[100:900]
    mending = build_program([Ref(None, 100, 800)], window, plain, find_covers(window, plain))
    kept = pack_step(patched_program(rng, base, draft), len(draft), kept_back=True)
    data = kept + pack_step(mending, len(plain)) + patched(rng, base, last)
    whole = plain + last
    assert decode_part(part_of(Patch, data), data, len(whole), 0, BytesBase(base)) == whole


@given(seeds)
@settings(max_examples=40)
def test_a_prefix_part_decodes_to_what_was_encoded(seed: int) -> None:
    rng = random.Random(seed)
    base = words(rng, rng.randrange(2000, 20_000))
    plain = edited(rng, base)
    ranges = [(rng.randrange(1000), 900), (0, len(base))]
    window = b"".join(base[offset : offset + length] for offset, length in ranges)
    data = prefix_part(plain, window, ranges)
    assert decode_part(part_of(Prefix, data), data, len(plain), 0, BytesBase(base)) == plain


@given(seeds, st.sampled_from([Patch, Prefix]))
@settings(max_examples=150)
def test_damage_gives_an_error_or_other_bytes_and_allocates_no_more(
    seed: int, kind: type[Patch | Prefix]
) -> None:
    """Hashes catch damage before; this is what a decoder does whose hashes were forged as well."""
    rng = random.Random(seed)
    base = words(rng, 6_000)
    plain = edited(rng, base)
    data = bytearray(
        patched(rng, base, plain) if kind is Patch else prefix_part(plain, base, [(0, len(base))])
    )
    for _ in range(rng.randrange(1, 4)):
        choice = rng.randrange(3)
        at = rng.randrange(min(len(data), rng.choice([40, len(data)])))
        if choice == 0:
            data[at] = rng.randrange(256)
        elif choice == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 6))
        else:
            del data[at : at + rng.randrange(1, 6)]
        data = data or bytearray(b"\0")
    part, encoded = part_of(kind, bytes(data)), bytes(data)
    tracemalloc.start()
    decoded = outcome(lambda: decode_part(part, encoded, len(plain), 0, BytesBase(base)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decoded in (len(plain), "payload-malformed", "format-unknown", "delta-base")
    assert peak < 16 * limits.MIB


@given(seeds)
@settings(max_examples=200)
def test_any_program_is_refused_or_gives_output(seed: int) -> None:
    """Programs behind a good compressor: every number of the control is drawn at will."""
    rng = random.Random(seed)

    def number() -> int:
        return rng.choice([0, 1, 2, 3, 7, 100, 5000, 2**20, 2**35])

    columns = [number() for _ in range(rng.randrange(1, 40))]
    control = b"".join(map(encode, columns))
    program = encode(len(control)) + control + rng.randbytes(rng.choice([0, 10, 5000]))
    codec, packed = pack(program)
    size_bytes = rng.choice([1, 10, 5000])
    step = bytes([codec]) + encode(size_bytes) + encode(len(program)) + encode(len(packed)) + packed
    decoded = outcome(lambda: patch.decode(step, size_bytes, 0, BytesBase(bytes(6000))))
    assert decoded in (size_bytes, "payload-malformed", "format-unknown", "delta-base")


@given(st.lists(st.integers(0, 2**42 - 1), max_size=50))
def test_numbers_come_back(values: list[int]) -> None:
    reader = Reader(b"".join(map(encode, values)), 0)
    assert reader.column(len(values)).tolist() == values
    reader.end()


@given(st.lists(st.integers(-(2**40), 2**40), max_size=50))
def test_signed_numbers_come_back(values: list[int]) -> None:
    reader = Reader(b"".join(encode(fold(value)) for value in values), 0)
    assert reader.signed_column(len(values)).tolist() == values


@given(st.binary(max_size=2000), st.sampled_from(sorted(streams.LZMA_PROPERTIES)))
def test_any_bytes_as_a_compressed_program_end_in_an_error_or_in_their_size(data: bytes, codec: int) -> None:
    unpacked = outcome(lambda: streams.unpack(codec, memoryview(data), 1000, 0))
    assert unpacked in (1000, "payload-malformed")


@given(seeds)
def test_trimming_keeps_what_covers_copy(seed: int) -> None:
    rng = random.Random(seed)
    base = rng.randbytes(50_000)
    ranges = some_ranges(rng, len(base))
    window = b"".join(base[offset : offset + length] for offset, length in ranges)
    covers, start = [], 0
    for _ in range(rng.randrange(12)):
        length = rng.randrange(1, min(len(window), 3000) + 1)
        covers.append(Cover(rng.randrange(len(window) - length + 1), start, length))
        start += length
    smaller, moved = trimmed([Ref(None, *found) for found in ranges], covers)
    rest = b"".join(base[ref.offset : ref.end] for ref in smaller)
    assert len(rest) <= len(window)
    for before, after in zip(covers, moved, strict=True):
        assert (
            rest[after.place : after.place + after.length]
            == window[before.place : before.place + before.length]
        )


@given(seeds)
def test_ranges_come_back(seed: int) -> None:
    ranges = some_ranges(random.Random(seed), 1 << 35)
    reader = Reader(encode_ranges(ranges), 0)
    assert decode_ranges(reader, 0) == ranges
