"""A payload file on disk: its index, and the proof that it decodes to the image of a manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from twinlock.core import limits
from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.core.manifest import Manifest
from twinlock.core.payload import container
from twinlock.core.payload.parts import check_encoded, decode_part

CHUNK_SIZE_BYTES: Final = limits.MIB


def ignore(size_bytes: int) -> None:
    """The progress of whoever does not want to know."""


class PayloadFile:
    """An open payload file; the index is read and checked, the parts are not.

    Raises InputError for a file that is missing, unreadable or larger than a payload may be, TrustError
    `payload-malformed`, `payload-index-hash` or `format-unknown` for one whose end is no payload's.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        with os_errors(f"payload {path}"):
            self.file: Final[BinaryIO] = path.open("rb")
        try:
            with os_errors(f"payload {path}"):
                self.size_bytes: Final = self.file.seek(0, os.SEEK_END)
            if self.size_bytes > limits.PAYLOAD_SIZE_BYTES_MAX:
                raise error(
                    "input-too-large",
                    f"payload {path} has more than {limits.PAYLOAD_SIZE_BYTES_MAX} bytes",
                )
            self.trailer: Final = container.decode_trailer(
                self._read(self.size_bytes - container.TRAILER_SIZE_BYTES, container.TRAILER_SIZE_BYTES)
            )
            start = self.size_bytes - container.TRAILER_SIZE_BYTES - self.trailer.index_size_bytes
            self.index: Final = container.decode_index(
                self._read(start, self.trailer.index_size_bytes), self.trailer
            )
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> PayloadFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _read(self, start: int, length_bytes: int) -> bytes:
        if start < 0:
            raise error("payload-malformed", f"payload {self.path} is too short to be one")
        with os_errors(f"payload {self.path}"):
            self.file.seek(start)
            return self.file.read(length_bytes)

    def sha256(self, advance: Callable[[int], None] = ignore) -> str:
        """The SHA-256 of the whole file in hex."""
        digest = hashlib.sha256()
        with os_errors(f"payload {self.path}"):
            self.file.seek(0)
            while data := self.file.read(CHUNK_SIZE_BYTES):
                digest.update(data)
                advance(len(data))
        return digest.hexdigest()

    def prove(self, manifest: Manifest, advance: Callable[[int], None] = ignore) -> None:
        """Decodes every part, as a device does. Memory: one segment.

        The parts of a delta are only hashed: they decode on a device that has the base, segment by segment
        against the signed hashes. Raises TrustError `payload-unfit`, `payload-part-hash`,
        `payload-malformed`, or `segment-hash` when a part does not give the segment that the manifest names.
        """
        container.check_fit(self.index, manifest, self.size_bytes)
        if self.index.base_sha256 is None:
            self._decode(manifest.segment_sha256, advance)
        else:
            self.check_parts(advance)

    def write_image(
        self, manifest: Manifest, image: BinaryIO, advance: Callable[[int], None] = ignore
    ) -> None:
        """Writes the image of a full payload, checked as `prove` does; segments of zeros become holes."""
        container.check_fit(self.index, manifest, self.size_bytes)
        self._decode(manifest.segment_sha256, advance, image)
        image.truncate(manifest.image_size_bytes)

    def check_itself(self, advance: Callable[[int], None] = ignore) -> None:
        """Decodes every part of a full payload without a manifest: is it the image that its index names?

        Raises TrustError as `prove` does. This tells damage; only a signed manifest tells forgery.
        """
        self._check_shape()
        self._decode(None, advance)

    def check_parts(self, advance: Callable[[int], None] = ignore) -> None:
        """Reads every part and checks its hash, without decoding: what can be said of a delta alone.

        Raises TrustError `payload-malformed`, `payload-part-hash`.
        """
        self._check_shape()
        for number, (part, offset) in enumerate(
            zip(self.index.parts, self.index.offsets()[:-1], strict=True)
        ):
            check_encoded(part, self._read(offset, part.length), number)
            advance(part.length)

    def _check_shape(self) -> None:
        segments = -(-self.index.image_size_bytes // limits.SEGMENT_SIZE_BYTES)
        body = self.size_bytes - container.TRAILER_SIZE_BYTES - self.trailer.index_size_bytes
        if len(self.index.parts) != segments or self.index.body_size_bytes != body:
            raise error("payload-malformed", f"{self.path}: its parts do not fill it, or not its image")

    def _decode(
        self,
        segment_sha256: Callable[[int], bytes] | None,
        advance: Callable[[int], None],
        out: BinaryIO | None = None,
    ) -> None:
        image = hashlib.sha256()
        left = self.index.image_size_bytes
        for number, (part, offset) in enumerate(
            zip(self.index.parts, self.index.offsets()[:-1], strict=True)
        ):
            encoded = self._read(offset, part.length)
            check_encoded(part, encoded, number)
            data = decode_part(part, encoded, min(left, limits.SEGMENT_SIZE_BYTES), number)
            left -= len(data)
            if segment_sha256 and hashlib.sha256(data).digest() != segment_sha256(number):
                raise error(
                    "segment-hash", f"part {number} of {self.path} gives other bytes than were signed"
                )
            image.update(data)
            if out is not None and part.length:
                out.seek(number * limits.SEGMENT_SIZE_BYTES)
                out.write(data)
            advance(len(data))
        if image.digest() != self.index.image_sha256:
            raise error("segment-hash", f"{self.path} gives another image than its index names")
