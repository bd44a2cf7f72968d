"""Patch parts: a segment made from ranges of the base, the bytes that differ, and the bytes that are new.

A patch is a row of steps; the outputs of those that are not kept back, one behind the other, are the segment.

    step      codec u8 (128 more: kept back), output size, program size, packed size (varints), then the
              packed program

The output of a step that is kept back is the beginning of the next step's window: so bytes that were packed
again, cheaply and not quite as they should be, are mended. The program's layout is in `program`. The result
is worth nothing until it has the segment's signed hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload import program as programs
from twinlock.core.payload.base import Base
from twinlock.core.payload.bytewise import add_runs
from twinlock.core.payload.moving import finish, move
from twinlock.core.payload.program import Program
from twinlock.core.payload.repack import packed, repack
from twinlock.core.payload.streams import unpack
from twinlock.core.payload.varints import Reader
from twinlock.core.payload.window import read_window

if TYPE_CHECKING:
    from twinlock.core.payload.repack import Packer

KEPT_BACK: Final = 128


def decode(
    encoded: bytes | memoryview, length_bytes: int, number: int, base: Base, packer: Packer = packed
) -> bytes | bytearray:
    """The segment's `length_bytes` bytes; what is packed again is packed by `packer`.

    Raises TrustError `payload-malformed` or `format-unknown`, CompatibilityError `delta-library` or
    `delta-base`, and what `base` raises.
    """
    reader = Reader(encoded, number)
    outputs = []
    kept = bytearray()
    left = length_bytes
    for _ in range(limits.STEPS_MAX):
        if not left:
            break
        codec = reader.take(1)[0]
        keeps = codec >= KEPT_BACK
        room_bytes = limits.KEPT_SIZE_BYTES_MAX if keeps else left
        output = _step(reader, codec % KEPT_BACK, room_bytes, number, base, kept, packer)
        kept = output if keeps else bytearray()
        if not keeps:
            outputs.append(output)
            left -= len(output)
    reader.end()
    if left:
        raise error("payload-malformed", f"part {number} does not decode to {length_bytes} bytes")
    return outputs[0] if len(outputs) == 1 else b"".join(outputs)


def _step(
    reader: Reader, codec: int, room_bytes: int, number: int, base: Base, kept: bytearray, packer: Packer
) -> bytearray:
    output_size_bytes = reader.value(room_bytes, "output", 1)
    program_size_bytes = reader.value(limits.PROGRAM_SIZE_BYTES_MAX, "program", 1)
    compressed = reader.take(reader.value(limits.PART_SIZE_BYTES_MAX, "packed program", 1))
    plain = unpack(codec, compressed, program_size_bytes, number)
    program = programs.parse(plain, output_size_bytes, number, len(kept))
    window = read_window(base, program, number, kept)
    move(window, program.fields)
    text = apply(program, window)
    del window
    finish(text, program.fields)
    if not program.packs:
        return text
    return repack(text, program.packs, output_size_bytes, number, packer)


def apply(program: Program, window: bytearray) -> bytearray:
    """What covers, literals and differences of a checked program make; `window` is complete and moved."""
    text = bytearray(program.text_size_bytes)
    into, out_of, literals = memoryview(text), memoryview(window), program.literals
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
    add_runs(into, *program.runs, program.differences)
    return text
