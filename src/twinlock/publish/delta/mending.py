"""Packing LZ4 text again with less search than made it, and mending what then differs.

High compression looks at up to 2^(level - 1) earlier places with the same hash for each match. Where a text
has that many, a lower level takes a fraction of the time, and differs in a few hundred places, which are
mended by a step of their own (`core.payload.patch`): worth it where a second of the device costs more than
their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from twinlock.core import limits
from twinlock.core.payload.libraries import LZ4_HISTORY_BYTES_MAX, lz4_pack
from twinlock.core.payload.program import Pack
from twinlock.publish.delta.covers import find_covers
from twinlock.publish.delta.price import Price
from twinlock.publish.delta.program import build_program, pack_step

LEVEL: Final = 7
# Levels from 10 on choose among all matches, and lower ones resemble them little.
_LEVELS: Final = (8, 9)
_STRETCH_BYTES: Final = 64 * limits.KIB
_HASH_BITS: Final = 15
_HASH_FACTOR: Final = 2654435761
# On a desktop's core, with liblz4 1.9.
_NS_PER_CANDIDATE: Final = 36
_SAVED_NS_MIN: Final = 12_000_000  # below, finding out costs the encoder more than it is worth


@dataclass(frozen=True, slots=True)
class Mended:
    """A pack at a lower level, and the step that makes the image's bytes of what it makes."""

    pack: Pack
    step: bytes


def mended(text: bytes, pack: Pack, starts: Sequence[int], wanted: bytes, price: Price) -> Mended | None:
    """A cheaper way to `wanted`, which `pack` makes of `text`; None when it does not pay.

    `starts` is where in the text the matches' sequences begin.
    """
    if pack.level not in _LEVELS:
        return None
    saved_ns = _saved_ns(text, pack, starts)
    if saved_ns < _SAVED_NS_MIN:
        return None
    found = _lowered(text, pack, wanted, price)
    return None if found is None or price.pays(len(found.step), saved_ns) else found


def _saved_ns(text: bytes, pack: Pack, starts: Sequence[int]) -> int:
    """About how much less packing takes: by the earlier places that are looked at for each match."""
    seen = 0
    data = np.frombuffer(text, np.uint8).astype(np.uint32)
    words = data[:-3] | data[1:-2] << 8 | data[2:-1] << 16 | data[3:] << 24
    hashes = (words * np.uint32(_HASH_FACTOR) >> np.uint32(32 - _HASH_BITS)).astype(np.uint16)
    places = np.asarray(starts, np.int64)
    for start in range(pack.start, len(hashes), _STRETCH_BYTES):
        end = min(start + _STRETCH_BYTES, len(hashes))
        earlier = max(0, start - LZ4_HISTORY_BYTES_MAX)
        counts = np.bincount(hashes[earlier:end], minlength=1 << _HASH_BITS)
        low, high = np.searchsorted(places, (start, end))
        # counted in the history and the stretch itself: as many as the history alone would hold
        found = counts[hashes[places[low:high]]] * LZ4_HISTORY_BYTES_MAX // (end - earlier)
        seen += int((np.minimum(found, _looked_at(pack.level)) - np.minimum(found, _looked_at(LEVEL))).sum())
    return seen * _NS_PER_CANDIDATE


def _looked_at(level: int) -> int:
    return 1 << (level - 1)


def _lowered(text: bytes, pack: Pack, wanted: bytes, price: Price) -> Mended | None:
    packed = lz4_pack(bytearray(text), pack.start, pack.history, pack.length, LEVEL)
    if packed is None or not 0 < len(packed) - pack.skip <= limits.KEPT_SIZE_BYTES_MAX:
        return None
    lower = replace(pack, level=LEVEL, take=len(packed) - pack.skip)
    window = bytes(packed[pack.skip :])
    program = build_program((), window, wanted, find_covers(window, wanted))
    return Mended(lower, pack_step(program, len(wanted), with_lzma=price.lzma))
