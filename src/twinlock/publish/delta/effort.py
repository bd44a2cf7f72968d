"""How much of its own time an encoder spends.

Deltas of images made of packed blocks take their time for packing blocks again. What is left of three times
xdelta3's time does not go to what saves a few percent: see ADR 0036.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from twinlock.publish.delta.price import Price
from twinlock.publish.delta.program import ZSTD_LEVEL_FOR_ALL

# An eighth of the time of level 18, for four percent more bytes.
_QUICK_ZSTD_LEVEL: Final = 12
_ZSTD_LEVEL_ALONE: Final = 19
# Where nearly every segment has to be made: a tenth of all time, for six percent more bytes.
_ZSTD_LEVEL_FOR_MOST: Final = 15
_MOST_BYTES_PER_S: Final = 1_200_000


@dataclass(frozen=True, slots=True)
class Effort:
    """Whether executables are analysed; zstd's level for programs, and for a segment without its base."""

    analyses: bool = True
    zstd_level: int = ZSTD_LEVEL_FOR_ALL
    segment_level: int = _ZSTD_LEVEL_ALONE

    @classmethod
    def of(cls, price: Price, *, packed: bool) -> Self:
        """For an image whose files lie in packed blocks, or do not, at a price.

        Where few blocks have to be packed, there is time for all: then the price is low.
        """
        if packed and not price.lzma:
            return cls(analyses=False, zstd_level=_QUICK_ZSTD_LEVEL, segment_level=_QUICK_ZSTD_LEVEL)
        if price.bytes_per_s > _MOST_BYTES_PER_S:
            return cls(zstd_level=_ZSTD_LEVEL_FOR_MOST)
        return cls()


THOROUGH: Final = Effort()
