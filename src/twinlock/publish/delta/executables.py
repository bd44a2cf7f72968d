"""Putting together what is known of the executables in a window and in the text to be made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from twinlock.core.payload.fields import NONE, Field, Fields, Shifts
from twinlock.publish.delta.fields.analysis import Analysis
from twinlock.publish.delta.fields.cutting import Listed, Stretch, cut
from twinlock.publish.delta.model import Ref


@dataclass(frozen=True, slots=True)
class Known:
    """The analysis of a file of the image against one of the base; `old` and `new` name them."""

    old: str
    new: str
    analysis: Analysis


@dataclass(frozen=True, slots=True)
class Located:
    """A stretch of a named file in a window or text."""

    name: str
    stretch: Stretch


@dataclass(frozen=True, slots=True)
class Prepared:
    """Fields of a window and text; the tables of listed fields are refs to be put behind the window."""

    fields: Fields
    tables: tuple[Ref, ...]


NOTHING: Final = Prepared(NONE, ())


def prepare(
    known: Mapping[str, Known],
    window: Sequence[Located],
    window_size_bytes: int,
    text: Sequence[Located],
    tables: Callable[[str, int, int], list[Ref]],
) -> Prepared:
    """The fields of a window and of the text to be made from it.

    `known` is by the newer file's name; `tables` gives refs to an older file's bytes, by its name, an offset
    and a length.
    """
    wanted = [known[name] for name in dict.fromkeys(item.name for item in text) if name in known]
    if not wanted:
        return NOTHING
    behind = window_size_bytes
    maps: list[Shifts] = []
    fields: list[Field] = []
    refs: list[Ref] = []
    for item in wanted:
        number = len(maps)
        maps.append(item.analysis.shifts.core())
        for stretch in (part.stretch for part in window if part.name == item.old):
            for field in cut(item.analysis.window, stretch):
                if isinstance(field, Listed):
                    size_bytes = 4 * field.field.count
                    refs += tables(item.old, field.table_offset, size_bytes)
                    fields.append(replace(field.field, map=number, table=behind))
                    behind += size_bytes
                else:
                    fields.append(replace(field, map=number))
    of_text = [
        field
        for item in text
        if item.name in known
        for field in cut(known[item.name].analysis.text, item.stretch)
        if isinstance(field, Field)
    ]
    return Prepared(Fields(maps, fields, of_text), tuple(refs))
