"""What a second of a device's time is worth in bytes of payload.

A device that decodes a few segments is done at once, and what counts is its link. One that decodes most of
an image is to be done in a few times what unpacking the full image takes: the more of the image a delta has
to make, the fewer bytes a second has to save. The price follows from the images alone, never from a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# A core of a tenth of a desktop's speed and a link of 25 KB/s take equally long.
_BYTES_PER_S_MIN: Final = 250_000
# When every segment of a large image has to be made.
_BYTES_PER_S_MAX: Final = 1_650_000
# An install takes its time, whatever is decoded: as much as unpacking some segments.
_SEGMENTS_OF_AN_INSTALL: Final = 32
# LZMA saves about this much over zstd, for what it takes longer to unpack: 5% of the bytes, 65 ns for each.
_LZMA_BYTES_PER_S: Final = 770_000
_NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """How many bytes something has to save for each second that a device spends on it."""

    bytes_per_s: int = _BYTES_PER_S_MIN

    @classmethod
    def of(cls, made: int, filled: int) -> Price:
        """For an image with `filled` segments that are not zeros alone, `made` of which are no copies."""
        return cls(max(_BYTES_PER_S_MIN, made * _BYTES_PER_S_MAX // (filled + _SEGMENTS_OF_AN_INSTALL)))

    def pays(self, saved_bytes: float, ns: int) -> bool:
        """Whether these bytes are worth that time."""
        return saved_bytes * _NS_PER_S >= ns * self.bytes_per_s

    @property
    def lzma(self) -> bool:
        """Whether programs are worth being unpacked by LZMA; else by zstd."""
        return self.bytes_per_s <= _LZMA_BYTES_PER_S
