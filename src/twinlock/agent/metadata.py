"""The agent's metadata client: `core.trust.client` with the agent's network, state folder and time.

The root that the device was provisioned with lies in `root.json` of the state folder, or in the file that the
configuration names (part of the image); neither is ever written.
Verified metadata is kept in `metadata/ROLE.json` byte for byte as it was served. The versions seen are kept
apart, in `trust.json`: deleting role files takes no memory away.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent import memory
from twinlock.agent.repository import Repository, RoleFiles, served_path
from twinlock.core import limits, manifest, protocol
from twinlock.core.durable import read_bounded
from twinlock.core.errors import InputError, TwinlockError, error
from twinlock.core.trust.client import Client
from twinlock.core.trust.floors import Floors
from twinlock.core.trust.verifier import check_manifest_bytes, claims_of

if TYPE_CHECKING:
    from pathlib import Path

    from tuf.api.metadata import TargetFile

    from twinlock.agent.ports import Clock, Network, Store
    from twinlock.core.manifest import Claims, Manifest

PINNED: Final = "root.json"
FOLDER: Final = "metadata"
TRUST: Final = "trust.json"


class FilesApart(RoleFiles):
    """Role files in their folder, the floors (`trust`) outside of it."""

    def __init__(self, store: Store, folder: str = FOLDER, trust: str = TRUST) -> None:
        super().__init__(store, folder)
        self._root_store = store
        self._trust = trust

    def load_floors(self) -> Floors:
        data = self._root_store.read(self._trust, 2 * limits.METADATA_SIZE_BYTES_MAX["snapshot"])
        if data is None:
            return Floors()
        try:
            return msgspec.json.decode(data, type=Floors, strict=True)
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise error(
                "metadata-malformed",
                f"the versions seen before ({self._trust}) do not parse: {problem}",
                hint="somebody changed the file; the device has to be provisioned again",
            ) from problem

    def save_floors(self, floors: Floors) -> None:
        self._root_store.write(self._trust, msgspec.json.encode(floors))


def pinned_root(store: Store, path: Path | None, name: str = PINNED) -> bytes:
    """The root to start from: the state folder's own, called `name`, else the image's at `path`.

    Raises TrustError `metadata-missing` when there is neither.
    """
    size_bytes_max = limits.METADATA_SIZE_BYTES_MAX["root"]
    pinned = store.read(name, size_bytes_max)
    if pinned is not None:
        return pinned
    hint = f"provision the device with the repository's {name}"
    if path is None:
        raise error(
            "metadata-missing", f"the device has no pinned root ({name} in its state folder)", hint=hint
        )
    try:
        return read_bounded(path, size_bytes_max, "root of trust")
    except TwinlockError as problem:
        raise error(
            "metadata-missing", f"the device has no pinned root: {problem.what}", hint=hint
        ) from problem


class MetadataClient:
    """Trust in the server's repository, refreshed once per process."""

    def __init__(
        self, network: Network, store: Store, clock: Clock, server: str, root: Path | None = None
    ) -> None:
        self._store = store
        self._now_s = memory.trusted_s(store, clock)
        base = f"{server.rstrip('/')}{protocol.REPOSITORY}"
        self._targets = Repository(network, f"{base}/targets")
        pinned = pinned_root(store, root)
        now = datetime.fromtimestamp(self._now_s, UTC)
        self._client = Client(Repository(network, f"{base}/metadata"), FilesApart(store), now, pinned)
        self._consistent = False

    def refresh(self) -> None:
        """Brings trust up to date. Raises TrustError, TransportError, DeviceError; see `Client.refresh`."""
        trusted = self._client.refresh()
        self._consistent = bool(trusted.root.consistent_snapshot)
        memory.note_time(self._store, self._now_s)

    def claims(self, name: str) -> tuple[TargetFile, Claims]:
        """What is signed of the manifest called `name`.

        Raises TrustError `release-unknown`, `metadata-malformed` for claims out of their bounds.
        """
        signed = self._client.find(name)
        found = claims_of(signed)
        try:
            manifest.check_claims(found)
        except InputError as problem:
            raise error("metadata-malformed", f"the claims of {name}: {problem.what}") from problem
        return signed, found

    def manifest(self, signed: TargetFile, claims: Claims) -> tuple[bytes, Manifest]:
        """The manifest's bytes and content: as signed, and claiming what the metadata claims of it."""
        if signed.length > limits.MANIFEST_SIZE_BYTES_MAX:
            raise error("manifest-malformed", f"{signed.path!r} is listed with {signed.length} bytes")
        path = served_path(signed, consistent=self._consistent)
        data = self._targets(path, signed.length)
        if data is None:
            raise error("metadata-missing", f"the repository lacks {path}, which its metadata lists")
        check_manifest_bytes(signed, data)
        found = manifest.decode(data)
        if found.claims != claims or found.name != signed.path:
            raise error(
                "metadata-mismatch", f"{signed.path!r} is not the release that its metadata describes"
            )
        return data, found
