"""One refresh of a client, and one search: what is fetched, what is kept, and in which order.

Pure orchestration: bytes come from a `Fetch`, files live in a `Store`, the time is handed in. Nothing reaches
the store before it has been verified, so a refused file never takes the place of a good one, and what was
once refused is never found there later. A power cut between two steps leaves a store from which the next
refresh goes on; the floors are written before `refresh` returns or raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from twinlock.core import limits
from twinlock.core.errors import TrustError, error
from twinlock.core.trust import delegations
from twinlock.core.trust.verifier import Floors, TrustedSet

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tuf.api.metadata import MetaFile, TargetFile

T = TypeVar("T")


class Fetch(Protocol):
    """Gets one metadata file of a repository."""

    def __call__(self, path: str, size_bytes_max: int) -> bytes | None:
        """The file at `path` below the metadata's address, such as `3.root.json`; None when there is none.

        Raises TransportError when it cannot be had, and TrustError `transfer-oversized` as soon as there are
        more than `size_bytes_max` bytes. It follows no redirect to another host and bounds its time.
        """
        ...


class Store(Protocol):
    """Holds verified metadata by role, and the floors. A write is durable and whole, or never was."""

    def load(self, role: str) -> bytes | None:
        """The role's file byte for byte as it was saved; None when there is none."""
        ...

    def save(self, role: str, data: bytes) -> None:
        """Replaces the role's file. Raises DeviceError, and then the old file is still there."""
        ...

    def delete(self, role: str) -> None:
        """Removes the role's file, if there is one."""
        ...

    def load_floors(self) -> Floors:
        """The floors saved last; `Floors()` when none were ever saved."""
        ...

    def save_floors(self, floors: Floors) -> None:
        """Replaces the floors."""
        ...


class Client:
    """A client of one repository at one time. `pinned` is the root that it was made with.

    The stored root serves when it is valid and newer than the pinned one; so a lost root file costs nothing
    but the way from the pinned root on.
    """

    def __init__(self, fetch: Fetch, store: Store, now: datetime, pinned: bytes | None = None) -> None:
        self._fetch = fetch
        self._store = store
        self._now = now
        self._pinned = pinned
        self._trusted: TrustedSet | None = None

    def refresh(self) -> TrustedSet:
        """Brings the top-level metadata up to date and gives the trusted set.

        Raises TrustError when the repository offers what must not be trusted, or lacks a file;
        TransportError when a file cannot be fetched.
        """
        floors = self._store.load_floors()
        trusted = self._first_root(floors)
        try:
            self._roots(trusted)
            self._timestamp(trusted)
            self._snapshot(trusted)
            self._role(trusted, *delegations.FIRST)
        finally:
            if trusted.floors != floors:
                self._store.save_floors(trusted.floors)
        self._trusted = trusted
        return trusted

    def follow_roots(self) -> TrustedSet:
        """Trust in the newest root alone, for metadata that comes another way than by `Fetch`.

        The roots and the floors that go with them are kept. Raises as `refresh` does.
        """
        floors = self._store.load_floors()
        trusted = self._first_root(floors)
        try:
            self._roots(trusted)
        finally:
            if trusted.floors != floors:
                self._store.save_floors(trusted.floors)
        return trusted

    def find(self, name: str) -> TargetFile:
        """What is signed of `name`, fetching the delegated roles that it takes; refreshes first if needed.

        Raises TrustError `release-unknown` when no role lists it, and as `refresh` does.
        """
        trusted = self._trusted or self.refresh()
        found = delegations.find(name, lambda role, delegator: self._role(trusted, role, delegator))
        if found is None:
            raise error("release-unknown", f"no signed file is called {name!r}")
        return found

    def _first_root(self, floors: Floors) -> TrustedSet:
        stored = self._store.load(Root.type)
        if stored is None and self._pinned is None:
            raise error("metadata-missing", "there is no root metadata to start from")
        candidates: list[TrustedSet] = []
        problems: list[TrustError] = []
        for data in (stored, self._pinned):
            if data is not None:
                try:
                    candidates.append(TrustedSet(data, self._now, floors))
                except TrustError as problem:
                    problems.append(problem)
        if not candidates:
            raise problems[0]
        return max(candidates, key=lambda trusted: trusted.root.version)

    def _roots(self, trusted: TrustedSet) -> None:
        for _ in range(limits.ROOT_ROTATIONS_MAX):
            path = f"{trusted.root.version + 1}.{Root.type}.json"
            data = self._fetch(path, limits.METADATA_SIZE_BYTES_MAX[Root.type])
            if data is None:
                break
            trusted.update_root(data)
            self._after_rotation(trusted)
            self._store.save(Root.type, data)
        trusted.settle_root()
        self._after_rotation(trusted)

    def _after_rotation(self, trusted: TrustedSet) -> None:
        """Before the new root is saved: after a cut of power the next run could no longer tell (5.3.11)."""
        if trusted.rotated:
            self._store.delete(Timestamp.type)
            self._store.delete(Snapshot.type)

    def _timestamp(self, trusted: TrustedSet) -> None:
        stored = self._store.load(Timestamp.type)
        if stored is not None:
            _try(lambda: trusted.load_timestamp(stored))
        path = f"{Timestamp.type}.json"
        data = self._fetch(path, limits.METADATA_SIZE_BYTES_MAX[Timestamp.type])
        if data is None:
            raise error("metadata-missing", "the repository has no timestamp.json")
        if trusted.update_timestamp(data):
            self._store.save(Timestamp.type, data)

    def _snapshot(self, trusted: TrustedSet) -> None:
        stored = self._store.load(Snapshot.type)
        if stored is not None and _try(lambda: trusted.load_snapshot(stored)):
            return
        assert trusted.timestamp is not None
        data = self._listed(trusted, Snapshot.type, Snapshot.type, trusted.timestamp.snapshot_meta)
        trusted.update_snapshot(data)
        self._store.save(Snapshot.type, data)

    def _role(self, trusted: TrustedSet, role: str, delegator: str) -> Targets:
        taken = trusted.role(role, delegator)
        if taken is not None:
            return taken
        meta = trusted.listed(role)
        stored = self._store.load(role)
        if stored is not None:
            kept = _try(lambda: trusted.update_role(stored, role, delegator))
            if kept is not None:
                return kept
        data = self._listed(trusted, role, Targets.type, meta)
        targets = trusted.update_role(data, role, delegator)
        self._store.save(role, data)
        return targets

    def _listed(self, trusted: TrustedSet, role: str, kind: str, meta: MetaFile) -> bytes:
        """Fetches a file that other metadata lists, in that version, and no longer than it says."""
        name = f"{delegations.file_name(role)}.json"
        path = f"{meta.version}.{name}" if trusted.root.consistent_snapshot else name
        size_bytes_max = limits.METADATA_SIZE_BYTES_MAX[kind]
        if meta.length is not None:
            size_bytes_max = min(size_bytes_max, meta.length)
        data = self._fetch(path, size_bytes_max)
        if data is None:
            raise error("metadata-missing", f"the repository lacks {path}, which its metadata lists")
        return data


def _try(step: Callable[[], T]) -> T | None:
    """What `step` gives for a stored file, or None: one that no longer holds is passed over."""
    try:
        return step()
    except TrustError:
        return None
