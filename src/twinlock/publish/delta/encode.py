"""From two images to a delta payload: segments in parallel, parts in order, the same bytes however many jobs.

The payload is written to a temporary file beside `out` and renamed when it is whole and flushed; a power cut
leaves the temporary file, which the next run overwrites.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final

from twinlock.core import limits
from twinlock.core.durable import fsync_dir, os_errors
from twinlock.core.errors import error
from twinlock.core.payload import container
from twinlock.core.payload.libraries import available
from twinlock.core.payload.parts import Part
from twinlock.publish.delta.analysing import Analyst
from twinlock.publish.delta.copies import EncodedSegment, find_copies, price_of
from twinlock.publish.delta.effort import Effort
from twinlock.publish.delta.executables import Known
from twinlock.publish.delta.files.detect import map_files
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.model import Window
from twinlock.publish.delta.pairing import Pairing
from twinlock.publish.delta.price import Price
from twinlock.publish.delta.references import Reference
from twinlock.publish.delta.segments import Encoder
from twinlock.publish.delta.squashing import BlockCutter
from twinlock.publish.delta.stretches import KernelCutter, unpacked_name

# What `make bench NAME=delta` and NAME=delta_memory saw, rounded up: the process that was called, each that
# encodes, what analysing a large executable adds, and what each GiB of image adds to the first two.
_MEMORY_MIB_MAX: Final = 2048
_FIRST_MIB, _EACH_MIB, _ANALYSIS_MIB, _MIB_FOR_GIB = 160, 280, 250, 40
_ROW: Final = 4  # segments that one process encodes in a row: a packed block in two of them is packed once
_AHEAD: Final = 2  # rows in flight for each job

Progress = Callable[[int], None]


@dataclass(slots=True)
class DeltaStats:
    """What came out: the payload's size, how many parts of each kind, and the bytes of each kind."""

    size_bytes: int = 0
    base_sha256: bytes = b""
    image_sha256: bytes = b""
    parts: Counter[str] = field(default_factory=Counter)
    part_bytes: Counter[str] = field(default_factory=Counter)


def encode_delta(
    base: Path,
    image: Path,
    out: Path,
    jobs: int = 0,
    progress: Progress = lambda _: None,
    *,
    libraries: Sequence[str] | None = None,
) -> DeltaStats:
    """Writes the payload that makes `image` out of `base`; `progress` is told the bytes that are done.

    `jobs` of 0 means one for each processor; never more are used than `jobs_max` says. Packed bytes are
    rebuilt by `libraries` alone, as `core.payload.libraries` names them; by default by all that are here.

    Raises InputError `input-missing`, `input-unreadable`, `image-empty`, `image-unaligned`,
    `input-too-large`; `image-changed` when an image is written meanwhile; DeviceError `disk-full`;
    InternalError when a part does not decode to its segment.
    """
    with Image(base) as old, Image(image) as new:
        jobs = min(jobs or os.cpu_count() or 1, jobs_max(max(len(old), len(new))))
        stats = DeltaStats(base_sha256=_sha256(old), image_sha256=_sha256(new))
        temporary = out.with_name(out.name + ".tmp")
        try:
            with os_errors(f"payload {out}"), temporary.open("wb") as file:
                allowed = tuple(name for name in available() if libraries is None or name in libraries)
                copies = find_copies(old, new)
                job = _Job(base, image, allowed, price_of(copies))
                segments = _segments(job, copies, jobs)
                parts = _write_parts(file, segments, len(new), progress, stats)
                tail = container.encode_tail(
                    container.Index(stats.image_sha256, len(new), stats.base_sha256, tuple(parts))
                )
                file.write(tail)
                file.flush()
                os.fsync(file.fileno())
                stats.size_bytes = file.tell()
            if (_sha256(old), _sha256(new)) != (stats.base_sha256, stats.image_sha256):
                raise error("image-changed", f"{base} or {image} was written to while it was read")
            with os_errors(f"payload {out}"):
                temporary.replace(out)
                fsync_dir(out.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return stats


def jobs_max(size_bytes: int) -> int:
    """How many processes may encode images of that size: all together hold at most 2 GiB."""
    tables_mib = _MIB_FOR_GIB * size_bytes // limits.GIB
    left_mib = _MEMORY_MIB_MAX - _FIRST_MIB - _ANALYSIS_MIB - tables_mib
    return max(left_mib // (_EACH_MIB + tables_mib), 1)


def _write_parts(
    file: BinaryIO, segments: Iterator[EncodedSegment], size_bytes: int, progress: Progress, stats: DeltaStats
) -> list[Part]:
    parts: list[Part] = []
    done = 0
    for segment in segments:
        file.write(segment.data)
        parts.append(segment.part)
        kind = type(segment.part).__name__.lower()
        stats.parts[kind] += 1
        stats.part_bytes[kind] += len(segment.data)
        done = min(done + limits.SEGMENT_SIZE_BYTES, size_bytes)
        progress(done)
    return parts


def _sha256(image: Image) -> bytes:
    digest = hashlib.sha256()
    for chunk in image.chunks():
        digest.update(chunk)
    return digest.digest()


# --- one encoder for each process


@dataclass(frozen=True, slots=True)
class _Job:
    """What every process has to know."""

    base: Path
    image: Path
    libraries: tuple[str, ...]
    price: Price


class _Workshop:
    """Both images, their files, and what encodes segments and analyses executables."""

    def __init__(self, old: Image, new: Image, libraries: Sequence[str], price: Price) -> None:
        _, old_map = map_files(old)
        _, self.new_map = map_files(new)
        pairing = Pairing(old_map.files)
        self._old = old
        self._new = new
        self._price = price
        self._reference = Reference(old_map, self.new_map, pairing, len(old))
        new_window = Window(new)
        packed = any(file.packed for file in self.new_map.files)
        self._effort = Effort.of(price, packed=packed)
        self._kernels = None if packed else KernelCutter(old, new, self.new_map, pairing, libraries)
        self._cutter = self._kernels or BlockCutter(old, new, self._reference, new_window, libraries)
        self.analyst = Analyst(Window(old), new_window, self.new_map, pairing, self._kernels)

    @cached_property
    def encoder(self) -> Encoder:
        """Made when first needed: it looks for kernels."""
        kernels = self._kernels.known() if self._kernels else []
        return Encoder(
            self._old, self._new, self._reference, self._cutter, self._price, kernels, self._effort
        )

    def executables(self) -> list[str]:
        """Names of those that are to be analysed."""
        return self.analyst.names() if self._effort.analyses else []

    def names(self, number: int) -> set[str]:
        """Names of all files that a segment has pieces of, and of what they unpack to."""
        start = number * limits.SEGMENT_SIZE_BYTES
        end = min(start + limits.SEGMENT_SIZE_BYTES, len(self._new))
        files = [piece.file for piece in self.new_map.pieces(start, end) if piece.file]
        files += self.new_map.packed_files(start, end)
        return {name for file in files for name in (file.path, unpacked_name(file))}


_worker: list[_Workshop] = []


def _start_worker(job: _Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that was interrupted ends this one
    _worker.append(_Workshop(Image(job.base), Image(job.image), job.libraries, job.price))


def _analyse(name: str) -> Known | None:
    return _worker[0].analyst.analyse(name)


def _encode(row: Sequence[tuple[int, dict[str, Known]]]) -> list[EncodedSegment]:
    return [_worker[0].encoder.encode(number, known) for number, known in row]


def _segments(job: _Job, copies: Sequence[EncodedSegment | None], jobs: int) -> Iterator[EncodedSegment]:
    """Every segment, encoded, in order; at most `_AHEAD` rows for each job are in memory."""
    with Image(job.base) as old, Image(job.image) as new:
        workshop = _Workshop(old, new, job.libraries, job.price)
        if jobs == 1:
            analysed = {name: workshop.analyst.analyse(name) for name in workshop.executables()}
            for number, copy in enumerate(copies):
                yield copy or workshop.encoder.encode(number, _needed(workshop, analysed, number))
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, context, _start_worker, (job,))
        try:
            yield from _in_pool(pool, workshop, copies, jobs)
        except BrokenProcessPool as problem:
            raise error("internal", "an encoding process ended by itself; memory may be short") from problem
        finally:
            pool.shutdown(cancel_futures=True)


def _needed(workshop: _Workshop, analysed: dict[str, Known | None], number: int) -> dict[str, Known]:
    """What is known of the executables in a segment: the same, however many processes there are."""
    names = sorted(workshop.names(number) & analysed.keys())
    return {name: found for name in names if (found := analysed[name]) is not None}


def _in_pool(
    pool: ProcessPoolExecutor, workshop: _Workshop, copies: Sequence[EncodedSegment | None], jobs: int
) -> Iterator[EncodedSegment]:
    names = workshop.executables()
    analysed: dict[str, Known | None] = {}
    others = [name for name in names if not workshop.analyst.is_large(name)]
    for name in (name for name in names if workshop.analyst.is_large(name)):
        analysed[name] = pool.submit(_analyse, name).result()
    analysed |= zip(others, pool.map(_analyse, others), strict=True)
    pending: deque[tuple[Sequence[EncodedSegment | None], Future[list[EncodedSegment]]]] = deque()
    for start in range(0, len(copies), _ROW):
        if len(pending) == jobs * _AHEAD:
            yield from _done(*pending.popleft())
        found = copies[start : start + _ROW]
        missing = [number for number, copy in enumerate(found, start) if copy is None]
        row = [(number, _needed(workshop, analysed, number)) for number in missing]
        pending.append((found, pool.submit(_encode, row)))
    while pending:
        yield from _done(*pending.popleft())


def _done(
    found: Sequence[EncodedSegment | None], encoded: Future[list[EncodedSegment]]
) -> Iterator[EncodedSegment]:
    """A row of segments, those that were copies and those that were encoded."""
    missing = iter(encoded.result())
    return (copy or next(missing) for copy in found)
