"""The manifest: what is signed of a release, and the only thing that decides what may be on a slot.

It is UTF-8 JSON, one object, keys as in `Manifest`. `segments` is the base64 of the SHA-256 of every segment
of the image, in order, 32 bytes each; the last segment may be shorter than `segment_size_bytes`. How an image
travels (the payloads) is not in it: any payload that decodes to these segments is as good as any other.

The metadata that signs a manifest repeats its `Claims` in the target's custom block, so that a device can
refuse a release for other hardware before it fetches anything.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from twinlock.core import limits
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import check_name, check_version, release_name

HASH_SIZE_BYTES: Final = 32
FORMAT: Final = "twinlock-manifest"
VERSION: Final = 1


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What signed metadata says of a release beside its hash; every field must equal the manifest's."""

    product: str
    version: str
    hardware: tuple[str, ...]
    counter: int
    image_size_bytes: int
    sbom_sha256: bytes | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One release of one image. Build it with `make`, read it with `decode`; both check every bound."""

    format: Literal["twinlock-manifest"]
    format_version: Literal[1]
    product: str
    version: str
    hardware: tuple[str, ...]
    counter: int
    image_size_bytes: int
    image_sha256: bytes
    segment_size_bytes: int
    segments: bytes
    sbom_sha256: bytes | None = None
    notes: str = ""

    @property
    def segment_count(self) -> int:
        """How many segments the image has."""
        return len(self.segments) // HASH_SIZE_BYTES

    @property
    def name(self) -> str:
        """The name under which signed metadata lists this manifest."""
        return release_name(self.product, self.version)

    @property
    def claims(self) -> Claims:
        """The part that the signed metadata repeats."""
        return Claims(
            product=self.product,
            version=self.version,
            hardware=self.hardware,
            counter=self.counter,
            image_size_bytes=self.image_size_bytes,
            sbom_sha256=self.sbom_sha256,
        )

    def segment_sha256(self, number: int) -> bytes:
        """The 32-byte SHA-256 of segment `number`, counted from 0. Raises IndexError outside the image."""
        if not 0 <= number < self.segment_count:
            raise IndexError(number)
        return self.segments[number * HASH_SIZE_BYTES : (number + 1) * HASH_SIZE_BYTES]

    def segment_length_bytes(self, number: int) -> int:
        """How many bytes segment `number` has: `segment_size_bytes`, or less for the last one."""
        start = number * self.segment_size_bytes
        return min(self.segment_size_bytes, self.image_size_bytes - start)


def encode(manifest: Manifest) -> bytes:
    """The manifest's bytes: JSON with sorted keys, so that the same manifest has one encoding."""
    return msgspec.json.encode(manifest, order="sorted")


def decode(data: bytes) -> Manifest:
    """The manifest in `data` (at most `MANIFEST_SIZE_BYTES_MAX`), with every bound checked.

    Raises TrustError `manifest-malformed`, or `format-unknown` for a format or format version from later.
    """
    if len(data) > limits.MANIFEST_SIZE_BYTES_MAX:
        raise error("manifest-malformed", f"manifest is larger than {limits.MANIFEST_SIZE_BYTES_MAX} bytes")
    _check_format(data)
    try:
        manifest = msgspec.json.decode(data, type=Manifest, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("manifest-malformed", f"manifest does not parse: {problem}") from problem
    check(manifest)
    return manifest


class _Head(msgspec.Struct, frozen=True):
    format: str
    format_version: int


def _check_format(data: bytes) -> None:
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("manifest-malformed", f"manifest does not parse: {problem}") from problem
    if head.format != FORMAT or head.format_version != VERSION:
        raise error(
            "format-unknown", f"manifest has format {head.format[:40]!r}, version {head.format_version}"
        )


def check(manifest: Manifest) -> None:
    """Raises TrustError `manifest-malformed` when a field is out of its bounds or two fields disagree."""
    try:
        check_claims(manifest.claims)
    except TwinlockError as problem:
        raise error("manifest-malformed", f"manifest: {problem.what}") from problem
    expected = -(-manifest.image_size_bytes // limits.SEGMENT_SIZE_BYTES)
    rules = (
        (manifest.segment_size_bytes == limits.SEGMENT_SIZE_BYTES, "segment size is not 1 MiB"),
        (len(manifest.image_sha256) == HASH_SIZE_BYTES, "image hash is not 32 bytes"),
        (len(manifest.segments) == expected * HASH_SIZE_BYTES, "segment hashes do not match the image size"),
        (len(manifest.notes) <= limits.NOTES_LENGTH_MAX, "notes are too long"),
    )
    for holds, what in rules:
        if not holds:
            raise error("manifest-malformed", f"manifest of {manifest.name}: {what}")


def check_claims(claims: Claims) -> None:
    """Raises InputError `input-invalid` when a claim is out of its bounds."""
    check_name(claims.product, "product")
    check_version(claims.version)
    if not 1 <= len(claims.hardware) <= limits.HARDWARE_IDS_MAX:
        raise error("input-invalid", f"a release names 1 to {limits.HARDWARE_IDS_MAX} hardware ids")
    for hardware in claims.hardware:
        check_name(hardware, "hardware id")
    if len(set(claims.hardware)) != len(claims.hardware):
        raise error("input-invalid", "a hardware id is named twice")
    if not 0 <= claims.counter <= limits.COUNTER_MAX:
        raise error("input-invalid", f"release counter {claims.counter} is outside 0..{limits.COUNTER_MAX}")
    if not 0 < claims.image_size_bytes <= limits.IMAGE_SIZE_BYTES_MAX or claims.image_size_bytes % 512:
        raise error("input-invalid", f"image size {claims.image_size_bytes} is not allowed")
    if claims.sbom_sha256 is not None and len(claims.sbom_sha256) != HASH_SIZE_BYTES:
        raise error("input-invalid", "SBOM hash is not 32 bytes")
