"""Small releases for simulations: two segments, packed and listed, without a file or a signature."""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import dataclass
from typing import Final

from twinlock.core import manifest
from twinlock.core.limits import KIB, SEGMENT_SIZE_BYTES, SLOT_TAIL_SIZE_BYTES
from twinlock.core.manifest import Manifest
from twinlock.core.payload import container, parts
from twinlock.core.protocol import PayloadOffer
from twinlock.core.zstd import compress

HARDWARE: Final = "sim-board"
PRODUCT: Final = "sim"
TAIL_SIZE_BYTES: Final = 20 * KIB
NOISE_SIZE_BYTES: Final = 30_000
SLOT_SIZE_BYTES: Final = SEGMENT_SIZE_BYTES + 64 * KIB + SLOT_TAIL_SIZE_BYTES


@dataclass(frozen=True)
class SimRelease:
    """One release: its image, and what a server has of it."""

    image: bytes
    manifest: Manifest
    manifest_bytes: bytes
    payload: bytes
    payload_sha256: str
    offer: PayloadOffer
    part_size_bytes_max: int


@functools.cache
def make(version: str, counter: int) -> SimRelease:
    """The release of this version; the same for every simulation."""
    rng = random.Random(f"release {version}")
    text = f"{version} ".encode() * (SEGMENT_SIZE_BYTES // 4)
    image = (rng.randbytes(NOISE_SIZE_BYTES) + text)[:SEGMENT_SIZE_BYTES]
    image += rng.randbytes(TAIL_SIZE_BYTES)
    segments = [image[:SEGMENT_SIZE_BYTES], image[SEGMENT_SIZE_BYTES:]]
    encoded = [compress(segment, 3) for segment in segments]
    found: tuple[parts.Part, ...] = tuple(
        parts.Zstd(len(one), hashlib.sha256(one).digest()) for one in encoded
    )
    digest = hashlib.sha256(image).digest()
    tail = container.encode_tail(container.Index(digest, len(image), None, found))
    payload = b"".join(encoded) + tail
    made = Manifest(
        format="twinlock-manifest",
        format_version=1,
        product=PRODUCT,
        version=version,
        hardware=(HARDWARE,),
        counter=counter,
        image_size_bytes=len(image),
        image_sha256=digest,
        segment_size_bytes=SEGMENT_SIZE_BYTES,
        segments=b"".join(hashlib.sha256(segment).digest() for segment in segments),
    )
    manifest.check(made)
    payload_sha256 = hashlib.sha256(payload)
    offer = PayloadOffer(
        kind="full",
        sha256=payload_sha256.digest(),
        size_bytes=len(payload),
        index_size_bytes=len(tail) - container.TRAILER_SIZE_BYTES,
    )
    return SimRelease(
        image,
        made,
        manifest.encode(made),
        payload,
        payload_sha256.hexdigest(),
        offer,
        max(len(tail), *(len(one) for one in encoded)),
    )
