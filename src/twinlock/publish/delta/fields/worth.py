"""Leaving out of a window's fields what saves too few bytes for the time that a device spends on it.

How many bytes a kind of field saves is told by what the differences without it cost under zstd's fastest
level; on real pairs that is in proportion to their cost in the payload (correlation 0.99). What moving takes
is counted, not timed, so that the same images give the same payload everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from twinlock.core.payload.fields import Field, Fields, Kind
from twinlock.core.payload.moving import move
from twinlock.core.payload.x86 import operand_count
from twinlock.core.zstd import compress
from twinlock.publish.delta.covers import Cover
from twinlock.publish.delta.program import differences

# On a desktop's core; a device's is slower by the same factor for all of them.
_NS_PER_CODE_BYTE: Final = {Kind.X86: 16, Kind.ARM64: 25}
_NS_PER_OPERAND: Final = 700
_NS_PER_NUMBER: Final = 330
# 250 KB for each second: the time that a core of a tenth of the speed takes, a link of 25 KB/s takes too.
_NS_PER_BYTE: Final = 4000
# Bytes of a payload for each byte under zstd's fastest level.
_SHARE: Final = 0.7
_JUDGED: Final = (Kind.X86, Kind.ARM64, Kind.WORDS)


def worthwhile(
    plain: bytes, moved: bytes | bytearray, text: bytes | bytearray, covers: list[Cover], fields: Fields
) -> Fields:
    """The fields without the kinds that are not worth it; `moved` is the window `plain` moved by all of them.

    Kinds whose addresses are finished in the text are never left out, nor is what takes no time.
    """
    whole = _size(moved, text, covers)
    dropped = set()
    for kind in sorted({field.kind for field in fields.window}.intersection(_JUDGED)):
        window = bytearray(plain)
        move(window, without(fields, {kind}))
        saved = _SHARE * (_size(window, text, covers) - whole)
        if saved * _NS_PER_BYTE < sum(_ns(plain, field) for field in fields.window if field.kind is kind):
            dropped.add(kind)
    return without(fields, dropped)


def without(fields: Fields, kinds: set[Kind]) -> Fields:
    """The fields without some kinds in the window."""
    return replace(fields, window=[field for field in fields.window if field.kind not in kinds])


def _size(window: bytes | bytearray, text: bytes | bytearray, covers: list[Cover]) -> int:
    return len(compress(differences(window, text, covers), 1))


def _ns(window: bytes, field: Field) -> int:
    """About how long a device's decoder takes to move a field."""
    if field.kind is Kind.WORDS:
        return field.count * _NS_PER_NUMBER
    scanned = field.length * _NS_PER_CODE_BYTE[field.kind]
    return scanned + operand_count(window, field) * _NS_PER_OPERAND if field.kind is Kind.X86 else scanned
