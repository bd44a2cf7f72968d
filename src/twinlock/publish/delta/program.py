"""Writing the steps of a patch: control numbers, literals and differences, compressed as small as they get.

The layout is described in `twinlock.core.payload.patch`, which reads it.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from twinlock.core import limits
from twinlock.core.payload import streams
from twinlock.core.payload.varints import encode, fold
from twinlock.core.zstd import CompressionParameter, compress
from twinlock.publish.delta.covers import Cover

Bytes = NDArray[np.uint8]
# Zeros between two differing stretches cost less inside the differences than as a number, up to about here.
RUN_GAP_BYTES: Final = 256
LZMA_CODEC: Final = 4
_SMALL_BYTES: Final = 4096
_ZSTD_LEVEL: Final = 19


@dataclass(frozen=True, slots=True)
class Differences:
    """Stretches of the output that differ from what the covers copy: gap before, length, the bytes to add."""

    gaps: list[int]
    lengths: list[int]
    data: bytes


def encode_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Ranges of the base as `decode_ranges` reads them."""
    ends = [0, *(offset + length for offset, length in ranges)]
    distances = [fold(offset - end) for (offset, _), end in zip(ranges, ends, strict=False)]
    return _column([len(ranges), *distances, *(length for _, length in ranges)])


def build_program(
    ranges: Sequence[tuple[int, int]], window: bytes, plain: bytes, covers: list[Cover]
) -> bytes:
    """The program that makes `plain` from `window`, which has the bytes of `ranges`."""
    covers = _bounded(covers)
    old, new = np.frombuffer(window, np.uint8), np.frombuffer(plain, np.uint8)
    literals, differences = _split(old, new, covers)
    places, gaps, lengths = [], [], []
    place = start = 0
    for cover in covers:
        places.append(fold(cover.place - place))
        gaps.append(cover.start - start)
        lengths.append(cover.length)
        place, start = cover.place + cover.length, cover.start + cover.length
    control = b"".join(
        (
            encode_ranges(ranges),
            _column([len(covers), *places, *gaps, *lengths]),
            _column([len(differences.gaps), *differences.gaps, *differences.lengths]),
        )
    )
    return b"".join((encode(len(control)), control, literals, differences.data))


def pack_step(program: bytes, output_size_bytes: int) -> bytes:
    """One step of a patch part: the program, compressed by whatever makes it smallest."""
    codec, packed = pack(program)
    head = bytes([codec]) + encode(output_size_bytes) + encode(len(program)) + encode(len(packed))
    return head + packed


def pack(program: bytes) -> tuple[int, bytes]:
    """(codec, bytes) of the smallest form of `program`; the first of equals.

    Of LZMA2's properties only those are tried that were the best, or within half a percent of it, on every
    kind of program measured; zstd wins on the smallest ones alone.
    """
    found = [(streams.STORED, program), (LZMA_CODEC, _lzma(program, LZMA_CODEC))]
    if len(found[-1][1]) < _SMALL_BYTES:
        found.append((streams.ZSTD, _zstd(program)))
    return min(found, key=lambda item: len(item[1]))


def _lzma(program: bytes, codec: int) -> bytes:
    filters = streams.lzma_filters(codec, len(program))
    filters[0].update({"mode": lzma.MODE_NORMAL, "mf": lzma.MF_BT4, "nice_len": 273, "depth": 0})
    return lzma.compress(program, format=lzma.FORMAT_RAW, filters=filters)


def _zstd(program: bytes) -> bytes:
    options: dict[int, int] = {
        CompressionParameter.compression_level: _ZSTD_LEVEL,
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


def _column(values: Iterable[int]) -> bytes:
    return b"".join(map(encode, values))
