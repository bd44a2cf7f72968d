"""What releases need of a store, of a folder of metadata, and of a folder of payloads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from twinlock.core.protocol import PayloadOffer

# Names of files with signed metadata: a role's name is percent-encoded, so no name leads out of its folder.
METADATA_FILE: Final = re.compile(r"(?:timestamp|[1-9][0-9]{0,9}\.[A-Za-z0-9_.~%-]{1,200})\.json", re.ASCII)
ROOT_FILE: Final = re.compile(r"([1-9][0-9]{0,9})\.root\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class Release:
    """A published release. Hashes are lower-case hex; `release_id` is the store's own, 0 when new.

    `unlisted_ms` is since when the signed metadata names it no more: no device takes it then.
    """

    release_id: int
    product: str
    version: str
    counter: int
    hardware: tuple[str, ...]
    manifest_sha256: str
    image_sha256: str
    image_size_bytes: int
    notes: str
    published_ms: int
    published_by: str
    unlisted_ms: int | None = None


class ReleaseStore(Protocol):
    """Releases in one transaction."""

    def get(self, product: str, version: str) -> Release | None:
        """One release by its name."""
        ...

    def add(self, release: Release) -> int:
        """Keeps a new release and returns its number."""
        ...

    def unlist(self, release_id: int, at_ms: int | None) -> None:
        """Keeps since when the metadata names a release no more; None: it does."""
        ...

    def newest(self, limit: int) -> Sequence[Release]:
        """Up to `limit` releases, newest first."""
        ...

    def payloads(self, release_id: int) -> tuple[PayloadOffer, ...]:
        """A release's payloads, full ones first."""
        ...

    def add_payloads(self, release_id: int, offers: Sequence[PayloadOffer]) -> None:
        """Adds payloads to a release, or confirms those that it has."""
        ...


class MetadataFolder(Protocol):
    """The signed files that devices fetch: byte for byte what was published."""

    def lock(self) -> AbstractContextManager[None]:
        """Keeps every other publication out, of other processes too."""
        ...

    def read(self, name: str) -> bytes | None:
        """The metadata file of this name."""
        ...

    def roots(self) -> Mapping[int, bytes]:
        """Every root by its version."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Keeps a metadata file, durable when this returns."""
        ...

    def remove_timestamp(self) -> None:
        """Takes timestamp.json away, durable when this returns."""
        ...

    def read_manifest(self, product: str, sha256: str, version: str) -> bytes | None:
        """The manifest of this hash, under the name it was kept with."""
        ...

    def write_manifest(self, product: str, sha256: str, version: str, data: bytes) -> None:
        """Keeps a manifest, durable when this returns."""
        ...


class PayloadFolder(Protocol):
    """Payload files by their hash; one that is there is whole, durable and never changes."""

    def path(self, sha256: str) -> Path:
        """Where the payload is, or would be."""
        ...

    def size_bytes(self, sha256: str) -> int | None:
        """How large a payload is, None when it is not there."""
        ...

    def is_whole(self, sha256: str) -> bool:
        """Whether the payload is here and its bytes still have their hash; reads all of it."""
        ...

    def open(self, sha256: str) -> BinaryIO:
        """A payload for reading. Raises InputError `not-found`."""
        ...

    def upload(self, sha256: str, size_bytes: int) -> Upload:
        """Begins to keep a payload. Raises DeviceError `disk-full` when it would not fit."""
        ...


class Upload(Protocol):
    """A payload on its way to the folder; not seen by anybody until `finish` has returned."""

    def write(self, data: bytes) -> None:
        """Appends bytes. Raises InputError `request-too-large` past the size, DeviceError `disk-full`."""
        ...

    def finish(self) -> None:
        """Checks size and hash and makes the payload durable. Raises InputError `payload-hash`."""
        ...

    def abandon(self) -> None:
        """Removes what was written, unless it was finished."""
        ...
