"""What is signed of a release for people: its details and its SBOM, as the served metadata lists them.

Both lie beside the payloads, under their hash; nothing of them is kept in the database. Each answer is
verified anew from the server's pinned root: what operators read here is what the holders of offline keys have
signed. An answer does not depend on the time: details of metadata that has ended are still what was signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from twinlock.core import details, limits
from twinlock.core.details import SUFFIX, Details
from twinlock.core.errors import error
from twinlock.core.names import check_name, check_version
from twinlock.core.trust import delegations, hashes
from twinlock.core.trust.verifier import TrustedSet
from twinlock.server.releases.chain import newest_root

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile, Targets

    from twinlock.server.releases.ports import MetadataFolder, PayloadFolder

_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)  # when nothing had ended yet


@dataclass(frozen=True, slots=True)
class Described:
    """A release's details and the SHA-256 (hex) that is signed of them."""

    details: Details
    sha256: str


@dataclass(frozen=True, slots=True)
class Describer:
    """Reads from the served metadata and from the folder of payloads; `pinned` is the server's first root."""

    folder: MetadataFolder
    payloads: PayloadFolder
    pinned: bytes

    def describe(self, product: str, version: str) -> Described | None:
        """The details of a release; None when none were signed.

        Raises InputError for names, TrustError when the served metadata or the details are not what was
        signed, `details-hash` too when they are not on this server.
        """
        name = f"{check_name(product, 'product')}/{check_version(version)}{SUFFIX}"
        signed = self._signed(name)
        if signed is None:
            return None
        sha256 = hashes.strong(signed.hashes).get("sha256", "")
        data = self._read(sha256, min(signed.length, limits.DETAILS_SIZE_BYTES_MAX), name)
        hashes.check(data, signed.length, signed.hashes, "details-hash", name)
        made = details.decode(data)
        if made.name != name:
            raise error("details-hash", f"what is signed as {name} calls itself {made.name}")
        return Described(made, sha256)

    def sbom(self, product: str, version: str) -> bytes | None:
        """The release's SBOM, byte for byte; None when none was signed. Raises as `describe` does."""
        described = self.describe(product, version)
        if described is None or described.details.sbom is None:
            return None
        listed = described.details.sbom
        what = f"the SBOM of {product} {version}"
        data = self._read(listed.sha256.hex(), listed.size_bytes, what)
        hashes.check(data, listed.size_bytes, {"sha256": listed.sha256.hex()}, "details-hash", what)
        return data

    def _read(self, sha256: str, size_bytes_max: int, what: str) -> bytes:
        if not sha256 or self.payloads.size_bytes(sha256) is None:
            raise error("details-hash", f"{what}: they are signed, and not on this server")
        with self.payloads.open(sha256) as file:
            return file.read(size_bytes_max + 1)

    def _signed(self, name: str) -> TargetFile | None:
        with self.folder.lock():
            trusted = TrustedSet(newest_root(self.pinned, self.folder, _ALWAYS), _ALWAYS)
            stored = self.folder.read("timestamp.json")
            if stored is None:
                return None
            trusted.update_timestamp(stored)
            assert trusted.timestamp is not None
            trusted.update_snapshot(self._file(f"{trusted.timestamp.snapshot_meta.version}.snapshot.json"))
            trusted.update_targets(self._file(f"{trusted.listed('targets').version}.targets.json"))
            return delegations.find(name, lambda role, delegator: self._list(trusted, role, delegator))

    def _list(self, trusted: TrustedSet, role: str, delegator: str) -> Targets:
        known = trusted.role(role, delegator)
        if known is not None:
            return known
        name = f"{trusted.listed(role).version}.{delegations.file_name(role)}.json"
        return trusted.update_role(self._file(name), role, delegator)

    def _file(self, name: str) -> bytes:
        data = self.folder.read(name)
        if data is None:
            raise error("metadata-missing", f"{name}, which the served metadata lists, is not here")
        return data
