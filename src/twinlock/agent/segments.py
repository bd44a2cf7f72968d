"""The segments that a slot holds, one at a time in one buffer, beside what a manifest says of them."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

from twinlock.core import limits

if TYPE_CHECKING:
    from twinlock.agent.ports import BlockDevice
    from twinlock.core.manifest import Manifest


class Segments:
    """Two segments of memory, whatever the image's size: the buffer, and zeros to compare it with.

    Zeros are told at a glance: comparing is many times faster than hashing, and slots are never full.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._buffer = bytearray(limits.SEGMENT_SIZE_BYTES)
        self._zeros = bytes(limits.SEGMENT_SIZE_BYTES)

    def read(self, device: BlockDevice, number: int) -> memoryview:
        """Segment `number` of the slot; valid until the next call. Raises DeviceError `io-error`."""
        view = memoryview(self._buffer)[: self._manifest.segment_length_bytes(number)]
        device.read_into(view, number * limits.SEGMENT_SIZE_BYTES)
        return view

    def is_signed(self, number: int, view: memoryview) -> bool:
        """Whether what `read` gave is what was signed."""
        if self._buffer == self._zeros:
            return is_zero(self._manifest, number)
        return hashlib.sha256(view).digest() == self._manifest.segment_sha256(number)


def is_zero(manifest: Manifest, number: int) -> bool:
    """Whether segment `number`, as it was signed, is all zeros."""
    return manifest.segment_sha256(number) == _zeros_sha256(manifest.segment_length_bytes(number))


@functools.lru_cache(maxsize=2)  # a whole segment, and the shorter one at an image's end
def _zeros_sha256(length_bytes: int) -> bytes:
    return hashlib.sha256(bytes(length_bytes)).digest()
