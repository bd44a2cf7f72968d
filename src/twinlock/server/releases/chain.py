"""Which metadata may replace what is served: verified from the pinned root, never older than what is there.

What is served now is the memory: its roots lead to the newest one, its timestamp and snapshot say which
versions were seen. A rotation of the timestamp's or snapshot's keys forgets the versions (TUF 5.3.11), as it
does on every device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tuf.api.metadata import Root, Timestamp

from twinlock.core.errors import TrustError, error
from twinlock.core.trust.delegations import delegated_roles, file_name
from twinlock.core.trust.metadata import read
from twinlock.core.trust.verifier import TrustedSet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from twinlock.core.trust.floors import Floors
    from twinlock.server.releases.ports import MetadataFolder

ROOTS_PER_PUBLICATION_MAX: Final = 64
DELEGATED_PER_PUBLICATION_MAX: Final = 1024
_TIMESTAMP: Final = "timestamp.json"


@dataclass(frozen=True, slots=True)
class Offered:
    """Metadata that somebody wants to publish: bytes as they were signed."""

    roots: tuple[bytes, ...]
    timestamp: bytes
    snapshot: bytes
    targets: bytes
    delegated: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verified:
    """Trust in what was offered, and the files to be written, in the order in which they must be."""

    trusted: TrustedSet
    files: Mapping[str, bytes]

    @property
    def versions(self) -> str:
        """For people: which versions these are."""
        trusted = self.trusted
        assert trusted.timestamp is not None
        assert trusted.snapshot is not None
        assert trusted.targets is not None
        return (
            f"root {trusted.root.version}, targets {trusted.targets.version}, "
            f"snapshot {trusted.snapshot.version}, timestamp {trusted.timestamp.version}"
        )


def newest_root(pinned: bytes, folder: MetadataFolder, now: datetime) -> bytes:
    """The newest root that is served, reached from the pinned one step by step.

    Raises TrustError when a root in the folder does not follow the one before: the folder was tampered with.
    """
    trusted, newest = TrustedSet(pinned, now), pinned
    served = folder.roots()
    while (data := served.get(trusted.root.version + 1)) is not None:
        trusted.update_root(data)
        newest = data
    return newest


def verify(offered: Offered, pinned: bytes, folder: MetadataFolder, now: datetime) -> Verified:
    """Checks the whole chain. Raises TrustError; nothing is written here.

    The very metadata that is served already passes, so that a publication can be repeated. Codes:
    `metadata-signature` not signed as the root demands, `metadata-rollback` older than what is served,
    `metadata-expired`, `metadata-mismatch` not what is listed; PolicyError `conflict` for other bytes under a
    version that is served.
    """
    if len(offered.roots) > ROOTS_PER_PUBLICATION_MAX:
        raise error("request-too-large", f"more than {ROOTS_PER_PUBLICATION_MAX} roots are offered")
    trusted = TrustedSet(newest_root(pinned, folder, now), now)
    new_roots = _take_roots(trusted, offered.roots, folder.roots())
    memory = _Memory(trusted, folder)
    if not trusted.update_timestamp(offered.timestamp) and offered.timestamp != memory.timestamp:
        raise _conflict(_TIMESTAMP)
    memory.take_snapshot()
    known = trusted.floors
    trusted.update_snapshot(offered.snapshot)
    trusted.update_targets(offered.targets)
    assert trusted.snapshot is not None
    assert trusted.targets is not None
    snapshot_name = f"{trusted.snapshot.version}.snapshot.json"
    targets_name = f"{trusted.targets.version}.targets.json"
    if memory.snapshot_version and trusted.snapshot.version <= memory.snapshot_version:
        _check_unchanged(folder, snapshot_name, offered.snapshot)
    if trusted.targets.version <= known.targets:
        _check_unchanged(folder, targets_name, offered.targets)
    files = _take_delegated(trusted, offered, known, folder)
    files |= {targets_name: offered.targets, snapshot_name: offered.snapshot}
    files |= {f"{version}.root.json": data for version, data in new_roots.items()}
    files[_TIMESTAMP] = offered.timestamp
    return Verified(trusted, files)


def _take_delegated(
    trusted: TrustedSet, offered: Offered, known: Floors, folder: MetadataFolder
) -> dict[str, bytes]:
    """Takes every list that the snapshot names, from what is offered or served; the files by name."""
    assert trusted.snapshot is not None
    files: dict[str, bytes] = {}
    waiting = [("targets", trusted.targets)]
    seen = set[tuple[str, str]]()
    while waiting:
        delegator, signed = waiting.pop(0)
        for role in delegated_roles(signed):
            if (role, delegator) in seen:  # lists may delegate in a circle
                continue
            seen.add((role, delegator))
            version = trusted.listed(role).version
            name = f"{version}.{file_name(role)}.json"
            data = offered.delegated.get(role) or folder.read(name)
            if data is None:
                raise error("metadata-missing", f"the list {role[:80]}, which is delegated to, was not sent")
            waiting.append((role, trusted.update_role(data, role, delegator)))
            if version <= known.delegated.get(f"{role}.json", 0):
                _check_unchanged(folder, name, data)
            files[name] = data
            if len(files) > DELEGATED_PER_PUBLICATION_MAX:
                raise error("request-too-large", f"more than {DELEGATED_PER_PUBLICATION_MAX} lists")
    return files


def _take_roots(
    trusted: TrustedSet, roots: tuple[bytes, ...], served: Mapping[int, bytes]
) -> dict[int, bytes]:
    """Takes the roots that follow the newest served one and returns them by version.

    Older ones must be the served ones; those from before the pinned root, which nothing here vouches for,
    are passed over.
    """
    new: dict[int, bytes] = {}
    newest = trusted.root.version
    for version, data in sorted((read(Root, data).signed.version, data) for data in roots):
        if version > newest:
            trusted.update_root(data)
            new[version] = data
        elif served.get(version, data) != data:
            raise _conflict(f"{version}.root.json")
    return new


class _Memory:
    """What is served now, offered to the trusted set as memory, unless the roles' keys were rotated."""

    def __init__(self, trusted: TrustedSet, folder: MetadataFolder) -> None:
        self._trusted: Final = trusted
        self._folder: Final = folder
        self.timestamp: bytes | None = None
        self.snapshot_version = 0
        stored = folder.read(_TIMESTAMP)
        if stored is not None and not trusted.rotated:
            self._load(stored)
            self.timestamp = stored
            self.snapshot_version = read(Timestamp, stored).signed.snapshot_meta.version

    def _load(self, stored: bytes) -> None:
        self._trusted.settle_root()
        try:
            self._trusted.load_timestamp(stored)
        except TrustError as problem:
            hint = "the server's own copy is damaged: restore repository/metadata from a backup"
            raise error(problem.code, f"the served timestamp.json: {problem.what}", hint=hint) from problem

    def take_snapshot(self) -> None:
        """The snapshot's turn, once the new timestamp is taken."""
        name = f"{self.snapshot_version}.snapshot.json"
        stored = self._folder.read(name) if self.snapshot_version else None
        if stored is not None:
            self._trusted.load_snapshot(stored)


def _check_unchanged(folder: MetadataFolder, name: str, data: bytes) -> None:
    """A version that was served once stays what it is; one that a broken publication left may be replaced."""
    if folder.read(name) not in (None, data):
        raise _conflict(name)


def _conflict(name: str) -> Exception:
    return error("conflict", f"{name} is published with other bytes already", hint="publish the next version")
