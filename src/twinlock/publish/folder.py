"""A release folder: what `release pack` makes and `release sign` takes.

OUT/VERSION.manifest       what will be signed
OUT/SHA256.payload         the image for transport
OUT/VERSION.details        what will be signed of it for people, if there is something
OUT/SHA256.sbom.json       the software bill of materials that the details name
OUT/release.json           names both, with sizes and hashes; written last, so a folder with it is whole
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from twinlock.core import details, limits, manifest
from twinlock.core.details import Details
from twinlock.core.durable import os_errors, read_bounded
from twinlock.core.errors import error
from twinlock.core.names import check_sha256_hex, check_version
from twinlock.core.payload import container
from twinlock.publish import sbom
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


class ReleaseRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `release.json` holds; `details_sha256` (hex) only if the release has details."""

    format: Literal["twinlock-release"]
    format_version: Literal[1]
    product: str
    version: str
    manifest_sha256: str
    manifest_size_bytes: int
    payloads: tuple[PayloadRecord, ...]
    details_sha256: str | None = None

    @property
    def details_name(self) -> str:
        return f"{check_version(self.version)}.details"

    @property
    def manifest_name(self) -> str:
        return f"{check_version(self.version)}.manifest"


@dataclass(frozen=True, slots=True)
class Extras:
    """A release's details as they are signed, and the SBOM that they name."""

    data: bytes
    details: Details
    sbom: bytes | None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def sbom_sha256(self) -> bytes | None:
        return None if self.details.sbom is None else self.details.sbom.sha256


@dataclass(frozen=True, slots=True)
class Release:
    """A release that was read from a folder: the record and the manifest agree, the payloads fit."""

    folder: Path
    record: ReleaseRecord
    manifest_bytes: bytes
    manifest: manifest.Manifest
    extras: Extras | None = None

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
        if record.details_sha256 is not None:
            check_sha256_hex(record.details_sha256)
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
    release = Release(folder, record, data, parsed, _read_extras(folder, record, parsed))
    for payload in record.payloads:
        check_payload(payload, release.payload_path(payload), parsed)
    return release


def sbom_name(sha256: bytes) -> str:
    """What an SBOM's file is called in a release folder."""
    return f"{sha256.hex()}.sbom.json"


def _read_extras(folder: Path, record: ReleaseRecord, parsed: manifest.Manifest) -> Extras | None:
    if record.details_sha256 is None:
        return None
    data = read_bounded(folder / record.details_name, limits.DETAILS_SIZE_BYTES_MAX, "details")
    if hashlib.sha256(data).hexdigest() != record.details_sha256:
        raise error("details-hash", f"{folder / record.details_name} are not those that {RECORD} names")
    return check_extras(data, lambda sha256: folder / sbom_name(sha256), parsed)


def check_extras(data: bytes, place: Callable[[bytes], Path], parsed: manifest.Manifest) -> Extras:
    """The details in `data` with their SBOM, which `place` knows by its hash, for the release in `parsed`.

    Raises TrustError `details-malformed`, `details-hash`, `format-unknown`, InputError for a missing file.
    """
    found = details.decode(data)
    if (found.product, found.version) != (parsed.product, parsed.version):
        raise error("details-malformed", f"the details are of {found.name}, not of {parsed.name}")
    listed = None if found.sbom is None else found.sbom.sha256
    if listed != parsed.sbom_sha256:
        raise error("details-malformed", f"{parsed.name} and its details name different SBOMs")
    if found.sbom is None:
        return Extras(data, found, None)
    path = place(found.sbom.sha256)
    content = read_bounded(path, limits.SBOM_SIZE_BYTES_MAX, "SBOM")
    if hashlib.sha256(content).digest() != found.sbom.sha256:
        raise error("details-hash", f"{path} is not the SBOM that the details name")
    if sbom.parse(content, str(path)) != found.sbom:
        raise error("details-malformed", f"{found.name} says of its SBOM what is not so")
    return Extras(data, found, content)


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
