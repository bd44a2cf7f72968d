"""Looking at what is on disk, offline: what it is, what it says, and what of it can be proven."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec
from tuf.api.metadata import Metadata, Root

from twinlock.core import limits, manifest
from twinlock.core.durable import os_errors, read_bounded
from twinlock.core.errors import TwinlockError, error
from twinlock.core.manifest import Manifest
from twinlock.core.payload import container
from twinlock.publish import expiry, request, signing, words
from twinlock.publish.ceremony import judge_of
from twinlock.publish.folder import RECORD, Extras, Release, read_release
from twinlock.publish.payload_file import PayloadFile, ignore
from twinlock.publish.releases import list_releases, read_signed
from twinlock.publish.repository import Chain, Repository, open_repository
from twinlock.publish.upload import check_payloads

JSON_SIZE_BYTES_MAX: Final = max(limits.MANIFEST_SIZE_BYTES_MAX, *limits.METADATA_SIZE_BYTES_MAX.values())


class Kind(StrEnum):
    """What a path holds."""

    RELEASE = "release folder"
    REPOSITORY = "repository"
    PAYLOAD = "payload"
    MANIFEST = "manifest"
    METADATA = "metadata"
    REQUEST = "signing request"


@dataclass(slots=True)
class Findings:
    """What was found: `facts` by name, in order; `checks` that hold; the first `problem`, if any."""

    kind: Kind
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    problem: TwinlockError | None = None

    def check(self, what: str, step: Callable[[], object]) -> None:
        """Notes that `what` holds, or the problem with it."""
        try:
            step()
        except TwinlockError as problem:
            self.problem = self.problem or problem
        else:
            self.checks.append(what)


def inspect(
    path: Path, now: datetime, root: Path | None = None, advance: Callable[[int], None] = ignore
) -> Findings:
    """Everything about the thing at `path`; `root` is a root to verify signatures by.

    Raises InputError for a path that is missing, unreadable or of no kind that is known; what is wrong inside
    is in the findings.
    """
    kind = kind_of(path)
    found = Findings(kind, path)
    if kind is Kind.RELEASE:
        _release(found, read_release(path), advance)
    elif kind is Kind.REPOSITORY:
        with open_repository(path, write=False) as repository:
            _repository(found, repository, now, root, advance)
    elif kind is Kind.PAYLOAD:
        with PayloadFile(path) as file:
            _payload(found.facts, file)
            if file.index.base_sha256 is None:
                found.check("every part decodes, to the image that the index names", _itself(file, advance))
            else:  # only the base could tell more
                found.check("every part has the hash that the index names", lambda: file.check_parts(advance))
            found.check("the file's name is its hash", lambda: _named(file))
    elif kind is Kind.MANIFEST:
        data = read_bounded(path, limits.MANIFEST_SIZE_BYTES_MAX, "manifest")
        _manifest(found.facts, manifest.decode(data), data)
        found.checks.append("every field is in its bounds")
    elif kind is Kind.REQUEST:
        _request(found, now, root)
    else:
        _metadata(found, path, now, root)
    return found


def kind_of(path: Path) -> Kind:
    """What the path holds, by its content. Raises InputError `input-missing`, `input-wrong-type`."""
    with os_errors(str(path)):
        if path.is_dir():
            if (path / RECORD).exists():
                return Kind.RELEASE
            if (path / "metadata").is_dir():
                return Kind.REPOSITORY
            raise _unknown(path)
        if not path.exists():
            raise error("input-missing", f"{path} does not exist")
        if not path.is_file():
            raise _unknown(path)
        with path.open("rb") as file:
            head = file.read(1)
    if head == b"{":
        return _kind_of_json(path)
    try:
        with PayloadFile(path):
            return Kind.PAYLOAD
    except TwinlockError as problem:
        if _ends_as_payload(path):
            raise
        raise _unknown(path) from problem


def _ends_as_payload(path: Path) -> bool:
    with os_errors(str(path)), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - container.TRAILER_SIZE_BYTES))
        return file.read(len(container.MAGIC)) == container.MAGIC


def _unknown(path: Path) -> TwinlockError:
    return error(
        "input-wrong-type",
        f"{path} is nothing that Twinlock makes",
        hint="give a release folder, a repository, a manifest, a payload, metadata or a signing request",
    )


class _Head(msgspec.Struct):
    format: str = ""
    signed: msgspec.Raw = msgspec.Raw()


def _kind_of_json(path: Path) -> Kind:
    data = read_bounded(path, request.REQUEST_SIZE_BYTES_MAX, "file")
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise _unknown(path) from problem
    if head.format == manifest.FORMAT:
        return Kind.MANIFEST
    if head.format == request.FORMAT:
        return Kind.REQUEST
    if bytes(head.signed):
        return Kind.METADATA
    raise _unknown(path)


def _itself(file: PayloadFile, advance: Callable[[int], None]) -> Callable[[], None]:
    return lambda: file.check_itself(advance)


def _named(file: PayloadFile) -> None:
    digest = file.sha256()
    if file.path.stem != digest:
        raise error("payload-hash", f"{file.path} has the SHA-256 {digest}")


def _manifest(facts: dict[str, Any], made: Manifest, data: bytes) -> None:
    facts |= {
        "product": made.product,
        "release": made.version,
        "hardware": list(made.hardware),
        "counter": made.counter,
        "image_size_bytes": made.image_size_bytes,
        "image_sha256": made.image_sha256.hex(),
        "segments": made.segment_count,
        "sbom_sha256": made.sbom_sha256.hex() if made.sbom_sha256 else None,
        "notes": made.notes,
        "manifest_size_bytes": len(data),
        "manifest_sha256": hashlib.sha256(data).hexdigest(),
    }


def _details(facts: dict[str, Any], extras: Extras) -> None:
    made = extras.details
    facts |= {
        "mark": made.kind,
        "support_ends": made.support_ends,
        "advisory": made.advisory,
        "sbom": None
        if made.sbom is None
        else {
            "kind": made.sbom.kind,
            "spec_version": made.sbom.spec_version,
            "components": made.sbom.components,
            "size_bytes": made.sbom.size_bytes,
        },
        "details_sha256": extras.sha256,
    }


def _payload(facts: dict[str, Any], file: PayloadFile) -> None:
    facts |= {
        "payload_kind": "full" if file.index.base_sha256 is None else "delta",
        "image_size_bytes": file.index.image_size_bytes,
        "image_sha256": file.index.image_sha256.hex(),
        "base_sha256": file.index.base_sha256.hex() if file.index.base_sha256 else None,
        "size_bytes": file.size_bytes,
        "index_size_bytes": file.trailer.index_size_bytes,
        "parts": len(file.index.parts),
        "zero_parts": sum(part.length == 0 for part in file.index.parts),
        "ratio": round(file.size_bytes / max(1, file.index.image_size_bytes), 4),
    }


def _release(found: Findings, release: Release, advance: Callable[[int], None]) -> None:
    _manifest(found.facts, release.manifest, release.manifest_bytes)
    found.checks.append("the manifest has the recorded hash, and every field is in its bounds")
    if release.extras is not None:
        _details(found.facts, release.extras)
        found.checks.append("the details have the recorded hash and bounds, and the SBOM is what they say")
    found.facts["payloads"] = []
    for payload in release.record.payloads:
        facts: dict[str, Any] = {"sha256": payload.sha256}
        with PayloadFile(release.payload_path(payload)) as file:
            _payload(facts, file)
        found.facts["payloads"].append(facts)
    found.check(
        "every payload has the hash in its name and decodes to the manifest's image, segment by segment",
        lambda: check_payloads(release, advance),
    )


def _repository(
    found: Findings,
    repository: Repository,
    now: datetime,
    root: Path | None,
    advance: Callable[[int], None],
) -> None:
    ends = expiry.expiries(repository)
    found.facts["versions"] = {one.role: one.version for one in ends}
    found.facts["expires"] = {one.role: one.expires.isoformat() for one in ends}
    found.facts["waiting"] = [
        _signatures(signing.count(judge_of(repository, role), one, role))
        for role, one in repository.pending.items()
    ]
    found.facts["releases"] = [
        {
            "product": one.claims.product,
            "release": one.claims.version,
            "counter": one.claims.counter,
            "hardware": list(one.claims.hardware),
            "published": one.published,
        }
        for one in list_releases(repository)
    ]
    chain = repository.chain
    if chain is not None:
        found.check("a new device accepts the metadata now", lambda: verify_chain(chain, now, root))
    for one in list_releases(repository):
        found.check(
            f"{one.name}: manifest, details and payloads are what is signed",
            lambda one=one: check_payloads(read_signed(repository, one), advance),  # type: ignore[misc]
        )


def verify_chain(chain: Chain, now: datetime, root: Path | None) -> None:
    """Verifies the published state from the root in a file, or from the repository's first one.

    Raises TrustError `metadata-signature` when the file's root does not lead to the published ones.
    """
    if root is None:
        chain.verify(now)
        return
    data = read_bounded(root, limits.METADATA_SIZE_BYTES_MAX["root"], "root metadata")
    version = signing.decode("root", data).signed.version
    if version > len(chain.roots):
        raise error("metadata-rollback", f"{root} is version {version}, newer than the repository's root")
    Chain((data, *chain.roots[version:]), chain.timestamp, chain.snapshot, chain.targets).verify(now)


def _signatures(found: signing.Signatures) -> dict[str, Any]:
    return {"role": found.role, "version": found.version, "have": found.have, "need": found.need}


def _request(found: Findings, now: datetime, root: Path | None) -> None:
    made = request.load(found.path)
    try:
        checked = request.check(made, now, _root_bytes(root))
    except TwinlockError as problem:
        found.problem = problem
        return
    found.facts |= {
        "digest": checked.digest,
        "asks": [
            {**_signatures(one), "keys": [keyid[:16] for keyid in one.waiting]}
            for item in checked.items
            for one in item.signatures()
        ],
        "words": words.describe(checked),
    }
    whom = "the request's own first root" if root is None else str(root)
    found.checks.append(f"roots, published lists, manifests and signatures hold together, from {whom}")


def _root_bytes(root: Path | None) -> bytes | None:
    if root is None:
        return None
    return read_bounded(root, limits.METADATA_SIZE_BYTES_MAX["root"], "root metadata")


def _metadata(found: Findings, path: Path, now: datetime, root: Path | None) -> None:
    data = read_bounded(path, JSON_SIZE_BYTES_MAX, "metadata")
    role = _role_of(data, path)
    metadata = signing.decode(role, data)
    found.facts |= {
        "role": role,
        "metadata_version": metadata.signed.version,
        "expires": metadata.signed.expires.isoformat(),
        "expired": metadata.signed.is_expired(now),
        "signed_by": list(metadata.signatures),
    }
    if role == "root":
        found.facts["roles"] = {
            name: {"threshold": one.threshold, "key_ids": list(one.keyids)}
            for name, one in metadata.signed.roles.items()
        }
    if role == "targets":
        found.facts["releases"] = list(metadata.signed.targets)
    judge = _judge(metadata, role, root)
    if judge is not None:
        found.facts["signatures"] = _signatures(signing.count(judge, metadata))
        found.check("enough keys have signed it", lambda: _enough(judge, metadata))


def _role_of(data: bytes, path: Path) -> str:
    signed = msgspec.json.decode(data).get("signed")
    role = signed.get("_type") if isinstance(signed, dict) else None
    if role not in signing.KINDS:
        raise _unknown(path)
    return str(role)


def _judge(metadata: Metadata[Any], role: str, root: Path | None) -> Root | None:
    if root is not None:
        data = read_bounded(root, limits.METADATA_SIZE_BYTES_MAX["root"], "root metadata")
        judge: Root = signing.decode("root", data).signed
        return judge
    return metadata.signed if role == "root" else None


def _enough(judge: Root, metadata: Metadata[Any]) -> None:
    found = signing.count(judge, metadata)
    if found.missing:
        raise error(
            "metadata-signature",
            f"{found.role} version {found.version} has {found.have} of {found.need} signatures",
        )
