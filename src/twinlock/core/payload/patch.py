"""Patch parts: a segment made from ranges of the base, the bytes that differ, and the bytes that are new.

A patch is a row of steps; their outputs, one behind the other, are the segment.

    step      codec u8, output size, program size, packed size (varints), then the packed program
    program   control (size as varint first), literals, differences

The control, all varints, columns one behind the other:

    ranges    count; offsets relative to the end of the range before (signed); lengths.
              The ranges of the base, one behind the other, are the window.
    covers    count; places in the window, relative to the end of the cover before (signed); gaps; lengths.
              The output is, for each cover, `gap` literals and then `length` bytes of the window; literals
              fill what remains.
    runs      count; gaps; lengths. Stretches of the output to which differences are added, byte by byte,
              modulo 256.

Everything that sizes memory is bounded and checked before it is allocated; the result is worth nothing until
it has the segment's signed hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload.base import Base, decode_ranges, read_ranges
from twinlock.core.payload.bytewise import add_into
from twinlock.core.payload.streams import unpack
from twinlock.core.payload.varints import Reader

if TYPE_CHECKING:
    from array import array


@dataclass(frozen=True, slots=True)
class Covers:
    """Which pieces of the window the output is made of: places, the literals before each, lengths."""

    places: array[int]
    gaps: array[int]
    lengths: array[int]


@dataclass(frozen=True, slots=True)
class Program:
    """One step, parsed and checked: every index lies within the window, the output or the program."""

    output_size_bytes: int
    window_size_bytes: int
    ranges: list[tuple[int, int]]
    covers: Covers
    runs: tuple[array[int], array[int]]
    literals: memoryview
    differences: memoryview


def decode(encoded: bytes | memoryview, length_bytes: int, number: int, base: Base) -> bytearray:
    """The segment's `length_bytes` bytes. Raises TrustError `payload-malformed`, or what `base` raises."""
    reader = Reader(encoded, number)
    segment = bytearray()
    for _ in range(limits.STEPS_MAX):
        if len(segment) == length_bytes:
            break
        segment += _step(reader, length_bytes - len(segment), number, base)
    reader.end()
    if len(segment) != length_bytes:
        raise error("payload-malformed", f"part {number} does not decode to {length_bytes} bytes")
    return segment


def _step(reader: Reader, room_bytes: int, number: int, base: Base) -> bytearray:
    codec = reader.take(1)[0]
    output_size_bytes = reader.value(room_bytes, "output", 1)
    program_size_bytes = reader.value(limits.PROGRAM_SIZE_BYTES_MAX, "program", 1)
    packed = reader.take(reader.value(limits.PART_SIZE_BYTES_MAX, "packed program", 1))
    program = parse(unpack(codec, packed, program_size_bytes, number), output_size_bytes, number)
    window = read_ranges(base, program.ranges, program.window_size_bytes, number)
    return apply(program, window)


def parse(data: bytes, output_size_bytes: int, number: int) -> Program:
    """The program in `data`, every bound checked. Raises TrustError `payload-malformed`."""
    whole = Reader(data, number)
    control = Reader(whole.take(whole.value(len(data), "control")), number)
    ranges = decode_ranges(control, number)
    window_size_bytes = sum(length for _, length in ranges)
    if window_size_bytes > limits.REFERENCE_SIZE_BYTES_MAX:
        raise error("payload-malformed", f"part {number} wants {window_size_bytes} bytes of the base at once")
    covers = _covers(control, window_size_bytes, number)
    count = control.value(limits.DIFF_RUNS_MAX, "runs")
    runs = control.column(count), control.column(count)
    control.end()
    if sum(runs[0]) + sum(runs[1]) > output_size_bytes:
        raise error("payload-malformed", f"part {number} has differences behind its output")
    literal_count = output_size_bytes - sum(covers.lengths)
    if literal_count < sum(covers.gaps):
        raise error("payload-malformed", f"part {number} covers more than its output")
    literals = whole.take(literal_count)
    differences = whole.take(sum(runs[1]))
    whole.end()
    return Program(output_size_bytes, window_size_bytes, ranges, covers, runs, literals, differences)


def _covers(control: Reader, window_size_bytes: int, number: int) -> Covers:
    count = control.value(limits.COVERS_MAX, "covers")
    distances, gaps, lengths = control.signed_column(count), control.column(count), control.column(count)
    end = 0
    for index, (distance, length) in enumerate(zip(distances, lengths, strict=True)):
        place = end + distance
        end = place + length
        if place < 0 or end > window_size_bytes:
            raise error("payload-malformed", f"part {number} copies from outside its window")
        distances[index] = place
    return Covers(distances, gaps, lengths)


def apply(program: Program, window: bytearray) -> bytearray:
    """The output of a checked program; `window` has the bytes of its ranges."""
    output = bytearray(program.output_size_bytes)
    into, out_of, literals = memoryview(output), memoryview(window), program.literals
    position = taken = 0
    covers = program.covers
    for place, gap, length in zip(covers.places, covers.gaps, covers.lengths, strict=True):
        if gap:
            into[position : position + gap] = literals[taken : taken + gap]
            position += gap
            taken += gap
        into[position : position + length] = out_of[place : place + length]
        position += length
    into[position:] = literals[taken:]
    gaps, lengths = program.runs
    starts = accumulate(gaps[index] + (lengths[index - 1] if index else 0) for index in range(len(gaps)))
    read = 0
    for start, length in zip(starts, lengths, strict=True):
        add_into(into[start : start + length], program.differences[read : read + length])
        read += length
    return output
