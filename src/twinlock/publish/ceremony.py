"""From what waits for signatures to a new state: who signs what, in which order, and what is still missing.

`complete` is the one way on: every command that changes something prepares `pending`, then calls it. It adds
the signatures of the keys at hand, and puts the new state in force when nothing is missing. Root and targets
can collect signatures at the same time; the snapshot is made once the targets are final, the timestamp once
the snapshot is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from twinlock.core.errors import TwinlockError, error
from twinlock.publish import lists, signing
from twinlock.publish.keys import KeyRing
from twinlock.publish.repository import Chain, Repository
from twinlock.publish.signing import Lifetimes, Signatures


@dataclass(slots=True)
class Ceremony:
    """One run over a repository: the keys at hand, the time, and what has been signed so far."""

    repository: Repository
    ring: KeyRing
    now: datetime
    lifetimes: Lifetimes
    signed: list[tuple[str, str]] = field(default_factory=list)  # (role, key id)
    dropped: int = 0  # signatures on what waited before and was changed

    def complete(self, *, renew: bool = False) -> dict[str, int]:
        """Signs what waits and, if nothing is missing then, brings it into force.

        With `renew` the snapshot and timestamp are made anew though nothing else changed. Gives the versions
        that came into force, by role; none when there was nothing to do. Raises InputError `key-threshold`
        when signatures are missing; those that were added are kept. TrustError `metadata-expired` when the
        root has to be renewed first.
        """
        repository = self.repository
        before = repository.chain
        self._check_root_fresh()
        self._prepare_resign()
        missing = self._sign_root() + self._sign("targets")
        for role in self._delegated():
            missing += self._sign(role)
        repository.save_pending()
        if missing:
            raise incomplete(repository, missing)
        roots = self._roots()
        targets = self._bytes("targets")
        if targets is None:
            chain = Chain(roots)
        else:
            named = {role: data for role in self._delegated() if (data := self._bytes(role)) is not None}
            delegated = {**repository.retired(), **named}
            snapshot = self._lower("snapshot", {"targets": targets, **delegated}, renew)
            timestamp = self._lower("timestamp", {"snapshot": snapshot}, renew)
            chain = Chain(roots, timestamp, snapshot, targets, delegated)
        if chain == before:
            return {}
        repository.commit(chain, self.now)
        return versions(before, chain)

    def _next_root(self) -> Root:
        return self.repository.need_root().signed

    def _check_root_fresh(self) -> None:
        root = self._next_root()
        if root.is_expired(self.now):
            raise error(
                "metadata-expired",
                f"root version {root.version} expired at {root.expires.isoformat()}: "
                "devices would refuse whatever is signed now",
                hint=f"first renew it with `twinlock keys rotate --repo {self.repository.folder}`",
            )

    def _roots(self) -> tuple[bytes, ...]:
        published = () if self.repository.chain is None else self.repository.chain.roots
        pending = self.repository.pending.get("root")
        return published if pending is None else (*published, signing.encode(pending))

    def _bytes(self, role: str) -> bytes | None:
        pending = self.repository.pending.get(role)
        if pending is not None:
            return signing.encode(pending)
        if self.repository.chain is None:
            return None
        if role in signing.KINDS:
            return cast("bytes | None", getattr(self.repository.chain, role))
        return self.repository.chain.delegated.get(role)

    def _delegated(self) -> list[str]:
        """Every list but the top one, those that delegate before those that are delegated to."""
        return [role for role, _, _ in lists.walk(self.repository.list_of) if role != lists.TOP]

    def judge(self, role: str) -> Root | Targets:
        """Who says which keys sign for `role`, in the state that comes next."""
        return judge_of(self.repository, role)

    def _prepare_resign(self) -> None:
        """Published lists that the next state no longer vouches for, or that expired, are signed again.

        A list that waits already is left alone, but its bins get the keys that sign it.
        """
        for role in [lists.TOP, *self._delegated()]:
            judge, published = self.judge(role), self.repository.published(role)
            if published is not None and role not in self.repository.pending:
                stale = not signing.verified_by(judge, published, role) or lists.follow_keys(
                    role, copy.deepcopy(published.signed), judge
                )
                if stale or published.signed.is_expired(self.now):
                    self.renew(role)
            waiting = self.repository.pending.get(role)
            if waiting is not None and lists.follow_keys(role, waiting.signed, judge):
                self.dropped += len(waiting.signatures)
                waiting.signatures.clear()

    def renew_targets(self) -> None:
        """Prepares the next version of every list with the same releases and a new end."""
        for role in [lists.TOP, *self._delegated()]:
            self.renew(role)

    def renew(self, role: str) -> None:
        """Prepares the next version of one list, unless one waits already."""
        published = self.repository.published(role)
        if published is not None and role not in self.repository.pending:
            self.repository.pending[role] = self.following(published)

    def following(self, metadata: Metadata[Any]) -> Metadata[Any]:
        """An unsigned copy, one version on, valid from now."""
        signed = copy.deepcopy(metadata.signed)
        signed.version += 1
        signed.expires = signing.expires(signed.type, self.now, self.lifetimes)
        return Metadata(signed)

    def _sign_root(self) -> list[Signatures]:
        """A new root needs the thresholds of the old one and its own."""
        pending = self.repository.pending.get("root")
        if pending is None:
            return []
        published = self.repository.root
        judges = [pending.signed] if published is None else [published.signed, pending.signed]
        missing = [found for judge in judges if (found := self._sign_by(judge, pending, "root")).missing]
        return missing[:1]

    def _sign(self, role: str) -> list[Signatures]:
        pending = self.repository.pending.get(role)
        if pending is None:
            return []
        found = self._sign_by(self.judge(role), pending, role)
        return [found] if found.missing else []

    def _sign_by(self, judge: Root | Targets, metadata: Metadata[Any], role: str) -> Signatures:
        """Signs unless enough have: bytes that the next file names already must not change any more."""
        if signing.count(judge, metadata, role).missing:
            for keyid in signing.sign(judge, metadata, self.ring, role):
                self.signed.append((role, keyid))
        return signing.count(judge, metadata, role)

    def _lower(self, role: str, above: Mapping[str, bytes], renew: bool) -> bytes:
        """The snapshot for the lists `above`, or the timestamp for the snapshot `above`, signed."""
        repository = self.repository
        pending, published = repository.pending.get(role), repository.published(role)
        if pending is None or _names(pending) != above_meta(above) or pending.signed.is_expired(self.now):
            if published is not None and not renew and self._still_good(published, above):
                repository.pending.pop(role, None)
                data = self._bytes(role)
                assert data is not None
                return data
            repository.pending[role] = self._new(role, above)
        missing = self._sign(role)
        repository.save_pending()
        if missing:
            raise incomplete(repository, missing)
        data = self._bytes(role)
        assert data is not None
        return data

    def _still_good(self, published: Metadata[Any], above: Mapping[str, bytes]) -> bool:
        return (
            _names(published) == above_meta(above)
            and signing.verified_by(self._next_root(), published)
            and not published.signed.is_expired(self.now)
        )

    def _new(self, role: str, above: Mapping[str, bytes]) -> Metadata[Any]:
        published = self.repository.published(role)
        version = 1 if published is None else published.signed.version + 1
        ends = signing.expires(role, self.now, self.lifetimes)
        meta = {name: signing.meta_file(one) for name, one in above_meta(above).items()}
        if role == "snapshot":
            return Metadata(Snapshot(version, signing.SPEC_VERSION, ends, meta=meta))
        return Metadata(Timestamp(version, signing.SPEC_VERSION, ends, snapshot_meta=meta["snapshot.json"]))


def judge_of(repository: Repository, role: str) -> Root | Targets:
    """Who says which keys sign for `role`, in the state that comes next."""
    if role in signing.KINDS:
        return repository.need_root().signed
    for one, delegator, _ in lists.walk(repository.list_of):
        if one == role:
            found = repository.list_of(delegator)
            assert found is not None
            return found
    raise error("metadata-signature", f"a list {role} waits for signatures, and nobody delegates to it")


Meta = tuple[int, int, str]


def above_meta(above: Mapping[str, bytes]) -> dict[str, Meta]:
    """How the next file names the files `above` it, by role: version, length, SHA-256 of each `ROLE.json`."""
    return {
        f"{role}.json": signing.meta_of(data, signing.decode(lists.kind_of(role), data).signed.version)
        for role, data in above.items()
    }


def _names(metadata: Metadata[Any]) -> dict[str, Meta] | None:
    signed = metadata.signed
    listed = signed.meta if isinstance(signed, Snapshot) else {"snapshot.json": signed.snapshot_meta}
    found: dict[str, Meta] = {}
    for name, one in listed.items():
        if one.length is None or not one.hashes:
            return None
        found[name] = (one.version, one.length, one.hashes.get("sha256", ""))
    return found


def incomplete(repository: Repository, missing: list[Signatures]) -> TwinlockError:
    """What is signed so far and how many more it takes, for each file that waits."""
    texts = [
        f"{found.role} version {found.version} has {found.have} of {found.need} signatures, "
        f"{found.missing} more needed"
        for found in missing
    ]
    roles = " and ".join(dict.fromkeys(found.role for found in missing))
    return error(
        "key-threshold",
        f"{repository.folder}: " + "; ".join(texts),
        hint=f"nothing is lost: other holders of {roles} keys run "
        f"`twinlock release sign --repo {repository.folder} --keys THEIR_KEYS`, or sign the file that "
        f"`twinlock release request --repo {repository.folder}` makes",
    )


def versions(before: Chain | None, after: Chain) -> dict[str, int]:
    """Which versions came into force, by role."""
    found: dict[str, int] = {}
    if before is None or before.roots != after.roots:
        found["root"] = len(after.roots)
    for role in sorted(after.delegated):
        data = after.delegated[role]
        if before is None or before.delegated.get(role) != data:
            found[role] = signing.decode("targets", data).signed.version
    for role in ("targets", "snapshot", "timestamp"):
        data = getattr(after, role)
        if data is not None and (before is None or getattr(before, role) != data):
            found[role] = signing.decode(role, data).signed.version
    return found
