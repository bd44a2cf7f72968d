"""Parts: how one segment travels, and how it is decoded in bounded memory.

A payload holds one part per segment of the image. A part is a small record in the index; most point at a run
of bytes (`length` long, with SHA-256 `sha256`) in the payload file. Decoding a part needs these bytes, the
segment's length from the signed manifest and, for parts of a delta, the base image. Nothing is trusted until
the result has the segment's signed hash; the part's own hash only tells early whose fault it is.

    zero      nothing travels
    zstd      one zstd frame                                                 `full`
    copy      ranges of the base, named in the index
    patch     ranges of the base, what differs and what is new               `patch`
    prefix    one zstd frame that refers to ranges of the base               `prefix`
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload import full, patch, prefix
from twinlock.core.payload.base import Base, check_range, read_ranges

ZERO_BLOCK: Final = bytes(64 * limits.KIB)


class Zero(msgspec.Struct, frozen=True, array_like=True, tag=0, forbid_unknown_fields=True):
    """A segment of zero bytes: nothing travels."""

    @property
    def length(self) -> int:
        return 0


class Zstd(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """A segment as one zstd frame (RFC 8878) of `length` bytes, window at most `WINDOW_LOG_MAX`."""

    length: int
    sha256: bytes


class Copy(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """A segment that the base has, in one to `COPY_RANGES_MAX` (offset, length) ranges: nothing travels."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        return 0


class Patch(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True):
    """A segment as `length` bytes of patch against ranges of the base."""

    length: int
    sha256: bytes


class Prefix(msgspec.Struct, frozen=True, array_like=True, tag=4, forbid_unknown_fields=True):
    """A segment as `length` bytes: ranges of the base and a zstd frame that refers to them."""

    length: int
    sha256: bytes


Part = Zero | Zstd | Copy | Patch | Prefix
Stored = Zstd | Patch | Prefix  # parts that have bytes in the payload
DELTA_KINDS: Final = (Copy, Patch, Prefix)  # parts that need the base


def is_zero(data: bytes | memoryview) -> bool:
    """Whether every byte is zero, compared block by block without a copy of the whole."""
    view = memoryview(data)
    return all(
        view[start : start + len(ZERO_BLOCK)] == ZERO_BLOCK[: min(len(ZERO_BLOCK), len(view) - start)]
        for start in range(0, len(view), len(ZERO_BLOCK))
    )


def check_part(part: Part) -> None:
    """Raises TrustError `payload-malformed` when a part's own fields are out of bounds."""
    if isinstance(part, Zero):
        return
    if isinstance(part, Copy):
        _check_copy(part)
        return
    if not 0 < part.length <= limits.PART_SIZE_BYTES_MAX:
        raise error("payload-malformed", f"a part claims {part.length} bytes")
    if len(part.sha256) != hashlib.sha256().digest_size:
        raise error("payload-malformed", "a part's hash is not 32 bytes")


def _check_copy(part: Copy) -> None:
    if not 1 <= len(part.ranges) <= limits.COPY_RANGES_MAX:
        raise error("payload-malformed", f"a part copies {len(part.ranges)} ranges of the base")
    for offset, length in part.ranges:
        check_range(offset, length, "a copy")
    if sum(length for _, length in part.ranges) > limits.SEGMENT_SIZE_BYTES:
        raise error("payload-malformed", "a part copies more than a segment")


def check_encoded(part: Part, encoded: bytes | memoryview, number: int) -> None:
    """Raises TrustError `payload-part-hash` unless `encoded` is exactly the bytes that the index names."""
    if isinstance(part, Zero | Copy):
        if encoded:
            raise error("payload-part-hash", f"part {number} has no bytes of its own but came with some")
        return
    if len(encoded) != part.length or hashlib.sha256(encoded).digest() != part.sha256:
        raise error("payload-part-hash", f"part {number} is not the bytes that the payload's index names")


def decode_part(
    part: Part, encoded: bytes | memoryview, length_bytes: int, number: int, base: Base | None = None
) -> bytes | bytearray:
    """The segment's `length_bytes` bytes. Check `part` and `encoded` before: `check_part`, `check_encoded`.

    `base` is needed by the parts of a delta. The result is worth nothing until it has the segment's signed
    hash: a base that is not the one named in the index gives other bytes, and no error.

    Memory: at most `WINDOW_SIZE_BYTES_MAX` of segment and references, and the part, each bound checked
    before it is allocated. Raises TrustError `payload-malformed` or `format-unknown`, CompatibilityError
    `delta-base` for a base that is missing, too short or plainly another, and what `base` raises.
    """
    if isinstance(part, Zero):
        return bytes(length_bytes)
    if isinstance(part, Zstd):
        return full.decode(encoded, length_bytes, number)
    if base is None:
        raise error("delta-base", f"part {number} needs a base image, and there is none")
    if isinstance(part, Copy):
        if sum(length for _, length in part.ranges) != length_bytes:
            raise error("payload-malformed", f"part {number} does not copy {length_bytes} bytes")
        return read_ranges(base, part.ranges, length_bytes, number)
    if isinstance(part, Patch):
        return patch.decode(encoded, length_bytes, number, base)
    return prefix.decode(encoded, length_bytes, number, base)
