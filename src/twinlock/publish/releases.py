"""Releases in a repository: taking one in from its folder, and listing what is signed.

What a power cut leaves while a release is taken in: payload, manifest or record that no metadata names (the
next run finds them and goes on), and the former state of everything signed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Metadata, TargetFile, Targets

from twinlock.core import limits, manifest
from twinlock.core.details import SUFFIX
from twinlock.core.durable import fsync_dir, os_errors, read_bounded, write_all, write_atomic
from twinlock.core.errors import error
from twinlock.core.manifest import Claims, Manifest
from twinlock.core.names import check_name, check_sha256_hex, check_version, release_name
from twinlock.core.trust import hashes
from twinlock.core.trust.verifier import check_manifest_bytes, claims_of
from twinlock.publish import lists, signing
from twinlock.publish.ceremony import Ceremony
from twinlock.publish.folder import (
    RECORD_SIZE_BYTES_MAX,
    Extras,
    PayloadRecord,
    Release,
    ReleaseRecord,
    check_extras,
    decode_record,
    encode_record,
    sbom_name,
)
from twinlock.publish.payload_file import CHUNK_SIZE_BYTES, PayloadFile, ignore
from twinlock.publish.repository import Repository


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """One release that the repository lists. `published` is False while signatures are missing."""

    name: str
    claims: Claims
    manifest_sha256: str
    manifest_size_bytes: int
    published: bool
    details_sha256: str | None = None


def list_releases(repository: Repository) -> list[SignedRelease]:
    """Every release that is signed or waits for signatures, in the order of product, counter and version."""
    known = repository.entries(pending=False)
    following = repository.entries(pending=True)
    found = []
    for name, entry in following.items():
        if name.endswith(SUFFIX):
            continue
        claims = claims_of(entry)
        described = following.get(details_name(claims))
        pairs = [(name, entry), (details_name(claims), described)]
        same = all(one is None or (at in known and known[at].hashes == one.hashes) for at, one in pairs)
        digest = None if described is None else described.hashes["sha256"]
        found.append(SignedRelease(name, claims, entry.hashes["sha256"], entry.length, same, digest))
    return sorted(found, key=lambda one: (one.claims.product, one.claims.counter, one.name))


def details_name(claims: Claims) -> str:
    """The name that signed metadata lists a release's details under."""
    return release_name(claims.product, claims.version).removesuffix(".manifest") + SUFFIX


def find_release(repository: Repository, product: str, version: str) -> SignedRelease:
    """The release of this name. Raises TrustError `release-unknown`."""
    name = release_name(product, version)
    for one in list_releases(repository):
        if one.name == name:
            return one
    raise error("release-unknown", f"{repository.folder} lists no release {product} {version}")


def take_in(
    ceremony: Ceremony, release: Release, *, allow_lower: bool, advance: Callable[[int], None] = ignore
) -> bool:
    """Copies a release into the repository and lists it in the next version of the targets, unsigned yet.

    False when it is listed already, with the same bytes. `advance` is told the bytes that were proven and
    copied: image and payload sizes together. Raises InputError `input-exists` when the name is taken by other
    bytes, CompatibilityError `release-older` for a lower counter than the product has, and the trust codes
    when a payload is not what its record and the manifest say.
    """
    repository = ceremony.repository
    repository.need_root()
    name = release.manifest.name
    listed = repository.entries(pending=True)
    if name in listed:
        if listed[name].hashes.get("sha256") != release.record.manifest_sha256:
            raise error(
                "input-exists",
                f"{name} is signed already, with other bytes",
                hint="a release never changes: pack it under a new version",
            )
    elif not allow_lower:
        check_counter(repository, release.manifest)
    described = _is_listed(release, listed)
    for payload in release.record.payloads:
        with PayloadFile(release.payload_path(payload)) as file:
            file.prove(release.manifest, advance)
        _copy(release.payload_path(payload), payload, repository.folder / "payloads", advance)
    _store(repository.folder, release)
    if name in listed and described:
        return False
    _list(ceremony, release)
    return True


def _is_listed(release: Release, listed: Mapping[str, TargetFile]) -> bool:
    """Whether all details of the release are listed. Raises InputError `input-exists` for others."""
    name = details_name(release.manifest.claims)
    if release.extras is None or name not in listed:
        return release.extras is None
    if listed[name].hashes.get("sha256") != release.extras.sha256:
        raise error(
            "input-exists",
            f"{name} are signed already, with other bytes",
            hint="what is signed of a release never changes: say it of the next one",
        )
    return True


def check_counter(repository: Repository, new: Manifest) -> None:
    """Raises CompatibilityError `release-older` when the product has a release with a higher counter."""
    counters = [one.claims.counter for one in list_releases(repository) if one.claims.product == new.product]
    if counters and new.counter < max(counters):
        raise error(
            "release-older",
            f"{new.name} has counter {new.counter}, but {new.product} has a release with {max(counters)}: "
            "devices that run it would refuse this one",
            hint="pack it with a counter that is as high, or sign it with --allow-lower",
        )


def _list(ceremony: Ceremony, release: Release) -> None:
    repository = ceremony.repository
    if repository.newest(lists.TOP) is None:
        first_list(ceremony, lists.TOP)
    name = release.manifest.name
    new = {name: signing.entry(name, release.manifest_bytes, release.manifest.claims)}
    if release.extras is not None:
        at = details_name(release.manifest.claims)
        new[at] = TargetFile(
            length=len(release.extras.data), hashes={"sha256": release.extras.sha256}, path=at
        )
    for at, entry in new.items():
        role = lists.speaker(repository.list_of, at)
        following = next_list(ceremony, role)
        following.targets[at] = entry
        if lists.is_full(following) and lists.BINS not in role:
            for one, made in lists.cut(role, following, ceremony.judge(role)).items():
                repository.pending[one] = made


def first_list(ceremony: Ceremony, role: str) -> None:
    """Prepares the first, empty version of a list."""
    ends = signing.expires("targets", ceremony.now, ceremony.lifetimes)
    ceremony.repository.pending[role] = Metadata(Targets(1, signing.SPEC_VERSION, ends))


def next_list(ceremony: Ceremony, role: str) -> Targets:
    """The list that comes next, for changes; signatures on what waited before are dropped."""
    repository = ceremony.repository
    published, base = repository.published(role), repository.newest(role)
    assert base is not None
    following = ceremony.following(base)
    following.signed.version = 1 if published is None else published.signed.version + 1
    waiting = repository.pending.get(role)
    if waiting is not None:
        ceremony.dropped += len(waiting.signatures)
    repository.pending[role] = following
    made: Targets = following.signed
    return made


def delegate(ceremony: Ceremony, product: str, keys: list[SSlibKey], threshold: int) -> None:
    """Prepares that `threshold` of `keys` sign the releases of `product`; what is signed of it stays signed.

    Raises as `lists.delegate` does, and `input-invalid` for a product that was taken back once: devices
    would find what its former keys signed in the same list.
    """
    repository = ceremony.repository
    repository.need_root()
    if repository.newest(lists.TOP) is None:
        first_list(ceremony, lists.TOP)
    if product in repository.retired():
        raise error(
            "input-invalid",
            f"the product {product!r} was taken back from keys of its own",
            hint="sign its releases with the targets keys; a list that was given up is not taken up again",
        )
    lists.delegate(next_list(ceremony, lists.TOP), product, keys, threshold)
    if repository.newest(product) is None:
        first_list(ceremony, product)


def take_back(ceremony: Ceremony, product: str) -> list[str]:
    """Prepares that the targets keys sign the releases of `product` again, and its own keys nothing more.

    What those had signed counts no more: the names of these releases are returned. One that is to stay is
    taken in again, with the targets keys. Raises as `lists.take_back` does.
    """
    repository = ceremony.repository
    repository.need_root()
    if repository.newest(lists.TOP) is None:
        raise error("input-missing", f"{repository.folder} has no list of releases yet")
    before = {one.name for one in list_releases(repository)}
    lists.take_back(next_list(ceremony, lists.TOP), product)
    reached = {role for role, _, _ in lists.walk(repository.list_of)}
    for role in set(repository.pending) - reached - set(signing.KINDS):
        del repository.pending[role]
    return sorted(before - {one.name for one in list_releases(repository)})


def _store(folder: Path, release: Release) -> None:
    """The manifest under the name that devices fetch, and the record of the payloads."""
    product = check_name(release.manifest.product, "product")
    with os_errors(f"repository {folder}"):
        for parent in (folder / "targets" / product, folder / "releases" / product):
            parent.mkdir(parents=True, exist_ok=True)
            fsync_dir(parent.parent)
        if release.extras is not None:
            _store_extras(folder, release.manifest.claims, release.extras)
        write_atomic(manifest_path(folder, release.manifest, release.record), release.manifest_bytes)
        path = record_path(folder, product, release.manifest.version)
        write_atomic(path, encode_record(_with_known(release.record, path)))


def _store_extras(folder: Path, claims: Claims, extras: Extras) -> None:
    if extras.sbom is not None:
        path = sbom_path(folder, hashlib.sha256(extras.sbom).digest())
        path.parent.mkdir(exist_ok=True)
        fsync_dir(folder)
        write_atomic(path, extras.sbom)
    write_atomic(details_path(folder, claims, extras.sha256), extras.data)


def sbom_path(folder: Path, sha256: bytes) -> Path:
    """Where a repository keeps an SBOM: `sboms/SHA256.sbom.json`."""
    return folder / "sboms" / sbom_name(sha256)


def details_path(folder: Path, claims: Claims, sha256: str) -> Path:
    """Where a repository keeps details: `targets/PRODUCT/SHA256.VERSION.details`."""
    name = f"{check_sha256_hex(sha256)}.{check_version(claims.version)}{SUFFIX}"
    return folder / "targets" / check_name(claims.product, "product") / name


def _with_known(record: ReleaseRecord, path: Path) -> ReleaseRecord:
    """The record with the payloads that the repository has of the same release: deltas made since."""
    with os_errors(str(path)):
        if not path.exists():
            return record
    kept = decode_record(read_bounded(path, RECORD_SIZE_BYTES_MAX, "record"), str(path))
    if kept.manifest_sha256 != record.manifest_sha256:
        return record
    payloads = {payload.sha256: payload for payload in (*record.payloads, *kept.payloads)}
    return msgspec.structs.replace(record, payloads=tuple(payloads.values()))


def manifest_path(folder: Path, claims: Claims | Manifest, record: ReleaseRecord) -> Path:
    """Where a repository keeps a manifest: `targets/PRODUCT/SHA256.VERSION.manifest`."""
    name = f"{record.manifest_sha256}.{check_version(claims.version)}.manifest"
    return folder / "targets" / check_name(claims.product, "product") / name


def record_path(folder: Path, product: str, version: str) -> Path:
    """Where a repository keeps the record of a release's payloads."""
    return folder / "releases" / check_name(product, "product") / f"{check_version(version)}.json"


def read_record(repository: Repository, signed: SignedRelease) -> ReleaseRecord:
    """The record of a signed release's payloads. Raises TrustError `manifest-hash`, InputError."""
    path = record_path(repository.folder, signed.claims.product, signed.claims.version)
    record = decode_record(read_bounded(path, RECORD_SIZE_BYTES_MAX, "record"), str(path))
    if record.manifest_sha256 != signed.manifest_sha256:
        raise error("manifest-hash", f"{path} belongs to another manifest than the signed one")
    return record


def read_signed(repository: Repository, signed: SignedRelease) -> Release:
    """A signed release's manifest and record, with every check that a device makes of the manifest.

    Raises TrustError `manifest-hash`, `manifest-malformed`, `metadata-mismatch`; InputError when a file is
    missing or unreadable.
    """
    folder = repository.folder
    record = read_record(repository, signed)
    data = read_bounded(
        manifest_path(folder, signed.claims, record), limits.MANIFEST_SIZE_BYTES_MAX, "manifest"
    )
    files = repository.entries(pending=True)
    check_manifest_bytes(files[signed.name], data)
    parsed = manifest.decode(data)
    if parsed.claims != signed.claims:
        raise error("metadata-mismatch", f"the manifest {signed.name} does not say what is signed of it")
    extras = None
    if signed.details_sha256 is not None:
        extras = _read_signed_extras(folder, files[details_name(signed.claims)], parsed)
    return Release(folder / "payloads", record, data, parsed, extras)


def _read_signed_extras(folder: Path, entry: TargetFile, parsed: Manifest) -> Extras:
    """Details and SBOM, as signed. Raises TrustError `details-hash`, `details-malformed`, InputError."""
    path = details_path(folder, parsed.claims, entry.hashes["sha256"])
    data = read_bounded(path, limits.DETAILS_SIZE_BYTES_MAX, "details")
    hashes.check(data, entry.length, entry.hashes, "details-hash", f"{entry.path}")
    return check_extras(data, lambda sha256: sbom_path(folder, sha256), parsed)


def check_waiting(repository: Repository, advance: Callable[[int], None] = ignore) -> list[Release]:
    """The releases that wait for signatures, each proven from the repository's own files.

    Whoever adds a signature signs for these bytes, so they are checked again. Raises TrustError, InputError.
    """
    found = []
    for one in list_releases(repository):
        if not one.published:
            release = read_signed(repository, one)
            for payload in release.record.payloads:
                with PayloadFile(release.payload_path(payload)) as file:
                    file.prove(release.manifest, advance)
            found.append(release)
    return found


def _copy(source: Path, payload: PayloadRecord, folder: Path, advance: Callable[[int], None]) -> None:
    """Copies a payload unless it is there, whole; its hash is checked on the way. Raises `payload-hash`."""
    final = folder / payload.file_name
    if final.exists() and _has_hash(final, payload):
        advance(payload.size_bytes)
        return
    temporary = final.with_name(final.name + ".tmp")
    digest = hashlib.sha256()
    with os_errors(f"copying {source} to {folder}"):
        try:
            with source.open("rb") as file, temporary.open("wb") as copy:
                while data := file.read(CHUNK_SIZE_BYTES):
                    digest.update(data)
                    write_all(copy.fileno(), data)
                    advance(len(data))
                os.fsync(copy.fileno())
            if digest.hexdigest() != payload.sha256:
                raise error("payload-hash", f"{source} does not have the hash in its name")
            temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_dir(folder)


def _has_hash(path: Path, payload: PayloadRecord) -> bool:
    with os_errors(str(path)), path.open("rb") as file:
        same_size = os.fstat(file.fileno()).st_size == payload.size_bytes
        return same_size and hashlib.file_digest(file, "sha256").hexdigest() == payload.sha256
