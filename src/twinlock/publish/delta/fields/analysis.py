"""Where the addresses of an executable are, and how the newer file moved them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from twinlock.core.payload.fields import Field, Kind
from twinlock.publish.delta.fields import tables
from twinlock.publish.delta.fields.alignment import Alignment, align
from twinlock.publish.delta.fields.branches import Code, instructions, votes
from twinlock.publish.delta.fields.elf import Elf, Section, parse
from twinlock.publish.delta.fields.shiftmap import Integers, ShiftMap, from_events
from twinlock.publish.delta.fields.tables import Found, Table

_HIGH_HALF: Final = 1 << 32
_MASK32: Final = 0xFFFFFFFF
_LITERALS: Final = {Kind.A32: Kind.A32_LITERALS, Kind.T32: Kind.T32_LITERALS}
FRAMES: Final = ".eh_frame"
FRAMES_HEADER: Final = ".eh_frame_hdr"


@dataclass(frozen=True, slots=True)
class Place:
    """A field of a file, its place an offset in the file, and what it takes to cut it.

    `records` are the starts of .eh_frame's entries, relative to the field and with its end, or the addresses
    that a listed field's table has.
    """

    field: Field
    records: Integers | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """Where addresses of the older file moved, its fields, and the fields to finish in the newer."""

    shifts: ShiftMap
    window: tuple[Place, ...]
    text: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A section before and after."""

    old: Section
    new: Section
    alignment: Alignment


class _Executable:
    """Two linked files with the same sections; addresses of a kernel are taken modulo 2^32."""

    def __init__(self, old: bytes, new: bytes, old_elf: Elf, new_elf: Elf) -> None:
        self._old = old
        self._new = new
        self._machine = old_elf.machine
        self._wide = old_elf.bits == 64
        newer = {section.name: section for section in new_elf.sections if section.allocated}
        self._pairs = [
            _Pair(section, newer[section.name], self._align(section, newer[section.name]))
            for section in old_elf.sections
            if section.allocated and section.size and section.address and section.name in newer
        ]
        self._code_kinds: dict[str, Kind] = {}  # by the sections' names
        self._high = any(pair.old.address >= _HIGH_HALF for pair in self._pairs)

    def _align(self, old: Section, new: Section) -> Alignment:
        if not old.stored or not new.stored:
            column = np.zeros(1, np.int64)
            return Alignment(column, column, np.array([min(old.size, new.size)], np.int64))
        return align(self._bytes(self._old, old), self._bytes(self._new, new))

    @staticmethod
    def _bytes(data: bytes, section: Section) -> bytes:
        return data[section.offset : section.offset + section.size] if section.stored else b""

    def analyse(self) -> Analysis | None:
        if not self._pairs:
            return None
        chain = self._chain_map()
        shifts = self._voted(chain)
        found = [item for pair in self._pairs for item in self._fields(pair, shifts)]
        found += self._behind(shifts)
        window = sorted((field for item in found for field in item.window), key=lambda field: field.place)
        text = sorted((field for item in found for field in item.text), key=lambda field: field.place)
        return Analysis(
            shifts,
            tuple(Place(field, _records(field, self._old)) for field in window),
            tuple(Place(field, _records(field, self._new)) for field in text),
        )

    def _chain_map(self) -> ShiftMap:
        starts: list[Integers] = []
        shifts: list[Integers] = []
        for pair in self._pairs:
            old, new = pair.old.address & _MASK32, pair.new.address & _MASK32
            begins = pair.alignment.old + old
            moves = pair.alignment.new + new - begins
            if len(begins):
                begins[0] = old
            else:
                begins, moves = np.array([old]), np.array([new - old])
            starts.append(begins)
            shifts.append(moves)
        end = max((pair.old.address & _MASK32) + pair.old.size for pair in self._pairs)
        return from_events(np.concatenate(starts), np.concatenate(shifts), end)

    def _voted(self, chain: ShiftMap) -> ShiftMap:
        low, high = int(chain.starts[0]), chain.end
        codes = []
        for pair in self._pairs:
            if not (pair.old.executable and pair.old.stored):
                continue
            code = Code(
                np.frombuffer(self._bytes(self._old, pair.old), np.uint8),
                np.frombuffer(self._bytes(self._new, pair.new), np.uint8),
                pair.old.address & _MASK32,
                pair.new.address & _MASK32,
                pair.alignment,
            )
            kind = instructions(self._machine, code, low, high)
            if kind is not None:
                self._code_kinds[pair.old.name] = kind
                codes.append((kind, code))
        if not codes:
            return chain
        ballot = votes(codes, low, high)
        starts = np.concatenate([chain.starts, ballot.targets])
        return from_events(starts, np.concatenate([chain.shifts, ballot.shifts]), chain.end)

    def _fields(self, pair: _Pair, shifts: ShiftMap) -> list[Found]:
        old, new = pair.old, pair.new
        if not old.stored or not new.stored:
            return []
        if old.executable:
            return [self._code(pair)]
        table = Table(
            self._bytes(self._old, old),
            self._bytes(self._new, new),
            old.offset,
            new.offset,
            old.address & _MASK32,
            new.address & _MASK32,
        )
        if old.name == FRAMES:
            return [_frames(table)]
        if old.name == FRAMES_HEADER:
            return [tables.words(table, shifts, 4, table.old_address, table.old_address - table.new_address)]
        return [self._table(table, shifts)]

    def _table(self, table: Table, shifts: ShiftMap) -> Found:
        if not self._high:
            return tables.words(table, shifts, 8 if self._wide else 4, 0)
        found = (
            tables.words(table, shifts, 8, _HIGH_HALF),
            tables.words(table, shifts, 4, 0),
            tables.relative(table, shifts),
        )
        return max(found, key=lambda item: item.gain)

    def _code(self, pair: _Pair) -> Found:
        kind = self._code_kinds.get(pair.old.name)
        if kind is None:
            return Found(0, ())
        kinds = (kind, _LITERALS[kind]) if kind in _LITERALS else (kind,)
        place, size, address = pair.old.offset, pair.old.size, pair.old.address & _MASK32
        return Found(1, tuple(Field(each, 0, place, size, address) for each in kinds))

    def _behind(self, shifts: ShiftMap) -> list[Found]:
        """What lies behind a kernel's sections: its relocations, which list the addresses in code."""
        if not self._high:
            return []
        old, new = self._tail(self._old, 0), self._tail(self._new, 1)
        table = Table(self._old[old:], self._new[new:], old, new, 0, 0)
        found = [tables.words(table, shifts, 4, 0)]
        return found + self._listed(table)

    def _tail(self, data: bytes, which: int) -> int:
        ends = [
            section.offset + section.size
            for pair in self._pairs
            for section in ((pair.old, pair.new)[which],)
            if section.stored
        ]
        return min(-(-max(ends) // 8) * 8, len(data))

    def _listed(self, table: Table) -> list[Found]:
        """Code fields that the relocations name: runs of ascending addresses inside executable sections."""
        entries = np.frombuffer(table.old[: len(table.old) // 4 * 4], "<u4").astype(np.int64)
        found = []
        for pair in self._pairs:
            if not (pair.old.executable and pair.old.stored):
                continue
            low = pair.old.address & _MASK32
            inside = np.flatnonzero((entries >= low) & (entries < low + pair.old.size - 4))
            for run in np.split(inside, np.flatnonzero(np.diff(inside) != 1) + 1):
                if len(run) >= tables.GAIN_MIN:
                    found.append(self._listed_run(table, pair, int(run[0]), len(run)))
        return found

    def _listed_run(self, table: Table, pair: _Pair, first: int, count: int) -> Found:
        field = Field(
            Kind.LISTED,
            0,
            pair.old.offset,
            pair.old.size,
            pair.old.address & _MASK32,
            4,
            count,
            4,
            0,
            0,
            table.old_place + 4 * first,
        )
        return Found(count, (field,))


def _frames(table: Table) -> Found:
    old = Field(Kind.FRAMES, 0, table.old_place, len(table.old), table.old_address)
    new = Field(Kind.FRAMES, 0, table.new_place, len(table.new), table.new_address)
    return Found(1, (old,), (new,))


def _records(field: Field, data: bytes) -> Integers | None:
    if field.kind is Kind.FRAMES:
        return tables.frame_starts(data[field.place : field.place + field.length])
    if field.kind is Kind.LISTED:
        return np.frombuffer(data, "<u4", field.count, field.table).astype(np.int64)
    return None


def analyse(old: bytes, new: bytes) -> Analysis | None:
    """What is known of the addresses of two files; None unless both are executables of the same machine."""
    old_elf, new_elf = parse(old), parse(new)
    if old_elf is None or new_elf is None or old_elf.relocatable or new_elf.relocatable:
        return None
    if (old_elf.machine, old_elf.bits) != (new_elf.machine, new_elf.bits):
        return None
    executable = _Executable(old, new, old_elf, new_elf)
    found = executable.analyse()
    return found if found is not None and found.window else None
