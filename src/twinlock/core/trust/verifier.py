"""The client workflow of the TUF specification (1.0.33, section 5) as a pure state machine.

`TrustedSet` starts from a trusted root and takes metadata in the specification's order; each step either
moves trust forward or raises and changes nothing. It does no I/O and reads no clock: `now` is handed in, and
so are the `Floors`, the lowest versions that this client still accepts, which its owner keeps where a power
cut cannot undo them. Signature arithmetic and metadata types are python-tuf's; the decisions are here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, cast

import msgspec
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.manifest import Claims
from twinlock.core.trust import strict

if TYPE_CHECKING:
    from datetime import datetime

CUSTOM_KEY: Final = "twinlock"

Role = Root | Timestamp | Snapshot | Targets
R = TypeVar("R", Root, Timestamp, Snapshot, Targets)


class Floors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lowest version accepted per role; 0 when nothing was seen yet. Kept durable by the client."""

    timestamp: int = 0
    snapshot: int = 0
    targets: int = 0


def _parse(kind: type[R], data: bytes) -> Metadata[R]:
    role = kind.type
    strict.load(data, limits.METADATA_SIZE_BYTES_MAX[role], f"{role} metadata")
    try:
        parsed = cast("Metadata[R]", Metadata.from_bytes(data))
    except (RepositoryError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise error("metadata-malformed", f"{role} metadata does not parse: {problem}") from problem
    if not isinstance(parsed.signed, kind):
        raise error("metadata-malformed", f"expected {role} metadata, got {parsed.signed.type}")
    if not 0 < parsed.signed.version <= limits.METADATA_VERSION_MAX:
        raise error("metadata-malformed", f"{role} metadata has version {parsed.signed.version}")
    if parsed.signed.unrecognized_fields.get("critical"):
        raise error("format-unknown", f"{role} metadata has critical fields that this version does not know")
    return parsed


def _verify(root: Root, role: str, parsed: Metadata[R]) -> None:
    try:
        root.verify_delegate(role, parsed.signed_bytes, parsed.signatures)
    except (RepositoryError, ValueError) as problem:
        raise error(
            "metadata-signature", f"{role} metadata is not signed as the root demands: {problem}"
        ) from (problem)


def _check_meta(meta: MetaFile, data: bytes, what: str) -> None:
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as problem:
        raise error("metadata-mismatch", f"{what} metadata is not what is listed: {problem}") from problem


class TrustedSet:
    """Trust in one repository. Feed it root(s), timestamp, snapshot, targets; then ask for releases.

    Raises TrustError `metadata-malformed` or `metadata-signature` when the first root is not usable.
    """

    def __init__(self, root: bytes, now: datetime, floors: Floors | None = None) -> None:
        parsed = _parse(Root, root)
        self.root: Root = parsed.signed
        _verify(self.root, Root.type, parsed)
        self.now: Final = now
        self.floors: Floors = floors or Floors()
        self.timestamp: Timestamp | None = None
        self.snapshot: Snapshot | None = None
        self.targets: Targets | None = None

    def update_root(self, data: bytes) -> None:
        """Takes root version N+1 (5.3.4 to 5.3.9): signed by the old and by the new root's keys.

        A rotation of the timestamp's or snapshot's keys forgets the floors of both (5.3.11): that is how a
        repository recovers from versions driven to the end by an attacker.
        """
        if self.timestamp is not None:
            raise error("internal", "roots come before the timestamp")
        parsed = _parse(Root, data)
        new = parsed.signed
        _verify(self.root, Root.type, parsed)
        if new.version != self.root.version + 1:
            raise error(
                "metadata-rollback", f"root version {new.version} does not follow version {self.root.version}"
            )
        _verify(new, Root.type, parsed)
        for role in (Timestamp.type, Snapshot.type):
            if new.roles[role].keyids != self.root.roles[role].keyids:
                self.floors = msgspec.structs.replace(self.floors, timestamp=0, snapshot=0)
        if new.roles[Targets.type].keyids != self.root.roles[Targets.type].keyids:
            self.floors = msgspec.structs.replace(self.floors, targets=0, snapshot=0, timestamp=0)
        self.root = new

    def check_root_fresh(self) -> None:
        """Raises TrustError `metadata-expired` when the newest root has expired (5.3.10)."""
        self._check_fresh(self.root)

    def _check_fresh(self, signed: Role) -> None:
        if signed.is_expired(self.now):
            raise error(
                "metadata-expired",
                f"{signed.type} metadata version {signed.version} expired at {signed.expires.isoformat()}",
            )

    def update_timestamp(self, data: bytes) -> None:
        """Takes the timestamp (5.4): signed, not older than seen before, not expired."""
        self.check_root_fresh()
        parsed = _parse(Timestamp, data)
        _verify(self.root, Timestamp.type, parsed)
        new = parsed.signed
        if new.version < self.floors.timestamp or new.snapshot_meta.version < self.floors.snapshot:
            raise error(
                "metadata-rollback",
                f"timestamp version {new.version} (snapshot {new.snapshot_meta.version}) is older than "
                f"version {self.floors.timestamp} (snapshot {self.floors.snapshot}) seen before",
            )
        self._check_fresh(new)
        self.timestamp = new
        self.floors = msgspec.structs.replace(self.floors, timestamp=new.version)

    def update_snapshot(self, data: bytes) -> None:
        """Takes the snapshot (5.5): what the timestamp lists, signed, no file older than before."""
        if self.timestamp is None:
            raise error("internal", "the timestamp comes before the snapshot")
        listed = self.timestamp.snapshot_meta
        _check_meta(listed, data, "snapshot")
        parsed = _parse(Snapshot, data)
        _verify(self.root, Snapshot.type, parsed)
        new = parsed.signed
        if new.version != listed.version:
            raise error(
                "metadata-mismatch", f"snapshot has version {new.version}, not {listed.version} as listed"
            )
        meta = new.meta.get("targets.json")
        if meta is None:
            raise error("metadata-mismatch", "the snapshot does not list targets.json")
        if meta.version < self.floors.targets:
            raise error(
                "metadata-rollback",
                f"targets version {meta.version} is older than version {self.floors.targets} seen before",
            )
        self._check_fresh(new)
        self.snapshot = new
        self.floors = msgspec.structs.replace(self.floors, snapshot=new.version)

    def update_targets(self, data: bytes) -> None:
        """Takes the top-level targets (5.6): what the snapshot lists, signed, not expired."""
        if self.snapshot is None:
            raise error("internal", "the snapshot comes before the targets")
        listed = self.snapshot.meta["targets.json"]
        _check_meta(listed, data, "targets")
        parsed = _parse(Targets, data)
        _verify(self.root, Targets.type, parsed)
        new = parsed.signed
        if new.version != listed.version:
            raise error(
                "metadata-mismatch", f"targets have version {new.version}, not {listed.version} as listed"
            )
        self._check_fresh(new)
        self.targets = new
        self.floors = msgspec.structs.replace(self.floors, targets=new.version)

    def release(self, name: str) -> TargetFile:
        """What is signed of the manifest called `name`. Raises TrustError `release-unknown`."""
        if self.targets is None:
            raise error("internal", "the targets come before a release")
        found = self.targets.targets.get(name)
        if found is None:
            raise error("release-unknown", f"no signed release is called {name!r}")
        return found


def claims_of(signed: TargetFile) -> Claims:
    """The claims in a signed entry's custom block. Raises TrustError `metadata-malformed`."""
    custom = signed.unrecognized_fields.get("custom")
    if not isinstance(custom, dict) or CUSTOM_KEY not in custom:
        raise error("metadata-malformed", f"the signed entry of {signed.path!r} has no Twinlock block")
    try:
        return msgspec.convert(custom[CUSTOM_KEY], Claims, strict=True)
    except msgspec.ValidationError as problem:
        raise error("metadata-malformed", f"the block of {signed.path!r} is wrong: {problem}") from problem


def check_manifest_bytes(signed: TargetFile, data: bytes) -> None:
    """Raises TrustError `manifest-hash` unless `data` has the signed length and every signed hash."""
    if "sha256" not in signed.hashes:
        raise error("manifest-hash", f"{signed.path!r} is listed without a SHA-256")
    try:
        signed.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as problem:
        raise error("manifest-hash", f"the manifest {signed.path!r} is not the signed one") from problem
