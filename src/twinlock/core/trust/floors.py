"""Rollback memory: the lowest versions that a client still accepts, kept apart from the metadata itself.

The specification's client remembers by its local metadata files. Whoever can empty those (a power cut, a full
disk, a restored backup) takes that memory away, so it is kept once more, small, in the client's own durable
state. A signed change of root that removes a key of the timestamp or snapshot role forgets it: that is how a
repository recovers from versions that an attacker drove to the end (section 5.3.11).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from tuf.api.metadata import Root, Snapshot, Timestamp

from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping

TOP: str = "targets.json"


class Floors(msgspec.Struct, frozen=True, omit_defaults=True):
    """The lowest version accepted per role; 0 when nothing was seen yet. Kept durable by the client.

    `delegated` maps each other file that the snapshot listed (`NAME.json`) to its version. The keys are the
    ids of the roles' keys when the floors were made. Unknown fields are passed over, so that the agent of an
    older release can read what a newer one wrote.
    """

    timestamp: int = 0
    snapshot: int = 0
    targets: int = 0
    root: int = 0
    delegated: dict[str, int] = {}  # msgspec copies it for each instance
    timestamp_keys: tuple[str, ...] = ()
    snapshot_keys: tuple[str, ...] = ()


def lost_keys(floors: Floors, root: Root) -> bool:
    """True when a key that the floors were made under is no key of its role any more."""
    return bool(
        set(floors.timestamp_keys) - set(root.roles[Timestamp.type].keyids)
        or set(floors.snapshot_keys) - set(root.roles[Snapshot.type].keyids)
    )


def under(floors: Floors, root: Root) -> Floors:
    """The floors bound to `root`: its version is the lowest accepted from now on."""
    return msgspec.structs.replace(
        floors,
        root=root.version,
        timestamp_keys=tuple(sorted(root.roles[Timestamp.type].keyids)),
        snapshot_keys=tuple(sorted(root.roles[Snapshot.type].keyids)),
    )


def forget(floors: Floors) -> Floors:
    """Floors without any version but the root's."""
    return Floors(root=floors.root)


def check_timestamp(floors: Floors, new: Timestamp) -> None:
    """Raises TrustError `metadata-rollback` when it, or what it lists, is older than seen (5.4.3)."""
    if new.version < floors.timestamp or new.snapshot_meta.version < floors.snapshot:
        raise error(
            "metadata-rollback",
            f"timestamp version {new.version} (snapshot {new.snapshot_meta.version}) is older than "
            f"version {floors.timestamp} (snapshot {floors.snapshot}) seen before",
        )


def after_timestamp(floors: Floors, new: Timestamp) -> Floors:
    """The floors once `new` is trusted."""
    return msgspec.structs.replace(
        floors,
        timestamp=max(floors.timestamp, new.version),
        snapshot=max(floors.snapshot, new.snapshot_meta.version),
    )


def _listed(floors: Floors) -> Mapping[str, int]:
    return {TOP: floors.targets, **floors.delegated} if floors.targets else floors.delegated


def check_snapshot(floors: Floors, new: Snapshot) -> None:
    """Raises TrustError `metadata-rollback` when a file seen before is listed older or not at all (5.5.5)."""
    if new.version < floors.snapshot:
        raise error(
            "metadata-rollback",
            f"snapshot version {new.version} is older than version {floors.snapshot} seen before",
        )
    for name, version in _listed(floors).items():
        meta = new.meta.get(name)
        if meta is None:
            raise error("metadata-rollback", f"the snapshot no longer lists {name}, seen before")
        if meta.version < version:
            raise error(
                "metadata-rollback",
                f"the snapshot lists {name} version {meta.version}, older than version {version} seen before",
            )


def after_snapshot(floors: Floors, new: Snapshot) -> Floors:
    """The floors once `new` is trusted."""
    versions = {name: max(meta.version, _listed(floors).get(name, 0)) for name, meta in new.meta.items()}
    return msgspec.structs.replace(
        floors,
        snapshot=max(floors.snapshot, new.version),
        targets=versions.pop(TOP, floors.targets),
        delegated=versions,
    )
