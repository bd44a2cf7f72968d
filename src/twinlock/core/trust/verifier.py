"""The client workflow of the TUF specification (1.0.33, section 5) as a pure state machine.

`TrustedSet` starts from a trusted root and takes metadata in the specification's order; each step either
moves trust forward or raises and changes nothing. It does no I/O and reads no clock: `now` is handed in, and
so are the `Floors`, the lowest versions that this client still accepts, which its owner keeps where a power
cut cannot undo them. Metadata types are python-tuf's; the decisions are here.

    roots, one by one -> settle_root -> timestamp -> snapshot -> targets -> delegated roles as needed

What was accepted in an earlier run may be offered again with `load_timestamp` and `load_snapshot`: it counts
as rollback memory even when it has expired, and saves a download when it is still what is listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from twinlock.core.errors import error
from twinlock.core.manifest import Claims
from twinlock.core.trust import delegations, floors, hashes
from twinlock.core.trust.floors import Floors
from twinlock.core.trust.metadata import Document, R, read
from twinlock.core.trust.signatures import check_threshold

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["CUSTOM_KEY", "Floors", "TrustedSet", "check_manifest_bytes", "claims_of"]

CUSTOM_KEY: Final = "twinlock"

Role = Root | Timestamp | Snapshot | Targets


class TrustedSet:
    """Trust in one repository. Feed it root(s), timestamp, snapshot, targets; then ask for releases.

    Raises TrustError `metadata-malformed` or `metadata-signature` when the first root is not usable. `floors`
    rises with what is accepted; keep it durable before acting on what was learnt.
    """

    def __init__(self, root: bytes, now: datetime, floors: Floors | None = None) -> None:
        document = read(Root, root)
        self.root: Root = document.signed
        self._verify_by(self.root, document)
        self.now: Final = now
        self.floors: Floors = floors or Floors()
        self.rotated: bool = False
        self.timestamp: Timestamp | None = None
        self.snapshot: Snapshot | None = None
        self.targets: Targets | None = None
        self._settled = False
        self._kept: Timestamp | None = None
        self._roles: dict[str, Document[Targets]] = {}
        self._vouched: set[tuple[str, str]] = set()

    # The root (5.3)

    def update_root(self, data: bytes) -> None:
        """Takes root version N+1 (5.3.4 to 5.3.9): signed by the old and by the new root's keys.

        An expired one is taken too: only the last has to be fresh. When it takes a key from the timestamp or
        snapshot role, `rotated` becomes true and the floors are forgotten (5.3.11): that is how a repository
        recovers from versions driven to the end by an attacker. Delete stored timestamp and snapshot files
        then, before this root is stored.
        """
        if self._settled:
            raise error("internal", "roots come before the timestamp")
        document = read(Root, data)
        new = document.signed
        self._verify_by(self.root, document)
        if new.version != self.root.version + 1:
            raise error(
                "metadata-rollback", f"root version {new.version} does not follow version {self.root.version}"
            )
        self._verify_by(new, document)
        if floors.lost_keys(floors.under(self.floors, self.root), new):
            self._rotate()
        self.root = new

    def check_root_fresh(self) -> None:
        """Raises TrustError `metadata-expired` when the newest root has expired (5.3.10)."""
        self._check_fresh(self.root, "root")

    def settle_root(self) -> None:
        """Ends the roots: the last one must be fresh, and no older than one trusted before.

        Raises TrustError `metadata-expired`, or `metadata-rollback` when newer roots were withheld.
        """
        if self._settled:
            return
        self.check_root_fresh()
        if self.root.version < self.floors.root:
            raise error(
                "metadata-rollback",
                f"root version {self.root.version} is older than version {self.floors.root} seen before",
            )
        if floors.lost_keys(self.floors, self.root):
            self._rotate()
        self.floors = floors.under(self.floors, self.root)
        self._settled = True

    def _rotate(self) -> None:
        self.rotated = True
        self.floors = floors.forget(self.floors)

    # The timestamp (5.4)

    def load_timestamp(self, data: bytes) -> None:
        """Takes the timestamp that an earlier run accepted, expired or not, as memory of what was seen.

        Raises TrustError when it is not one that the present root vouches for; then go on without it.
        """
        self.settle_root()
        document = read(Timestamp, data)
        self._verify_by(self.root, document)
        floors.check_timestamp(self.floors, document.signed)
        self._kept = document.signed
        self.floors = floors.after_timestamp(self.floors, document.signed)

    def update_timestamp(self, data: bytes) -> bool:
        """Takes the timestamp: signed, not older than seen before, not expired.

        False when its version is the one that `load_timestamp` took: then that one stays in force, and these
        bytes are to be dropped, whatever they say.
        """
        self.settle_root()
        if self.snapshot is not None:
            raise error("internal", "the timestamp comes before the snapshot")
        document = read(Timestamp, data)
        self._verify_by(self.root, document)
        new = document.signed
        if self._kept is not None and new.version == self._kept.version:
            self._check_fresh(self._kept, "timestamp")
            self.timestamp = self._kept
            return False
        floors.check_timestamp(self.floors, new)
        self._check_fresh(new, "timestamp")
        self.timestamp = new
        self.floors = floors.after_timestamp(self.floors, new)
        return True

    # The snapshot (5.5)

    def load_snapshot(self, data: bytes) -> bool:
        """Takes the snapshot that an earlier run accepted as memory of what was seen.

        True when it is the very one that the timestamp lists, and fresh: then nothing is to be fetched.
        Raises TrustError when it is not one that the present root vouches for; then go on without it.
        """
        listed = self._listed_snapshot()
        document = read(Snapshot, data)
        self._verify_by(self.root, document)
        known = document.signed
        self.floors = floors.after_snapshot(self.floors, known)
        if known.version != listed.version or known.is_expired(self.now) or not _is_listed(listed, data):
            return False
        self.snapshot = known
        return True

    def update_snapshot(self, data: bytes) -> None:
        """Takes the snapshot: what the timestamp lists, signed, no file older than before or left out."""
        listed = self._listed_snapshot()
        _check_listed(listed, data, "snapshot metadata")
        document = read(Snapshot, data)
        self._verify_by(self.root, document)
        new = document.signed
        _check_version(new, listed, "snapshot")
        if floors.TOP not in new.meta:
            raise error("metadata-mismatch", "the snapshot does not list targets.json")
        floors.check_snapshot(self.floors, new)
        self._check_fresh(new, "snapshot")
        self.snapshot = new
        self.floors = floors.after_snapshot(self.floors, new)

    def _listed_snapshot(self) -> MetaFile:
        if self.timestamp is None:
            raise error("internal", "the timestamp comes before the snapshot")
        if self.targets is not None:
            raise error("internal", "the snapshot comes before the targets")
        return self.timestamp.snapshot_meta

    # The targets, and the roles they delegate to (5.6)

    def update_targets(self, data: bytes) -> None:
        """Takes the top-level targets: what the snapshot lists, signed, not expired."""
        self.update_role(data, *delegations.FIRST)

    def listed(self, role: str) -> MetaFile:
        """What the snapshot says of a role's file. Raises TrustError `metadata-mismatch` when it does not."""
        if self.snapshot is None:
            raise error("internal", "the snapshot comes before the targets")
        meta = self.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise error("metadata-mismatch", f"the snapshot does not list {role!r}, which is delegated to")
        return meta

    def update_role(self, data: bytes, role: str, delegator: str) -> Targets:
        """Takes the metadata of `role` as `delegator` (another role, or `root`) demands it.

        It must be what the snapshot lists, signed by the keys that this delegator names, and fresh. Raises
        TrustError; then the role is not to be used.
        """
        meta = self.listed(role)
        what = f"{role!r}" if role != delegations.FIRST[0] else role
        _check_listed(meta, data, f"{what} metadata")
        document = read(Targets, data, f"{what} metadata")
        self._verify_by(self._delegator(delegator), document, role)
        _check_version(document.signed, meta, what)
        self._check_fresh(document.signed, what)
        self._roles[role] = document
        self._vouched = {pair for pair in self._vouched if role not in pair} | {(role, delegator)}
        if (role, delegator) == delegations.FIRST:
            self.targets = document.signed
        return document.signed

    def role(self, role: str, delegator: str) -> Targets | None:
        """The metadata of `role` when it was taken already and this delegator vouches for it too; else None.

        A role that two others delegate to is checked against each of them: the keys of one say nothing about
        what the other trusts.
        """
        document = self._roles.get(role)
        if document is None:
            return None
        if (role, delegator) not in self._vouched:
            self._verify_by(self._delegator(delegator), document, role)
            self._vouched.add((role, delegator))
        return document.signed

    def _delegator(self, name: str) -> Root | Targets:
        if name == delegations.FIRST[1]:
            return self.root
        document = self._roles.get(name)
        if document is None:
            raise error("internal", f"the role {name!r} comes before the roles it delegates to")
        return document.signed

    def release(self, name: str) -> TargetFile:
        """What is signed of the manifest called `name`, by the most trusted role that may speak for it.

        Raises TrustError `release-unknown`, or `metadata-missing` when a role is needed that was not taken.
        """
        if self.targets is None:
            raise error("internal", "the targets come before a release")
        found = delegations.find(name, self._taken)
        if found is None:
            raise error("release-unknown", f"no signed release is called {name!r}")
        return found

    def _taken(self, role: str, delegator: str) -> Targets:
        targets = self.role(role, delegator)
        if targets is None:
            raise error("metadata-missing", f"the metadata of the role {role!r} is missing")
        return targets

    # Checks that every step shares

    def _verify_by(self, delegator: Root | Targets, document: Document[R], role: str | None = None) -> None:
        name = role or document.signed.type
        try:
            demanded = delegator.get_delegated_role(name)
        except ValueError as problem:
            raise error("metadata-signature", f"nobody delegates to the role {name!r}") from problem
        if isinstance(delegator, Root):
            keys = delegator.keys
        else:
            keys = delegator.delegations.keys if delegator.delegations else {}
        check_threshold(demanded, keys, document, f"{name} metadata version {document.signed.version}")

    def _check_fresh(self, signed: Role, what: str) -> None:
        if signed.is_expired(self.now):
            raise error(
                "metadata-expired",
                f"{what} metadata version {signed.version} expired at {signed.expires.isoformat()}",
            )


def _check_listed(meta: MetaFile, data: bytes, what: str) -> None:
    """Length and hashes are optional in metadata about metadata; those that are given must match."""
    if meta.hashes:
        hashes.check(data, meta.length, meta.hashes, "metadata-mismatch", what)
    elif meta.length is not None and meta.length != len(data):
        raise error("metadata-mismatch", f"{what} has {len(data)} bytes, not {meta.length} as listed")


def _is_listed(meta: MetaFile, data: bytes) -> bool:
    digests = hashes.strong(meta.hashes or {})
    same = all(hashes.digest(kind, data) == digest for kind, digest in digests.items())
    return same and meta.length in (None, len(data))


def _check_version(signed: Role, meta: MetaFile, what: str) -> None:
    if signed.version != meta.version:
        raise error(
            "metadata-mismatch", f"{what} metadata has version {signed.version}, not {meta.version} as listed"
        )


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
    hashes.check(data, signed.length, signed.hashes, "manifest-hash", f"the manifest {signed.path!r}")
