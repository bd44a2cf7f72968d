"""Leaving out of a window's fields what saves too few bytes for the time that a device spends on it.

How many bytes a kind of field saves is told by what the differences without it cost under zstd's fastest
level; on real pairs that is in proportion to their cost in the payload (correlation 0.99). What moving takes
is counted, not timed, so that the same images give the same payload everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from twinlock.core.payload.fields import Field, Fields, Kind
from twinlock.core.payload.moving import move, unfinish
from twinlock.core.payload.x86 import operand_count
from twinlock.core.zstd import compress
from twinlock.publish.delta.covers import Cover
from twinlock.publish.delta.price import Price
from twinlock.publish.delta.program import differences

# On a desktop's core; a device's is slower by the same factor for all of them.
_NS_PER_CODE_BYTE: Final = {
    Kind.X86: 16,
    Kind.ARM64: 25,
    Kind.FRAMES: 30,
    Kind.A32: 50,
    Kind.T32: 43,
    Kind.A32_LITERALS: 36,
    Kind.T32_LITERALS: 36,
}
_NS_PER_OPERAND: Final = 700
_NS_PER_NUMBER: Final = 330
# Bytes of a payload for each byte under zstd's fastest level.
_SHARE: Final = 0.7
_JUDGED: Final = (*_NS_PER_CODE_BYTE, Kind.WORDS, Kind.RELATIVE)


def worthwhile(
    plain: bytes,
    moved: bytes | bytearray,
    text: bytes,
    covers: list[Cover],
    fields: Fields,
    price: Price,
) -> Fields:
    """The fields without the kinds that are not worth it; `moved` is the window `plain` moved by all of them.

    `text` is finished. Checksums, and addresses that are listed, are never left out.
    """
    every = [*fields.window, *fields.text]
    kinds = sorted({field.kind for field in every}.intersection(_JUDGED))
    whole = _size(moved, text, covers, fields) if kinds else 0
    dropped = set()
    for kind in kinds:
        window, others = bytearray(plain), without(fields, {kind})
        move(window, others)
        saved = _SHARE * (_size(window, text, covers, others) - whole)
        if not price.pays(saved, sum(_ns(plain, field) for field in every if field.kind is kind)):
            dropped.add(kind)
    return without(fields, dropped)


def without(fields: Fields, kinds: set[Kind]) -> Fields:
    """The fields without some kinds, in the window and in the text."""
    window = [field for field in fields.window if field.kind not in kinds]
    text = [field for field in fields.text if field.kind not in kinds]
    return replace(fields, window=window, text=text)


def _size(window: bytes | bytearray, text: bytes, covers: list[Cover], fields: Fields) -> int:
    unfinished = bytearray(text)
    unfinish(unfinished, fields)
    return len(compress(differences(window, unfinished, covers), 1))


def _ns(window: bytes, field: Field) -> int:
    """About how long a device's decoder takes to move a field."""
    if field.kind in (Kind.WORDS, Kind.RELATIVE):
        return field.count * _NS_PER_NUMBER
    scanned = field.length * _NS_PER_CODE_BYTE[field.kind]
    return scanned + operand_count(window, field) * _NS_PER_OPERAND if field.kind is Kind.X86 else scanned
