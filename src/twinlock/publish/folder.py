"""A release folder: what `release pack` makes and `release sign` takes.

OUT/VERSION.manifest       what will be signed
OUT/SHA256.payload         the image for transport
OUT/release.json           names both, with sizes and hashes; written last, so a folder with it is whole
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from twinlock.core import limits, manifest
from twinlock.core.durable import os_errors, read_bounded
from twinlock.core.errors import error
from twinlock.core.names import check_sha256_hex, check_version
from twinlock.core.payload import container
from twinlock.publish.payload_file import PayloadFile

RECORD: Final = "release.json"
RECORD_SIZE_BYTES_MAX: Final = 64 * limits.KIB
PAYLOADS_MAX: Final = 64


class PayloadRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One payload file. Hashes are lower-case hex; `base_sha256` is that of a delta's base image."""

    kind: Literal["full", "delta"]
    sha256: str
    size_bytes: int
    index_size_bytes: int
    base_sha256: str | None = None

    @property
    def file_name(self) -> str:
        return f"{check_sha256_hex(self.sha256)}.payload"


class ReleaseRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `release.json` holds."""

    format: Literal["twinlock-release"]
    format_version: Literal[1]
    product: str
    version: str
    manifest_sha256: str
    manifest_size_bytes: int
    payloads: tuple[PayloadRecord, ...]

    @property
    def manifest_name(self) -> str:
        return f"{check_version(self.version)}.manifest"


@dataclass(frozen=True, slots=True)
class Release:
    """A release that was read from a folder: the record and the manifest agree, the payloads fit."""

    folder: Path
    record: ReleaseRecord
    manifest_bytes: bytes
    manifest: manifest.Manifest

    def payload_path(self, payload: PayloadRecord) -> Path:
        return self.folder / payload.file_name


def encode_record(record: ReleaseRecord) -> bytes:
    """`release.json`'s bytes: the same record has one encoding."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def decode_record(data: bytes, what: str) -> ReleaseRecord:
    """Raises InputError `input-wrong-type` for anything that is not a record."""
    try:
        record = msgspec.json.decode(data, type=ReleaseRecord, strict=True)
        for payload in record.payloads:
            check_sha256_hex(payload.sha256)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("input-wrong-type", f"{what} does not describe a release: {problem}") from problem
    if not 1 <= len(record.payloads) <= PAYLOADS_MAX:
        raise error("input-invalid", f"{what} names {len(record.payloads)} payloads")
    return record


def read_release(folder: Path) -> Release:
    """The release in `folder`, its manifest's hash and every payload's size, index and fit checked.

    The payloads' own bytes are hashed where they are copied or sent. Raises InputError `input-missing`,
    `input-wrong-type`, and the trust codes of manifest and payload.
    """
    with os_errors(f"release folder {folder}"):
        if not (folder / RECORD).is_file():
            raise error(
                "input-missing",
                f"{folder} is no release folder: it has no {RECORD}",
                hint="make one with `twinlock release pack`",
            )
    record = decode_record(
        read_bounded(folder / RECORD, RECORD_SIZE_BYTES_MAX, "record"), str(folder / RECORD)
    )
    data = read_bounded(folder / record.manifest_name, limits.MANIFEST_SIZE_BYTES_MAX, "manifest")
    if hashlib.sha256(data).hexdigest() != record.manifest_sha256:
        raise error("manifest-hash", f"{folder / record.manifest_name} is not the one that {RECORD} names")
    parsed = manifest.decode(data)
    if (parsed.product, parsed.version) != (record.product, record.version):
        raise error("manifest-malformed", f"{folder}: {RECORD} and the manifest name different releases")
    release = Release(folder, record, data, parsed)
    for payload in record.payloads:
        check_payload(payload, release.payload_path(payload), parsed)
    return release


def check_payload(record: PayloadRecord, path: Path, parsed: manifest.Manifest) -> None:
    """Raises unless the file has the recorded size and an index that fits the manifest."""
    with PayloadFile(path) as file:
        same = (
            file.size_bytes == record.size_bytes and file.trailer.index_size_bytes == record.index_size_bytes
        )
        base = None if file.index.base_sha256 is None else file.index.base_sha256.hex()
        if not same or base != record.base_sha256 or (base is None) != (record.kind == "full"):
            raise error("payload-unfit", f"{path} is not the payload that its record describes")
        container.check_fit(file.index, parsed, file.size_bytes)
