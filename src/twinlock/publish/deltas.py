"""Delta payloads beside the full ones: made from two releases, kept where the newer one is.

A delta changes nothing that is signed: it is one more way to the same segments, named in the record of the
release's payloads. What a power cut leaves: images and a payload under temporary names, which the next run
writes anew; or a whole payload that no record names, which the next run replaces by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from twinlock.core.durable import fsync_dir, os_errors, write_atomic
from twinlock.core.errors import InputError, error
from twinlock.publish.folder import PAYLOADS_MAX, PayloadRecord, Release, encode_record
from twinlock.publish.payload_file import PayloadFile, ignore
from twinlock.publish.releases import SignedRelease, list_releases, read_signed
from twinlock.publish.repository import Repository
from twinlock.publish.upload import Operator

if TYPE_CHECKING:
    from twinlock.publish.delta.encode import DeltaStats

BASES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Made:
    """A delta: its record, whether it was made now, whether it is kept, and what it consists of (when made
    now)."""

    payload: PayloadRecord
    new: bool
    kept: bool
    stats: DeltaStats | None = None


def make_delta(
    older: Release,
    newer: Release,
    record_path: Path,
    jobs: int = 0,
    advance: Callable[[int], None] = ignore,
    *,
    libraries: Sequence[str] | None = None,
) -> Made:
    """Makes the delta from `older` to `newer` and names it in the newer one's record at `record_path`.

    `advance` is told the bytes that are done of both images' sizes and once more the newer one's. One that
    is there already is not made again; one that is no smaller than the full payload is not kept. Raises
    InputError `input-invalid` when the two cannot follow each other, and what reading and encoding raise.
    """
    from twinlock.publish.delta.encode import encode_delta  # and with it what only this needs: numpy

    base = older.manifest.image_sha256.hex()
    _check_pair(older, newer)
    for payload in newer.record.payloads:
        if payload.base_sha256 == base:
            return Made(payload, new=False, kept=True)
    with (
        os_errors(f"folder {newer.folder}"),
        tempfile.TemporaryDirectory(prefix=".delta-", dir=newer.folder) as folder,
    ):
        old, new, out = (Path(folder) / name for name in ("old.image", "new.image", "payload.tmp"))
        write_image(older, old, advance)
        write_image(newer, new, advance)
        done = 0

        def told(position: int) -> None:
            nonlocal done
            advance(position - done)
            done = position

        stats = encode_delta(old, new, out, jobs, told, libraries=libraries)
        payload = _record_of(out)
        full = min(one.size_bytes for one in newer.record.payloads if one.kind == "full")
        if payload.size_bytes >= full:
            return Made(payload, new=True, kept=False, stats=stats)
        out.replace(newer.folder / payload.file_name)
        fsync_dir(newer.folder)
    record = msgspec.structs.replace(newer.record, payloads=(*newer.record.payloads, payload))
    write_atomic(record_path, encode_record(record))
    return Made(payload, new=True, kept=True, stats=stats)


def _check_pair(older: Release, newer: Release) -> None:
    before, after = older.manifest, newer.manifest
    rules = (
        (before.product == after.product, "they are of different products"),
        (before.image_sha256 != after.image_sha256, "they have the same image"),
        (bool(set(before.hardware) & set(after.hardware)), "no hardware runs both"),
        (len(newer.record.payloads) < PAYLOADS_MAX, f"{after.name} has {PAYLOADS_MAX} payloads already"),
    )
    for holds, what in rules:
        if not holds:
            raise error("input-invalid", f"no delta from {before.name} to {after.name}: {what}")


def write_image(release: Release, out: Path, advance: Callable[[int], None] = ignore) -> None:
    """The release's image out of its full payload, every segment checked; zeros become holes."""
    full = next((one for one in release.record.payloads if one.kind == "full"), None)
    if full is None:
        raise error("payload-unfit", f"{release.manifest.name} has no full payload to make its image from")
    with PayloadFile(release.payload_path(full)) as file, os_errors(f"image {out}"), out.open("wb") as image:
        file.write_image(release.manifest, image, advance)


def _record_of(path: Path) -> PayloadRecord:
    with PayloadFile(path) as file:
        base = file.index.base_sha256
        assert base is not None
        return PayloadRecord(
            kind="delta",
            sha256=file.sha256(),
            size_bytes=file.size_bytes,
            index_size_bytes=file.trailer.index_size_bytes,
            base_sha256=base.hex(),
        )


def bases_in_use(
    repository: Repository, operator: Operator, newer: SignedRelease, count: int
) -> list[SignedRelease]:
    """The releases of the repository that most devices of the fleet run, and that lack a delta to `newer`.

    At most `count` of them, the most used first. None from a server that does not tell what the fleet runs.
    """
    known = {payload.base_sha256 for payload in read_signed(repository, newer).record.payloads}
    by_image = {
        read_signed(repository, one).manifest.image_sha256.hex(): one
        for one in list_releases(repository)
        if one.claims.product == newer.claims.product and one.name != newer.name
    }
    wanted = [image for image in _images_in_use(operator, newer.claims.product)[:count] if image not in known]
    return [by_image[image] for image in wanted if image in by_image]


def _images_in_use(operator: Operator, product: str) -> list[str]:
    """Image hashes (hex) by how many devices run them, most first."""
    try:
        answer: Any = operator.get(f"/fleet/{product}")
    except InputError as problem:
        if problem.code != "not-found":
            raise
        return []
    images = answer.get("images") if isinstance(answer, dict) else None
    if not isinstance(images, list) or not all(isinstance(one, dict) for one in images):
        raise error("answer-malformed", "the server does not answer with what the fleet runs")
    return [str(one.get("image_sha256")) for one in images]
