"""Publishing: everything is verified first, then written in an order that no power cut can make a lie.

| written, in this order           | what a power cut after it leaves                                       |
|----------------------------------|------------------------------------------------------------------------|
| nothing yet                      | the state before; uploaded payloads wait, unseen by devices            |
| the manifest                     | a file that no metadata lists                                          |
| (timestamp.json is removed)      | only when keys were rotated, after which it is of no use: devices wait |
| N.targets.json, N.snapshot.json  | files that no timestamp leads to; the next try may replace them        |
| N.root.json, each new one        | devices follow the new root, and find what they found before           |
| timestamp.json                   | devices see the release; rollouts of it cannot be made yet             |
| the database, one transaction    | all of it                                                              |

The same publication given again goes through all of it and ends complete: each step is idempotent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twinlock.core import manifest
from twinlock.core.errors import TrustError, error
from twinlock.core.names import release_name
from twinlock.core.payload import container
from twinlock.core.trust.verifier import check_manifest_bytes, claims_of
from twinlock.server.audit.chain import append
from twinlock.server.clock import now_ms, now_utc
from twinlock.server.director.answers import encode_entry
from twinlock.server.releases.chain import verify
from twinlock.server.releases.ports import Release

if TYPE_CHECKING:
    from twinlock.core.manifest import Manifest
    from twinlock.core.protocol import PayloadOffer
    from twinlock.server.clock import Clock
    from twinlock.server.ports import Database, Transaction
    from twinlock.server.releases.chain import Offered, Verified
    from twinlock.server.releases.ports import MetadataFolder, PayloadFolder

PAYLOADS_PER_RELEASE_MAX: Final = 64
RELEASES_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes into one repository; `pinned` is the root that the server was made with."""

    database: Database
    folder: MetadataFolder
    payloads: PayloadFolder
    pinned: bytes
    clock: Clock

    def metadata(self, offered: Offered, actor: str) -> Verified:
        """Publishes metadata alone: a refresh, or a rotation of keys. Raises what `verify` raises."""
        with self.folder.lock():
            verified = verify(offered, self.pinned, self.folder, now_utc(self.clock))
            self._write(verified)
            at_ms = now_ms(self.clock)
            with self.database.write() as transaction:
                keep_entries(transaction, verified, actor, at_ms)
                append(
                    transaction.audit,
                    at_ms,
                    actor,
                    "metadata-published",
                    "repository",
                    verified.versions,
                )
        return verified

    def release(
        self, offered: Offered, manifest_bytes: bytes, offers: Sequence[PayloadOffer], actor: str
    ) -> Release:
        """Publishes a release, or adds payloads to one that is published.

        Raises what `verify` raises, TrustError `release-unknown` (the metadata does not list it),
        `manifest-hash`, `manifest-malformed`, `metadata-mismatch` (its claims are not the signed ones),
        `payload-unfit`, `payload-malformed`, `payload-index-hash`; PolicyError `conflict` when this version
        is published with another manifest. Then nothing is stored or changed.
        """
        with self.folder.lock():
            verified = verify(offered, self.pinned, self.folder, now_utc(self.clock))
            made, sha256 = check_manifest(verified, manifest_bytes)
            self._check_payloads(made, offers)
            with self.database.read() as transaction:
                _check_same(transaction, made, sha256)
            self.folder.write_manifest(made.product, sha256, made.version, manifest_bytes)
            self._write(verified)
            with self.database.write() as transaction:
                return self._keep(transaction, made, sha256, offers, verified, actor)

    def _write(self, verified: Verified) -> None:
        if verified.trusted.rotated:
            self.folder.remove_timestamp()
        for name, data in verified.files.items():
            if self.folder.read(name) != data:
                self.folder.write(name, data)

    def _check_payloads(self, made: Manifest, offers: Sequence[PayloadOffer]) -> None:
        if len(offers) > PAYLOADS_PER_RELEASE_MAX:
            raise error("request-too-large", f"more than {PAYLOADS_PER_RELEASE_MAX} payloads are named")
        if not any(one.kind == "full" for one in offers):
            raise error("payload-unfit", f"{made.name} comes without a full payload")
        for offer in offers:
            check_payload(self.payloads, made, offer)

    def _keep(
        self,
        transaction: Transaction,
        made: Manifest,
        sha256: str,
        offers: Sequence[PayloadOffer],
        verified: Verified,
        actor: str,
    ) -> Release:
        at_ms = now_ms(self.clock)
        known = _check_same(transaction, made, sha256)
        if known is None:
            transaction.releases.add(
                Release(
                    release_id=0,
                    product=made.product,
                    version=made.version,
                    counter=made.counter,
                    hardware=made.hardware,
                    manifest_sha256=sha256,
                    image_sha256=made.image_sha256.hex(),
                    image_size_bytes=made.image_size_bytes,
                    notes=made.notes,
                    published_ms=at_ms,
                    published_by=actor,
                )
            )
            known = transaction.releases.get(made.product, made.version)
            assert known is not None
        transaction.releases.add_payloads(known.release_id, offers)
        keep_entries(transaction, verified, actor, at_ms)
        subject = f"{made.product} {made.version}"
        append(transaction.audit, at_ms, actor, "release-published", subject, verified.versions)
        return known


def keep_entries(transaction: Transaction, verified: Verified, actor: str, at_ms: int) -> None:
    """Keeps what the metadata in force says of every release, for the director to repeat it.

    A release that is listed no more keeps its last entry: devices refuse it by the image repository alone,
    and no new rollout of it is made.
    """
    for release in transaction.releases.newest(RELEASES_MAX):
        subject = f"{release.product} {release.version}"
        try:
            signed = verified.trusted.release(release_name(release.product, release.version))
        except TrustError:
            if release.unlisted_ms is None:
                transaction.releases.unlist(release.release_id, at_ms)
                append(transaction.audit, at_ms, actor, "release-unlisted", subject, verified.versions)
            continue
        if release.unlisted_ms is not None:
            transaction.releases.unlist(release.release_id, None)
            append(transaction.audit, at_ms, actor, "release-listed", subject, verified.versions)
        transaction.director.keep_entry(release.release_id, encode_entry(signed))


def check_manifest(verified: Verified, manifest_bytes: bytes) -> tuple[Manifest, str]:
    """The manifest and its SHA-256 (hex), if it is exactly what the metadata lists under its own name.

    Raises TrustError `manifest-malformed`, `release-unknown`, `manifest-hash`, `metadata-mismatch`.
    """
    made = manifest.decode(manifest_bytes)
    signed = verified.trusted.release(made.name)
    check_manifest_bytes(signed, manifest_bytes)
    if claims_of(signed) != made.claims:
        raise error("metadata-mismatch", f"the claims signed for {made.name} are not those of its manifest")
    return made, hashlib.sha256(manifest_bytes).hexdigest()


def check_payload(payloads: PayloadFolder, made: Manifest, offer: PayloadOffer) -> None:
    """Raises TrustError unless the payload is here and its index says that it encodes this image."""
    sha256 = offer.sha256.hex()
    size_bytes = payloads.size_bytes(sha256)
    if size_bytes is None:
        raise error(
            "payload-unfit", f"payload {sha256} is not on this server", hint="upload the payload first"
        )
    if size_bytes != offer.size_bytes:
        raise error("payload-unfit", f"payload {sha256} has {size_bytes} bytes, not {offer.size_bytes}")
    if size_bytes < container.TRAILER_SIZE_BYTES:
        raise error("payload-malformed", f"payload {sha256} is too short to be one")
    with payloads.open(sha256) as file:
        file.seek(size_bytes - container.TRAILER_SIZE_BYTES)
        trailer = container.decode_trailer(file.read(container.TRAILER_SIZE_BYTES))
        start = size_bytes - container.TRAILER_SIZE_BYTES - trailer.index_size_bytes
        if trailer.index_size_bytes != offer.index_size_bytes or start < 0:
            raise error(
                "payload-unfit",
                f"payload {sha256} has an index of {trailer.index_size_bytes} bytes, "
                f"not {offer.index_size_bytes}",
            )
        file.seek(start)
        index = container.decode_index(file.read(trailer.index_size_bytes), trailer)
    container.check_fit(index, made, size_bytes)
    if index.base_sha256 != offer.base_sha256 or (offer.kind == "full") != (index.base_sha256 is None):
        raise error("payload-unfit", f"payload {sha256} is for another base than it is offered for")


def _check_same(transaction: Transaction, made: Manifest, sha256: str) -> Release | None:
    """The release if it is published with this very manifest. Raises PolicyError `conflict` for another."""
    known = transaction.releases.get(made.product, made.version)
    if known is not None and known.manifest_sha256 != sha256:
        raise error(
            "conflict",
            f"{made.product} {made.version} is published with another manifest",
            hint="publish the change under a new version",
        )
    return known
