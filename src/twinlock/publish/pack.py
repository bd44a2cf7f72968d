"""From an image to a release folder: read once, encoded in parallel, proven, in constant memory.

The reader goes through the image in order; a bounded number of segments is encoded by threads (zstd and
SHA-256 let other threads run); parts are written in order, so the bytes are the same whatever the number of
threads. What a power cut leaves in the folder: a `.tmp` that the next run overwrites, or a payload or
manifest that nothing names yet; `release.json` comes last and makes the folder a release.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from twinlock.core import details, limits, manifest
from twinlock.core.details import Details, is_day
from twinlock.core.durable import fsync_dir, os_errors, read_bounded, write_all, write_atomic
from twinlock.core.errors import TwinlockError, error
from twinlock.core.manifest import Claims, Manifest
from twinlock.core.names import check_name, check_version
from twinlock.core.payload import container
from twinlock.core.payload.parts import Part
from twinlock.publish import sbom
from twinlock.publish.encode import (
    LEVEL_DEFAULT,
    LEVEL_MAX,
    LEVEL_MIN,
    Encoded,
    encode_segment,
    encoded_zero,
)
from twinlock.publish.folder import (
    RECORD,
    RECORD_SIZE_BYTES_MAX,
    Extras,
    PayloadRecord,
    ReleaseRecord,
    decode_record,
    encode_record,
    sbom_name,
)
from twinlock.publish.image import ImageReader, Segment
from twinlock.publish.locking import folder_lock
from twinlock.publish.payload_file import ignore

JOBS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class PackRequest:
    """What to pack. `out` becomes the release folder; `jobs` of 0 means one thread per processor."""

    image: Path
    product: str
    version: str
    hardware: tuple[str, ...]
    out: Path
    counter: int = 0
    notes: str = ""
    sbom: Path | None = None
    advisory: str = ""
    security: bool = False
    support_ends: str | None = None
    level: int = LEVEL_DEFAULT
    jobs: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """What came out: the record of the folder, and how many segments cost nothing."""

    record: ReleaseRecord
    manifest: Manifest
    zero_segments: int


@dataclass(slots=True)
class _Draft:
    """What is known so far while parts are written."""

    parts: list[Part] = field(default_factory=list)
    segments: bytearray = field(default_factory=bytearray)
    blocks: bytearray = field(default_factory=bytearray)
    payload_size_bytes: int = 0


def pack(request: PackRequest, advance: Callable[[int], None] = ignore) -> Packed:
    """Makes the release folder `request.out`. `advance` is told the bytes of each segment that is done.

    Packing the same image again gives the same bytes and is no error. Raises InputError for a request or an
    image that is not right (see `image.ImageReader`), `image-changed` when the image is written meanwhile,
    `input-exists` when the folder holds another release, PolicyError `conflict` when another process packs
    into it, DeviceError `disk-full`. After an error nothing of this run is left.
    """
    check_request(request)
    with ImageReader(request.image) as reader, _folder(request.out):
        check_claims(request, reader.size_bytes)
        _check_free(request)
        extras = make_extras(request)
        temporary = request.out / "payload.tmp"
        try:
            with os_errors(str(temporary)):
                payload, draft, image_sha256 = _write_payload(request, reader, temporary, advance)
            made = Manifest(
                format="twinlock-manifest",
                format_version=1,
                product=request.product,
                version=request.version,
                hardware=request.hardware,
                counter=request.counter,
                image_size_bytes=reader.size_bytes,
                image_sha256=image_sha256,
                segment_size_bytes=limits.SEGMENT_SIZE_BYTES,
                segments=bytes(draft.segments),
                sbom_sha256=None if extras is None else extras.sbom_sha256,
                notes=request.notes,
            )
            manifest.check(made)
            record = _finish(request.out, made, payload, temporary, extras)
        finally:
            temporary.unlink(missing_ok=True)
    return Packed(record, made, sum(part.length == 0 for part in draft.parts))


def check_request(request: PackRequest) -> None:
    """Raises InputError `input-invalid` for names, level, jobs or notes out of bounds; reads nothing."""
    check_name(request.product, "product")
    check_version(request.version)
    if not LEVEL_MIN <= request.level <= LEVEL_MAX:
        raise error("input-invalid", f"compression level {request.level} is outside {LEVEL_MIN}..{LEVEL_MAX}")
    if not 0 <= request.jobs <= JOBS_MAX:
        raise error("input-invalid", f"{request.jobs} jobs are outside 0..{JOBS_MAX}")
    if len(request.notes) > limits.NOTES_LENGTH_MAX:
        raise error("input-invalid", f"notes have more than {limits.NOTES_LENGTH_MAX} characters")
    if len(request.advisory) > limits.ADVISORY_LENGTH_MAX:
        raise error("input-invalid", f"the advisory has more than {limits.ADVISORY_LENGTH_MAX} characters")
    if request.support_ends is not None and not is_day(request.support_ends):
        raise error("input-invalid", f"{request.support_ends!r} is no day", hint="like 2031-12-31")
    check_claims(request, limits.SEGMENT_SIZE_BYTES)


def check_claims(request: PackRequest, image_size_bytes: int) -> None:
    """Raises InputError `input-invalid` when hardware ids, counter or the image's size are out of bounds."""
    manifest.check_claims(
        Claims(request.product, request.version, request.hardware, request.counter, image_size_bytes)
    )


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Makes the folder and its parents, and takes away those it made when packing fails; keeps others out."""
    missing = [folder for folder in (*reversed(out.parents), out) if not folder.exists()]
    with os_errors(f"output folder {out}"):
        for folder in missing:
            folder.mkdir()
    try:
        with folder_lock(out):
            yield
    except BaseException:
        for folder in reversed(missing):
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def _check_free(request: PackRequest) -> None:
    """Raises InputError `input-exists` when the folder holds a release of another name, before any work."""
    path = request.out / RECORD
    if path.exists():
        held = decode_record(read_bounded(path, RECORD_SIZE_BYTES_MAX, "record"), str(path))
        if (held.product, held.version) != (request.product, request.version):
            raise _exists(request.out, f"{held.product} {held.version}")


def _exists(out: Path, held: str) -> TwinlockError:
    return error(
        "input-exists",
        f"{out} holds {held} already",
        hint="name another folder with --out, or remove this one yourself",
    )


def read_advisory(path: Path) -> str:
    """The text in a file. Raises InputError `input-wrong-type` when not UTF-8, `input-invalid` if empty."""
    data = read_bounded(path, 4 * limits.ADVISORY_LENGTH_MAX, "advisory")
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError as problem:
        raise error("input-wrong-type", f"advisory {path} is not UTF-8 text") from problem
    if not text:
        raise error("input-invalid", f"advisory {path} is empty")
    return text


def make_extras(request: PackRequest) -> Extras | None:
    """The details that the request asks for, or None when it asks for none. Raises as `sbom.read` does."""
    if not (request.sbom or request.advisory or request.security or request.support_ends):
        return None
    content, found = (None, None) if request.sbom is None else sbom.read(request.sbom)
    made = Details(
        format="twinlock-details",
        format_version=1,
        product=request.product,
        version=request.version,
        kind="security" if request.security else "feature",
        support_ends=request.support_ends,
        advisory=request.advisory,
        sbom=found,
    )
    details.check(made)
    return Extras(details.encode(made), made, content)


def _write_payload(
    request: PackRequest, reader: ImageReader, temporary: Path, advance: Callable[[int], None]
) -> tuple[PayloadRecord, _Draft, bytes]:
    draft = _Draft()
    image, payload = hashlib.sha256(), hashlib.sha256()
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        for segment, encoded in _encode_all(request, reader):
            image.update(bytes(segment.length_bytes) if segment.data is None else segment.data)
            draft.parts.append(encoded.part)
            draft.segments += encoded.sha256
            draft.blocks += encoded.blocks
            payload.update(encoded.data)
            write_all(fd, encoded.data)
            draft.payload_size_bytes += len(encoded.data)
            advance(segment.length_bytes)
        reader.finish()
        blocks = len(draft.blocks)
        index = container.Index(image.digest(), reader.size_bytes, None, tuple(draft.parts), blocks)
        tail = container.encode_tail(index)
        payload.update(draft.blocks)
        write_all(fd, memoryview(draft.blocks))
        payload.update(tail)
        write_all(fd, tail)
        os.fsync(fd)
    finally:
        os.close(fd)
    record = PayloadRecord(
        kind="full",
        sha256=payload.hexdigest(),
        size_bytes=draft.payload_size_bytes + blocks + len(tail),
        index_size_bytes=len(tail) - container.TRAILER_SIZE_BYTES,
    )
    return record, draft, image.digest()


def _encode_all(request: PackRequest, reader: ImageReader) -> Iterator[tuple[Segment, Encoded]]:
    """Every segment with its part, in order, at most two segments per thread ahead of the writer."""
    jobs = request.jobs or os.cpu_count() or 1
    waiting: deque[tuple[Segment, Future[Encoded]]] = deque()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="pack")
    try:
        for segment in reader.segments():
            waiting.append((segment, pool.submit(_encode, segment, request.level)))
            if len(waiting) > 2 * jobs:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(segment: Segment, level: int) -> Encoded:
    if segment.data is None:
        return encoded_zero(segment.length_bytes)
    return encode_segment(segment.data, segment.number, level)


def _finish(
    out: Path, made: Manifest, payload: PayloadRecord, temporary: Path, extras: Extras | None
) -> ReleaseRecord:
    """Puts payload, details, manifest, record in place, in this order. Raises InputError `input-exists`."""
    data = manifest.encode(made)
    record = ReleaseRecord(
        format="twinlock-release",
        format_version=1,
        product=made.product,
        version=made.version,
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        manifest_size_bytes=len(data),
        payloads=(payload,),
        details_sha256=None if extras is None else extras.sha256,
    )
    encoded = encode_record(record)
    more = {} if extras is None else _files_of(extras, record)
    with os_errors(str(out)):
        if (out / RECORD).exists():
            if (out / RECORD).read_bytes() != encoded:
                raise _exists(out, f"other bytes as {made.product} {made.version}")
            return record  # the payload and the manifest have been there since
        try:
            temporary.rename(out / payload.file_name)
            fsync_dir(out)
            for name, content in more.items():
                write_atomic(out / name, content)
            write_atomic(out / record.manifest_name, data)
            write_atomic(out / RECORD, encoded)
        except BaseException:
            for name in (payload.file_name, record.manifest_name, *more):
                (out / name).unlink(missing_ok=True)
            raise
    return record


def _files_of(extras: Extras, record: ReleaseRecord) -> dict[str, bytes]:
    files = {record.details_name: extras.data}
    if extras.sbom is not None:
        files[sbom_name(hashlib.sha256(extras.sbom).digest())] = extras.sbom
    return files
