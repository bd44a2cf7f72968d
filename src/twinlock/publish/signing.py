"""Making and signing metadata: what a new version of each role says, and who has signed it so far.

Every role's file names the next one by version, length and hash, so a file is fixed before the one above it
is made. Signed bytes are the canonical form that `core.trust` verifies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, cast

import msgspec
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Key, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import CanonicalJSONSerializer, JSONSerializer

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.manifest import Claims
from twinlock.core.trust.keys import public_key
from twinlock.core.trust.metadata import read
from twinlock.core.trust.verifier import CUSTOM_KEY
from twinlock.publish.keys import ROLES, KeyRing

SPEC_VERSION: Final = "1.0.33"
KINDS: Final[dict[str, type[Root] | type[Targets] | type[Snapshot] | type[Timestamp]]] = {
    "root": Root,
    "targets": Targets,
    "snapshot": Snapshot,
    "timestamp": Timestamp,
}


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """For how many days a new version of each role is valid.

    A device refuses what has expired, so the short ones bound for how long a stolen server can hold a fleet
    back; they need `release refresh` before they end.
    """

    root_days: int = 365
    targets_days: int = 365
    snapshot_days: int = 30
    timestamp_days: int = 7

    def days(self, role: str) -> int:
        return int(getattr(self, f"{role}_days"))


LIFETIME_DAYS_MAX: Final = 3650


def expires(role: str, now: datetime, lifetimes: Lifetimes) -> datetime:
    """When a version of `role` made `now` expires. Raises InputError `input-invalid` outside 1..3650 days."""
    days = lifetimes.days(role)
    if not 1 <= days <= LIFETIME_DAYS_MAX:
        raise error("input-invalid", f"{role} metadata can be valid for 1 to {LIFETIME_DAYS_MAX} days")
    return now.replace(microsecond=0) + timedelta(days=days)


def warn_days(role: str) -> int:
    """How many days before its end a role's metadata should be renewed: a quarter of its usual life."""
    return max(1, Lifetimes().days(role) // 4)


def encode(metadata: Metadata[Any]) -> bytes:
    """The file's bytes: indented JSON, keys sorted, so that people can read and compare it."""
    metadata.signatures = dict(sorted(metadata.signatures.items()))
    data: bytes = metadata.to_bytes(JSONSerializer(compact=False))
    return data


def decode(role: str, data: bytes) -> Metadata[Any]:
    """The metadata in `data`, its shape checked as a device would. Raises TrustError."""
    read(cast("type[Root]", KINDS[role]), data)  # for the checker they are all one
    return Metadata.from_bytes(data)


def signed_text(metadata: Metadata[Any]) -> bytes:
    """The bytes that signatures are over."""
    text: bytes = CanonicalJSONSerializer().serialize(metadata.signed)
    return text


def new_root(
    keys: Mapping[str, Iterable[SSlibKey]], thresholds: Mapping[str, int], ends: datetime, version: int
) -> Metadata[Root]:
    """A root that names `keys` and `thresholds` per role.

    Raises InputError `key-missing` for a role without keys, `key-threshold` for a threshold that is more than
    their number.
    """
    root = Root(version=version, spec_version=SPEC_VERSION, expires=ends, consistent_snapshot=True)
    for role in ROLES:
        listed = {str(key.keyid): key for key in keys.get(role, ())}
        if not listed:
            raise error(
                "key-missing",
                f"there is no key for the role {role}",
                hint=f"make one with `twinlock keys create --role {role}`, or put its .pub file there",
            )
        if len(listed) > limits.SIGNATURES_MAX:
            raise error("input-too-large", f"a role has at most {limits.SIGNATURES_MAX} keys")
        threshold = thresholds.get(role, 1)
        if not 1 <= threshold <= len(listed):
            raise error(
                "key-threshold",
                f"{role} cannot need {threshold} signatures: it has {len(listed)} keys",
                hint="add keys, or choose a threshold between 1 and their number",
            )
        for key in listed.values():
            root.add_key(key, role)
        root.roles[role].threshold = threshold
    return Metadata(root)


def entry(name: str, manifest: bytes, claims: Claims) -> TargetFile:
    """What is signed of a manifest: length, hash, and its claims once more."""
    custom = {CUSTOM_KEY: msgspec.json.decode(msgspec.json.encode(claims))}
    return TargetFile(
        length=len(manifest),
        hashes={"sha256": hashlib.sha256(manifest).hexdigest()},
        path=name,
        unrecognized_fields={"custom": custom},
    )


def meta_of(data: bytes, version: int) -> tuple[int, int, str]:
    """How one metadata file names another: version, length in bytes, SHA-256 in hex."""
    return version, len(data), hashlib.sha256(data).hexdigest()


def meta_file(meta: tuple[int, int, str]) -> MetaFile:
    """What `meta_of` gave, as metadata writes it."""
    version, length, sha256 = meta
    return MetaFile(version=version, length=length, hashes={"sha256": sha256})


@dataclass(frozen=True, slots=True)
class Signatures:
    """Who has signed a file: `have` of `need`, and the ids of the keys that have not."""

    role: str
    version: int
    have: int
    need: int
    waiting: tuple[str, ...]

    @property
    def missing(self) -> int:
        return max(0, self.need - self.have)


def count(judge: Root | Targets, metadata: Metadata[Any], role: str | None = None) -> Signatures:
    """Who has signed `metadata` as `judge` demands it of `role`; a key counts once, whatever ids it has.

    `role` is needed for delegated roles alone; `judge` is who delegates to it.
    """
    role = role or str(metadata.signed.type)
    demanded = judge.get_delegated_role(role)
    keys = keys_of(judge)
    text = signed_text(metadata)
    signers, waiting = set(), []
    for keyid in demanded.keyids:
        key, signature = keys[keyid], metadata.signatures.get(keyid)
        known = public_key(key.keytype, key.scheme, str(key.keyval["public"]))
        if known is not None and signature is not None and known.verifies(signature.signature, text):
            signers.add(known.identity)
        else:
            waiting.append(keyid)
    return Signatures(role, metadata.signed.version, len(signers), demanded.threshold, tuple(waiting))


def keys_of(judge: Root | Targets) -> Mapping[str, Key]:
    """The keys that a root, or a list of releases with delegations, names; by id."""
    if isinstance(judge, Root):
        return cast("Mapping[str, Key]", judge.keys)
    return {} if judge.delegations is None else cast("Mapping[str, Key]", judge.delegations.keys)


def sign(judge: Root | Targets, metadata: Metadata[Any], ring: KeyRing, role: str | None = None) -> list[str]:
    """Adds the signature of every key of the role that is in `ring`; gives the ids of those that signed."""
    signed = []
    for keyid in count(judge, metadata, role).waiting:
        signer = ring.signer(keyid)
        if signer is not None:
            metadata.sign(signer, append=True)
            signed.append(keyid)
    return signed


def verified_by(judge: Root | Targets, metadata: Metadata[Any], role: str | None = None) -> bool:
    """Whether enough of the role's keys in `judge` have signed."""
    return count(judge, metadata, role).missing == 0
