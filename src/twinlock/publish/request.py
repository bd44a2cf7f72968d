"""A signing request: what waits for signatures, as one file that goes from holder to holder.

It is UTF-8 JSON, one object, keys as in `Request`, bytes as base64. It holds all that a holder needs to see
and prove what they sign, so that their machine needs neither the repository nor a network: every published
root, the published files that change, the files to be signed with the signatures so far, and the manifests
and details of the releases that come.

Signatures do not change what a request asks for: `digest` is of the bytes to be signed alone, so holders can
compare it by another way (read aloud, on paper) before and after it has gone round.

Refused with a code of its own: a format from later (`format-unknown`); a chain of roots that does not verify,
or published files that the roots do not vouch for (`metadata-signature`); signed bytes that were changed
(`signature-invalid`); a signature by a key that nobody asks for (`signature-unasked`); two of one key
(`signature-repeated`); a version that does not follow, a release that changes, a manifest that is missing or
too much (`request-changed`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from tuf.api.metadata import Metadata, Root, Targets

from twinlock.core import details, limits, manifest
from twinlock.core.details import Details
from twinlock.core.durable import os_errors, read_bounded, write_atomic
from twinlock.core.errors import TwinlockError, error
from twinlock.core.manifest import Manifest
from twinlock.core.trust import hashes
from twinlock.core.trust.keys import public_key
from twinlock.core.trust.shapes import Envelope
from twinlock.core.trust.verifier import TrustedSet, check_manifest_bytes, claims_of
from twinlock.publish import lists, signing
from twinlock.publish.keys import KeyRing
from twinlock.publish.signing import Signatures

FORMAT: Final = "twinlock-signing-request"
FORMAT_VERSION: Final = 1
REQUEST_SIZE_BYTES_MAX: Final = 64 * limits.MIB
ROOTS_MAX: Final = limits.ROOT_ROTATIONS_MAX + 1
FILES_MAX: Final = 1026  # root, targets and hash bins
MANIFESTS_MAX: Final = 1024

Judge = Root | Targets


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`roots` are the published ones, oldest first; `base` what is published of the roles in `files`."""

    format: Literal["twinlock-signing-request"]
    format_version: Literal[1]
    roots: tuple[bytes, ...]
    base: dict[str, bytes]
    files: dict[str, bytes]
    manifests: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Item:
    """One file to be signed. `judges` are those whose thresholds it must reach: for a root, old and new."""

    role: str
    metadata: Metadata[Any]
    base: Metadata[Any] | None
    judges: tuple[Judge, ...]

    def signatures(self) -> list[Signatures]:
        """What each judge still misses."""
        return [signing.count(judge, self.metadata, self.role) for judge in self.judges]

    @property
    def missing(self) -> bool:
        return any(one.missing for one in self.signatures())

    def asked(self) -> dict[str, Any]:
        """Every key that is asked to sign, by its id."""
        return {
            keyid: signing.keys_of(judge)[keyid]
            for judge in self.judges
            for keyid in judge.get_delegated_role(self.role).keyids
        }


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that was checked: its files in order, and the manifests of the releases that come."""

    request: Request
    items: tuple[Item, ...]
    manifests: Mapping[str, Manifest]
    details: Mapping[str, Details]

    @property
    def digest(self) -> str:
        return digest({one.role: one.metadata for one in self.items})


def digest(files: Mapping[str, Metadata[Any]]) -> str:
    """SHA-256 (hex) over the sorted roles and the hashes of their bytes to be signed; no signature counts."""
    running = hashlib.sha256(f"{FORMAT}-{FORMAT_VERSION}\n".encode())
    for role, metadata in sorted(files.items()):
        running.update(f"{role} {hashlib.sha256(signing.signed_text(metadata)).hexdigest()}\n".encode())
    return running.hexdigest()


def encode(request: Request) -> bytes:
    """The file's bytes: indented JSON, keys sorted; the same request has one encoding."""
    return msgspec.json.format(msgspec.json.encode(request, order="sorted"), indent=1) + b"\n"


def decode(data: bytes, what: str) -> Request:
    """Raises InputError `input-wrong-type`, `input-too-large`, TrustError `format-unknown`."""
    if len(data) > REQUEST_SIZE_BYTES_MAX:
        raise error("input-too-large", f"{what} has more than {REQUEST_SIZE_BYTES_MAX} bytes")
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.format == FORMAT and head.format_version != FORMAT_VERSION:
            raise error("format-unknown", f"{what} is a signing request of version {head.format_version}")
        request = msgspec.json.decode(data, type=Request, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("input-wrong-type", f"{what} is no signing request: {problem}") from problem
    counts = (
        (len(request.roots), ROOTS_MAX, "roots"),
        (len(request.files), FILES_MAX, "files"),
        (len(request.base), FILES_MAX, "published files"),
        (len(request.manifests), MANIFESTS_MAX, "manifests"),
    )
    for have, most, named in counts:
        if have > most:
            raise error("input-too-large", f"{what} has {have} {named}, more than {most}")
    if not request.files:
        raise error("input-wrong-type", f"{what} asks for no signature")
    return request


class _Head(msgspec.Struct):
    format: str = ""
    format_version: int = 0


def load(path: Path) -> Request:
    """The request in a file; see `decode`."""
    return decode(read_bounded(path, REQUEST_SIZE_BYTES_MAX, "signing request"), str(path))


def save(path: Path, request: Request) -> None:
    """Replaces the file; after a power cut it is the old one or the new one. Raises DeviceError."""
    with os_errors(f"signing request {path}"):
        write_atomic(path, encode(request))


def check(request: Request, now: datetime, pinned: bytes | None = None) -> Checked:
    """Everything that can be proven of a request without keys; `pinned` is a root to start from.

    Raises what the module docstring lists, and `metadata-expired` for a file that has ended already.
    """
    newest = _newest_root(request, now, pinned)
    _check_base_names(request)
    files = {role: _decode(role, data) for role, data in request.files.items()}
    base = {role: signing.decode(lists.kind_of(role), data) for role, data in request.base.items()}
    judges = _Judges(newest, files, base)
    items = []
    for role in sorted(files, key=_order):
        item = Item(role, files[role], base.get(role), judges.of(role))
        _check_follows(item, None if newest is None else newest.version)
        _check_signatures(item)
        if item.metadata.signed.is_expired(now):
            raise error("metadata-expired", f"{role} in the request ends before it could be used")
        items.append(item)
    for role, published in base.items():
        if not signing.verified_by(judges.published(role), published, role):
            raise error(
                "metadata-signature", f"the published {role} in the request is not signed by its keys"
            )
    _check_unchanged(base, items)
    return Checked(request, tuple(items), *_check_releases(request, items))


def _order(role: str) -> tuple[int, str]:
    return (("root", "targets").index(role) if role in ("root", "targets") else 2, role)


def _newest_root(request: Request, now: datetime, pinned: bytes | None) -> Root | None:
    if not request.roots:
        if pinned is not None:
            raise error(
                "metadata-signature", "the request is for a first root, not for the root that was given"
            )
        return None
    roots = request.roots
    if pinned is not None:
        version = signing.decode("root", pinned).signed.version
        if version > len(roots):
            raise error(
                "request-stale",
                f"the request knows {len(roots)} roots, and the one that was given has version {version}",
            )
        roots = (pinned, *roots[version:])
    trusted = TrustedSet(roots[0], now)
    for data in roots[1:]:
        trusted.update_root(data)
    if trusted.root.version != len(request.roots):
        raise error("request-changed", "the request's roots do not begin with version 1")
    return trusted.root


def _check_base_names(request: Request) -> None:
    if "root" in request.base:
        raise error("request-changed", "the request names the published root twice")
    for role in (*request.files, *request.base):
        if role in ("snapshot", "timestamp"):
            raise error("request-changed", f"{role} is signed online, never by a request")


def _decode(role: str, data: bytes) -> Metadata[Any]:
    """A file to be signed; two signatures of one id are told apart from other faults of shape."""
    try:
        ids = [one.keyid for one in msgspec.json.decode(data, type=Envelope).signatures]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error(
            "metadata-malformed", f"{role[:80]} in the request does not parse: {problem}"
        ) from problem
    if len(ids) != len(set(ids)):
        raise error("signature-repeated", f"{role} in the request has two signatures of one key")
    return signing.decode(lists.kind_of(role), data)


@dataclass(frozen=True, slots=True)
class _Judges:
    newest: Root | None
    files: Mapping[str, Metadata[Any]]
    base: Mapping[str, Metadata[Any]]

    def of(self, role: str) -> tuple[Judge, ...]:
        """Whose thresholds a file that waits must reach."""
        if role == "root":
            following: Root = self.files["root"].signed
            return (following,) if self.newest is None else (self.newest, following)
        if role == "targets":
            return (self.files["root"].signed if "root" in self.files else self._root(),)
        return (self._delegator(role, {**self.base, **self.files}),)

    def published(self, role: str) -> Judge:
        """Who vouched for what is published."""
        return self._root() if role == "targets" else self._delegator(role, self.base)

    def _root(self) -> Root:
        if self.newest is None:
            raise error("request-changed", "the request asks for more than a first root, and has no root")
        return self.newest

    def _delegator(self, role: str, files: Mapping[str, Metadata[Any]]) -> Targets:
        def load(name: str) -> Targets | None:
            found = files.get(name)
            return None if found is None else found.signed

        for one, delegator, _ in lists.walk(load):
            if one == role:
                judge = load(delegator)
                assert judge is not None
                return judge
        raise error("request-changed", f"nothing in the request delegates to {role[:80]!r}")


def _check_follows(item: Item, root_version: int | None) -> None:
    version = item.metadata.signed.version
    if item.role == "root":
        before = root_version or 0
    else:
        before = 0 if item.base is None else item.base.signed.version
    if version != before + 1:
        raise error(
            "request-changed",
            f"{item.role} version {version} in the request does not follow version {before}",
        )


def _check_unchanged(base: Mapping[str, Metadata[Any]], items: list[Item]) -> None:
    """What is signed of a release never changes, whichever list it goes to."""
    known = {name: entry for metadata in base.values() for name, entry in metadata.signed.targets.items()}
    for item in items:
        for name, entry in item.metadata.signed.targets.items() if item.role != "root" else ():
            if name in known and known[name].to_dict() != entry.to_dict():
                raise error("request-changed", f"the request changes the signed release {name}")


def _check_signatures(item: Item) -> None:
    """Every signature is of a key that is asked for, over these very bytes, and of another key each."""
    asked = item.asked()
    text = signing.signed_text(item.metadata)
    seen: set[bytes] = set()
    what = f"{item.role} version {item.metadata.signed.version} in the request"
    for keyid, signature in item.metadata.signatures.items():
        if keyid not in asked:
            raise error(
                "signature-unasked", f"{what} is signed by key {keyid[:16]}, which nobody asks to sign"
            )
        key = asked[keyid]
        known = public_key(key.keytype, key.scheme, str(key.keyval["public"]))
        if known is None or not known.verifies(signature.signature, text):
            raise error(
                "signature-invalid",
                f"{what} is not what key {keyid[:16]} has signed: one of the two was changed on the way",
            )
        if known.identity in seen:
            raise error("signature-repeated", f"{what} has two signatures of one key, under two ids")
        seen.add(known.identity)


def new_entries(items: tuple[Item, ...] | list[Item]) -> Iterator[tuple[str, Any]]:
    """The manifests and details that come, by their names."""
    known = {name for item in items if item.role != "root" and item.base for name in item.base.signed.targets}
    for item in items:
        if item.role != "root":
            for name, entry in item.metadata.signed.targets.items():
                if name not in known:
                    yield name, entry


def _check_releases(request: Request, items: list[Item]) -> tuple[dict[str, Manifest], dict[str, Details]]:
    """What the releases that come say, by name; each is what is to be signed, and nothing is too much."""
    manifests: dict[str, Manifest] = {}
    described: dict[str, Details] = {}
    for name, entry in new_entries(items):
        data = request.manifests.get(name)
        if data is None:
            raise error("request-changed", f"the request lacks {name[:80]}, which it lists")
        if name.endswith(details.SUFFIX):
            hashes.check(data, entry.length, entry.hashes, "details-hash", name)
            described[name] = details.decode(data)
            found = described[name].name
        else:
            check_manifest_bytes(entry, data)
            manifests[name] = manifest.decode(data)
            found = manifests[name].name
            if manifests[name].claims != claims_of(entry):
                raise error("metadata-mismatch", f"{name} does not say what is to be signed of it")
        if found != name:
            raise error("metadata-mismatch", f"what the request lists as {name} is {found}")
    for name in request.manifests:
        if name not in manifests and name not in described:
            raise error("request-changed", f"the request brings {name[:80]}, which it does not list")
    return manifests, described


def sign(checked: Checked, ring: KeyRing) -> tuple[Request, list[tuple[str, str]]]:
    """The request with the signatures of every key in `ring` that is asked for, and which those are.

    A file that has enough signatures is left as it is. Raises `signature-repeated` when the keys at hand have
    signed already, `signature-unasked` when none of them is asked for.
    """
    signed: list[tuple[str, str]] = []
    files = dict(checked.request.files)
    for item in checked.items:
        if item.missing:
            for judge in item.judges:
                added = signing.sign(judge, item.metadata, ring, item.role)
                signed += [(item.role, keyid) for keyid in added]
            files[item.role] = signing.encode(item.metadata)
    if not signed:
        raise _nothing_signed(checked, ring)
    return msgspec.structs.replace(checked.request, files=files), signed


def _nothing_signed(checked: Checked, ring: KeyRing) -> TwinlockError:
    mine = [keyid for item in checked.items for keyid in item.asked() if keyid in ring]
    if any(keyid in item.metadata.signatures for item in checked.items for keyid in mine):
        return error("signature-repeated", "your keys have signed this request already")
    if mine:
        return error("signature-repeated", "this request has all signatures that it asks for")
    return error("signature-unasked", "none of the private keys at hand is asked to sign this request")
