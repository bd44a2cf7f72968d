"""The program of one step of a patch, parsed and checked.

    program   control size (varint), control, literals, differences

The control is made of varints; a column is that many numbers one behind the other, a row that many of one
width (see `varints`):

    sources   count; for each: codec u8, unpacked size, ranges. Packed blocks of the base, in ranges.
    window    count; if there are sources, a column of sources (0: the base itself, 1: the first source ...);
              offsets relative to the end of the range before (signed); lengths. The window is what the step
              before kept back, if it did, and then these ranges of the base, or of what a source unpacks to,
              one behind the other.
    packs     count; if 0, the text is the output. Else the text's size, and for each: codec u8; unless it
              is 0, level and the library's version (size u8, ASCII); start, relative to the end of the pack
              before (signed); history; length; skip; take. Pieces of the text, packed; `take` bytes of each
              after `skip` are the output, one behind the other.
    fields    addresses to be moved in the window, and finished in the text: see `fields`
    covers    count; rows: places in the window, relative to the end of the cover before (signed); gaps;
              lengths. The text is, for each cover, `gap` literals and then `length` bytes of the window;
              literals fill what remains.
    runs      count; rows: gaps; lengths. Stretches of the text to which differences are added, byte by byte,
              modulo 256.

Everything that sizes memory is bounded and checked here, before it is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain
from operator import add
from typing import TYPE_CHECKING, Final

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload.base import decode_ranges
from twinlock.core.payload.fields import Fields, decode_fields
from twinlock.core.payload.libraries import LZ4_HISTORY_BYTES_MAX
from twinlock.core.payload.varints import Reader

if TYPE_CHECKING:
    from array import array

# codecs of sources and packs
RAW: Final = 0
LZ4: Final = 1
ZLIB: Final = 2
ZSTD: Final = 3
LIBRARIES: Final = {LZ4: "lz4", ZLIB: "zlib", ZSTD: "zstd"}
_LEVEL_MAX: Final = 22
_VERSION_SIZE_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class Source:
    """A packed block of the base: where its bytes are, and the size that it unpacks to."""

    codec: int
    size_bytes: int
    ranges: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class WindowRange:
    """`length` bytes at `offset` of the base (`source` 0) or of what a source unpacks to (from 1)."""

    source: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Covers:
    """Which pieces of the window the text is made of: places, the literals before each, lengths."""

    places: list[int]
    gaps: array[int]
    lengths: array[int]


@dataclass(frozen=True, slots=True)
class Pack:
    """A piece of the text that is packed again by `library` ("lz4-1.9.4"; "" for bytes as they are)."""

    codec: int
    level: int
    version: str
    start: int
    history: int
    length: int
    skip: int
    take: int

    @property
    def library(self) -> str:
        """The library as `libraries.available` names it."""
        return f"{LIBRARIES[self.codec]}-{self.version}"


@dataclass(frozen=True, slots=True)
class Program:
    """One step: every index lies within the window, the text or the program."""

    kept_size_bytes: int
    sources: list[Source]
    window: list[WindowRange]
    packs: list[Pack]
    text_size_bytes: int
    fields: Fields
    covers: Covers
    runs: tuple[array[int], array[int]]
    literals: memoryview
    differences: memoryview

    @property
    def window_size_bytes(self) -> int:
        """With what was kept back."""
        return self.kept_size_bytes + sum(part.length for part in self.window)


def parse(data: bytes, output_size_bytes: int, number: int, kept_size_bytes: int = 0) -> Program:
    """The program in `data`, every bound checked. Raises TrustError `payload-malformed`.

    Its window begins with `kept_size_bytes` that the step before kept back.
    """
    whole = Reader(data, number)
    control = Reader(whole.take(whole.value(len(data), "control")), number)
    sources = _sources(control, number)
    window = _window(control, sources, number)
    window_size_bytes = kept_size_bytes + sum(part.length for part in window)
    text_size_bytes, packs = _packs(control, output_size_bytes, number)
    fields = decode_fields(control, window_size_bytes, text_size_bytes, number)
    covers = _covers(control, window_size_bytes, number)
    count = control.value(limits.DIFF_RUNS_MAX, "runs")
    runs = control.row(count), control.row(count)
    control.end()
    if sum(runs[0]) + sum(runs[1]) > text_size_bytes:
        raise error("payload-malformed", f"part {number} has differences behind its text")
    literal_count = text_size_bytes - sum(covers.lengths)
    if literal_count < sum(covers.gaps):
        raise error("payload-malformed", f"part {number} covers more than its text")
    literals = whole.take(literal_count)
    differences = whole.take(sum(runs[1]))
    whole.end()
    return Program(
        kept_size_bytes, sources, window, packs, text_size_bytes, fields, covers, runs, literals, differences
    )


def _sources(control: Reader, number: int) -> list[Source]:
    sources = []
    for _ in range(control.value(limits.SOURCES_MAX, "sources")):
        codec = control.take(1)[0]
        if codec not in LIBRARIES:
            raise error("format-unknown", f"part {number} unpacks by method {codec}")
        size_bytes = control.value(limits.SOURCE_SIZE_BYTES_MAX, "unpacked block", 1)
        ranges = decode_ranges(control, number)
        if not 0 < sum(length for _, length in ranges) <= limits.SOURCE_SIZE_BYTES_MAX:
            raise error("payload-malformed", f"part {number} unpacks a block of absurd size")
        sources.append(Source(codec, size_bytes, ranges))
    if sum(source.size_bytes for source in sources) > limits.SOURCES_SIZE_BYTES_MAX:
        raise error("payload-malformed", f"part {number} unpacks too much of the base")
    return sources


def _window(control: Reader, sources: list[Source], number: int) -> list[WindowRange]:
    if not sources:
        window = [WindowRange(0, offset, length) for offset, length in decode_ranges(control, number)]
    else:
        count = control.value(limits.REFERENCE_RANGES_MAX, "ranges")
        origins = control.column(count)
        distances, lengths = control.signed_column(count), control.column(count)
        window = []
        end = 0
        for origin, distance, length in zip(origins, distances, lengths, strict=True):
            offset, end = end + distance, end + distance + length
            if origin > len(sources):
                raise error("payload-malformed", f"part {number} names a source that it does not have")
            size_max = sources[origin - 1].size_bytes if origin else limits.IMAGE_SIZE_BYTES_MAX
            if offset < 0 or not length or end > size_max:
                raise error("payload-malformed", f"part {number} names {length} bytes at {offset}")
            window.append(WindowRange(origin, offset, length))
    size_bytes = sum(part.length for part in window)
    if size_bytes > limits.REFERENCE_SIZE_BYTES_MAX:
        raise error("payload-malformed", f"part {number} wants {size_bytes} bytes of the base at once")
    return window


def _covers(control: Reader, window_size_bytes: int, number: int) -> Covers:
    count = control.value(limits.COVERS_MAX, "covers")
    distances, gaps, lengths = control.signed_row(count), control.row(count), control.row(count)
    places = list(accumulate(map(add, distances, chain((0,), lengths))))
    if count and (min(places) < 0 or max(map(add, places, lengths)) > window_size_bytes):
        raise error("payload-malformed", f"part {number} copies from outside its window")
    return Covers(places, gaps, lengths)


def _packs(control: Reader, output_size_bytes: int, number: int) -> tuple[int, list[Pack]]:
    """(size of the text, packs)"""
    count = control.value(limits.PACKS_MAX, "packs")
    if not count:
        return output_size_bytes, []
    text_size_bytes = control.value(limits.PLAIN_SIZE_BYTES_MAX, "text", 1)
    packs: list[Pack] = []
    end = 0
    for _ in range(count):
        pack = _pack(control, end, text_size_bytes, number)
        end = pack.start + pack.length
        packs.append(pack)
    if sum(pack.length for pack in packs) > 2 * text_size_bytes:
        raise error("payload-malformed", f"part {number} packs more than it has")
    if sum(pack.take for pack in packs) != output_size_bytes:
        raise error("payload-malformed", f"part {number} packs to another size than it says")
    return text_size_bytes, packs


def _pack(control: Reader, end: int, text_size_bytes: int, number: int) -> Pack:
    codec = control.take(1)[0]
    if codec != RAW and codec not in LIBRARIES:
        raise error("format-unknown", f"part {number} packs by method {codec}")
    level, version = 0, ""
    if codec != RAW:
        level = control.value(_LEVEL_MAX, "level")
        name = bytes(control.take(control.value(_VERSION_SIZE_MAX, "library", 1)))
        version = name.decode("ascii", "replace")
    start = end + control.signed_column(1)[0]
    history = control.value(LZ4_HISTORY_BYTES_MAX if codec == LZ4 else 0, "history")
    length = control.value(text_size_bytes, "piece", 1)
    skip = control.value(limits.PART_SIZE_BYTES_MAX, "skip")
    take = control.value(limits.KEPT_SIZE_BYTES_MAX, "take", 1)
    if start < history or start + length > text_size_bytes or (codec == RAW and skip + take > length):
        raise error("payload-malformed", f"part {number} packs what lies outside its text")
    return Pack(codec, level, version, start, history, length, skip, take)
