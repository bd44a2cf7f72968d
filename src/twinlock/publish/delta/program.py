"""Writing the steps of a patch: control numbers, literals and differences, compressed as small as they get.

The layout is described in `twinlock.core.payload.program`, which reads it.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from twinlock.core import limits
from twinlock.core.payload import streams
from twinlock.core.payload.fields import NONE, Fields
from twinlock.core.payload.patch import KEPT_BACK
from twinlock.core.payload.program import RAW, Pack
from twinlock.core.payload.varints import column, encode, fold, row, signed_row
from twinlock.core.zstd import CompressionParameter, compress
from twinlock.publish.delta.covers import Cover
from twinlock.publish.delta.fields.writing import encode_fields
from twinlock.publish.delta.model import Block, Ref, sources_of

Bytes = NDArray[np.uint8]
# Zeros between two differing stretches cost less inside the differences than as a number, up to about here.
RUN_GAP_BYTES: Final = 256
LZMA_CODEC: Final = 4
# Of matches looked at, and when one is long enough: half the CPU of the defaults, for two percent more bytes.
_LZMA_DEPTH: Final = 16
_LZMA_NICE: Final = 128
_SMALL_BYTES: Final = 4096
_ZSTD_LEVEL: Final = 19
# Two thirds of the CPU of level 19, for one percent more bytes.
ZSTD_LEVEL_FOR_ALL: Final = 18


@dataclass(frozen=True, slots=True)
class Differences:
    """Stretches of the output that differ from what the covers copy: gap before, length, the bytes to add."""

    gaps: list[int]
    lengths: list[int]
    data: bytes


def encode_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Ranges of the base as `decode_ranges` reads them."""
    return column([len(ranges)]) + _places(ranges)


def build_program(
    refs: Sequence[Ref],
    window: bytes | bytearray,
    text: bytes | bytearray,
    covers: list[Cover],
    packs: Sequence[Pack] = (),
    fields: Fields = NONE,
) -> bytes:
    """The program that makes `text` from `window`, and packs it.

    The window has the bytes of `refs` with the addresses of `fields` moved, the text has them not finished.
    """
    covers = _bounded(covers)
    old, new = np.frombuffer(window, np.uint8), np.frombuffer(text, np.uint8)
    literals, differing = _split(old, new, covers)
    control = b"".join(
        (
            _window(refs),
            _packs(packs, len(text)),
            encode_fields(fields),
            _covers(covers),
            encode(len(differing.gaps)) + row(differing.gaps) + row(differing.lengths),
        )
    )
    return b"".join((encode(len(control)), control, literals, differing.data))


def differences(window: bytes | bytearray, text: bytes | bytearray, covers: list[Cover]) -> bytes:
    """The bytes that are added to what the covers copy."""
    return _split(np.frombuffer(window, np.uint8), np.frombuffer(text, np.uint8), covers)[1].data


def _places(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Offsets relative to the end of the range before, then lengths."""
    ends = [0, *(offset + length for offset, length in ranges)]
    distances = [fold(offset - end) for (offset, _), end in zip(ranges, ends, strict=False)]
    return column([*distances, *(length for _, length in ranges)])


def _window(refs: Sequence[Ref]) -> bytes:
    blocks = sources_of(refs)
    out = [encode(len(blocks))]
    for block in blocks:
        out += [bytes([block.codec]), encode(block.size_bytes), encode_ranges(block.ranges)]
    out.append(encode(len(refs)))
    if blocks:
        numbers: dict[Block | None, int] = {block: number for number, block in enumerate(blocks, 1)}
        numbers[None] = 0
        out.append(column(numbers[ref.block] for ref in refs))
    out.append(_places([(ref.offset, ref.length) for ref in refs]))
    return b"".join(out)


def _covers(covers: list[Cover]) -> bytes:
    places, gaps, lengths = [], [], []
    place = start = 0
    for cover in covers:
        places.append(cover.place - place)
        gaps.append(cover.start - start)
        lengths.append(cover.length)
        place, start = cover.place + cover.length, cover.start + cover.length
    return encode(len(covers)) + signed_row(places) + row(gaps) + row(lengths)


def _packs(packs: Sequence[Pack], text_size_bytes: int) -> bytes:
    out = [encode(len(packs))]
    if packs:
        out.append(encode(text_size_bytes))
    end = 0
    for pack in packs:
        out.append(bytes([pack.codec]))
        if pack.codec != RAW:
            version = pack.version.encode("ascii")
            out += [encode(pack.level), encode(len(version)), version]
        out.append(column([fold(pack.start - end), pack.history, pack.length, pack.skip, pack.take]))
        end = pack.start + pack.length
    return b"".join(out)


def pack_step(
    program: bytes,
    output_size_bytes: int,
    *,
    with_lzma: bool = True,
    level: int = ZSTD_LEVEL_FOR_ALL,
    kept_back: bool = False,
) -> bytes:
    """One step of a patch part: the program, compressed by whatever makes it smallest."""
    codec, packed = pack(program, with_lzma=with_lzma, level=level)
    sizes = encode(output_size_bytes) + encode(len(program)) + encode(len(packed))
    return bytes([codec + KEPT_BACK * kept_back]) + sizes + packed


def pack(program: bytes, *, with_lzma: bool = True, level: int = ZSTD_LEVEL_FOR_ALL) -> tuple[int, bytes]:
    """(codec, bytes) of the smallest form of `program`; the first of equals; `level` is zstd's without LZMA.

    Of LZMA2's properties only those are tried that were the best, or within half a percent of it, on every
    kind of program measured; zstd wins on the smallest ones alone.
    """
    found = [(streams.STORED, program)]
    if with_lzma:
        found.append((LZMA_CODEC, _lzma(program, LZMA_CODEC)))
        if len(found[-1][1]) < _SMALL_BYTES:
            found.append((streams.ZSTD, _zstd(program, _ZSTD_LEVEL)))
    else:
        found.append((streams.ZSTD, _zstd(program, level)))
    return min(found, key=lambda item: len(item[1]))


def _lzma(program: bytes, codec: int) -> bytes:
    filters = streams.lzma_filters(codec, len(program))
    filters[0].update(
        {"mode": lzma.MODE_NORMAL, "mf": lzma.MF_BT4, "nice_len": _LZMA_NICE, "depth": _LZMA_DEPTH}
    )
    return lzma.compress(program, format=lzma.FORMAT_RAW, filters=filters)


def _zstd(program: bytes, level: int) -> bytes:
    options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.content_size_flag: 0,
    }
    return compress(program, options=options)


def _bounded(covers: list[Cover]) -> list[Cover]:
    """At most `COVERS_MAX` covers: the shortest are given up, their bytes become literals."""
    if len(covers) <= limits.COVERS_MAX:
        return covers
    least = sorted((cover.length for cover in covers), reverse=True)[limits.COVERS_MAX - 1]
    longer = [cover for cover in covers if cover.length > least]
    equal = [cover for cover in covers if cover.length == least][: limits.COVERS_MAX - len(longer)]
    return sorted(longer + equal, key=lambda cover: cover.start)


def _split(old: Bytes, new: Bytes, covers: list[Cover]) -> tuple[bytes, Differences]:
    """The literals, and where the output differs from what the covers copy."""
    copied = np.zeros(len(new), np.uint8)
    literal = np.ones(len(new), np.bool_)
    for place, start, length in covers:
        copied[start : start + length] = old[place : place + length]
        literal[start : start + length] = False
    differing = new - copied
    differing[literal] = 0
    return new[literal].tobytes(), _runs(differing)


def _runs(differing: Bytes) -> Differences:
    where = np.flatnonzero(differing)
    if not len(where):
        return Differences([], [], b"")
    breaks = np.flatnonzero(np.diff(where) > RUN_GAP_BYTES)
    starts = where[np.concatenate(([0], breaks + 1))]
    ends = where[np.concatenate((breaks, [len(where) - 1]))] + 1
    gaps = starts - np.concatenate(([0], ends[:-1]))
    data = b"".join(differing[start:end].tobytes() for start, end in zip(starts, ends, strict=True))
    return Differences(gaps.tolist(), (ends - starts).tolist(), data)
