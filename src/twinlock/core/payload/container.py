"""The payload file: parts back to back, then the index, then a trailer of fixed size.

    offset 0                     parts, in segment order, no gaps
    behind the parts             block hashes (see `blocks`), if the index says that there are some
    total - 56 - index_size      index: MessagePack of `Index`
    total - 56                   trailer, little endian: magic "TWLKPAY\\0", version u16, flags u16 (0),
                                 reserved u32 (0), index size u64, SHA-256 of the index (32 bytes)

The index comes last so that a packer streams: it writes each part once and never goes back. A device fetches
the tail with one range request. The index is not signed: a forged one can only make an install fail, since
each decoded segment must have the hash that the signed manifest names.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import msgspec

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.manifest import HASH_SIZE_BYTES, Manifest
from twinlock.core.payload import blocks
from twinlock.core.payload.parts import DELTA_KINDS, Part, check_part

MAGIC: Final = b"TWLKPAY\0"
VERSION: Final = 1
_TRAILER: Final = struct.Struct("<8sHHIQ32s")
TRAILER_SIZE_BYTES: Final = _TRAILER.size


class Index(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a payload holds. `base_sha256` is None for a full payload, else the base image's SHA-256.

    `blocks_size_bytes` is how many bytes of block hashes there are: none, or those of every part with bytes.
    """

    image_sha256: bytes
    image_size_bytes: int
    base_sha256: bytes | None
    parts: tuple[Part, ...]
    blocks_size_bytes: int = 0

    def offsets(self) -> list[int]:
        """Where each part starts in the payload file, in bytes; one entry more for the end of the last."""
        offsets = [0]
        for part in self.parts:
            offsets.append(offsets[-1] + part.length)
        return offsets

    def block_offsets(self) -> list[int]:
        """Where each part's block hashes start among all of them; the end of the last comes last."""
        offsets = [0]
        left = self.image_size_bytes
        for part in self.parts:
            count = blocks.block_count(max(min(left, limits.SEGMENT_SIZE_BYTES), 0)) if part.length else 0
            offsets.append(offsets[-1] + count * blocks.HASH_SIZE_BYTES)
            left -= limits.SEGMENT_SIZE_BYTES
        return offsets

    @property
    def body_size_bytes(self) -> int:
        """How many bytes come before the index."""
        return self.offsets()[-1] + self.blocks_size_bytes


class Trailer(msgspec.Struct, frozen=True):
    """The fixed end of a payload file."""

    index_size_bytes: int
    index_sha256: bytes


def encode_tail(index: Index) -> bytes:
    """Index and trailer, ready to be written behind the last part."""
    body = _encode(index)
    digest = hashlib.sha256(body).digest()
    return body + _TRAILER.pack(MAGIC, VERSION, 0, 0, len(body), digest)


def _encode(index: Index) -> bytes:
    """An index has one encoding; what it says of block hashes is left out when there are none."""
    whole: tuple[object, ...] = (index.image_sha256, index.image_size_bytes, index.base_sha256, index.parts)
    return msgspec.msgpack.encode((*whole, index.blocks_size_bytes) if index.blocks_size_bytes else whole)


def decode_trailer(data: bytes) -> Trailer:
    """The trailer in the last `TRAILER_SIZE_BYTES` bytes of a payload file.

    Raises TrustError `payload-malformed`, or `format-unknown` for a later format.
    """
    if len(data) != TRAILER_SIZE_BYTES:
        raise error(
            "payload-malformed", f"a payload's trailer has {TRAILER_SIZE_BYTES} bytes, not {len(data)}"
        )
    magic, version, flags, reserved, index_size_bytes, digest = _TRAILER.unpack(data)
    if magic != MAGIC:
        raise error("payload-malformed", "this is not a Twinlock payload: its trailer is missing")
    if version != VERSION or flags or reserved:
        raise error("format-unknown", f"payload has format version {version}, flags {flags:#x}")
    if not 0 < index_size_bytes <= limits.INDEX_SIZE_BYTES_MAX:
        raise error("payload-malformed", f"payload claims an index of {index_size_bytes} bytes")
    return Trailer(index_size_bytes, digest)


def decode_index(data: bytes, trailer: Trailer) -> Index:
    """The index, its hash and every bound checked. Raises TrustError `payload-index-hash`, `-malformed`."""
    if len(data) != trailer.index_size_bytes or hashlib.sha256(data).digest() != trailer.index_sha256:
        raise error("payload-index-hash", "the payload's index is not the bytes that its trailer names")
    try:
        index = msgspec.msgpack.decode(data, type=Index, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("payload-malformed", f"the payload's index does not parse: {problem}") from problem
    if not 0 < len(index.parts) <= limits.SEGMENTS_MAX:
        raise error("payload-malformed", f"the payload has {len(index.parts)} parts")
    for digest in (index.image_sha256, index.base_sha256):
        if digest is not None and len(digest) != HASH_SIZE_BYTES:
            raise error("payload-malformed", "a hash in the payload's index is not 32 bytes")
    if _encode(index) != data:
        raise error("payload-malformed", "the payload's index is not in its one form")
    for part in index.parts:
        check_part(part)
    if index.blocks_size_bytes not in (0, index.block_offsets()[-1]):
        raise error("payload-malformed", "the payload's block hashes are not one for each block")
    if index.base_sha256 is None and any(isinstance(part, DELTA_KINDS) for part in index.parts):
        raise error("payload-malformed", "the payload names no base, but has parts that need one")
    return index


def check_fit(index: Index, manifest: Manifest, size_bytes: int) -> None:
    """Raises TrustError `payload-unfit` unless a file of `size_bytes` encodes the manifest's image."""
    body = size_bytes - TRAILER_SIZE_BYTES - len(_encode(index))
    rules = (
        (index.image_sha256 == manifest.image_sha256, "it encodes another image"),
        (index.image_size_bytes == manifest.image_size_bytes, "it encodes an image of another size"),
        (len(index.parts) == manifest.segment_count, "it has another number of segments"),
        (index.body_size_bytes == body, "its parts do not fill the file"),
    )
    for holds, what in rules:
        if not holds:
            raise error("payload-unfit", f"the payload does not belong to {manifest.name}: {what}")
