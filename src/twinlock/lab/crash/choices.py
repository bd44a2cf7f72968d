"""Which of the unflushed units survive: every subset as far as the bound goes, and torn sectors.

With `bound` choices for one crash point, all subsets of up to log2(bound) units are visited. Of more units:
every subset of the newest ones with none and with all of the older ones, then the units in order of time cut
short anywhere, then each lost alone, then subsets drawn by the seed, up to the bound.

Torn: a sector that was being written as the power went holds its new bytes up to some place and the old ones
behind it, which is less than media promise. Of every write the first and the last sector are torn, at every
byte where that makes a difference if it is a boot record, else at a few; with the other units kept, and lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error
from twinlock.lab.crash.disk import Sector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

    from twinlock.lab.crash.disk import Pending, Unit

TEARS_MAX: Final = 4  # of a sector that is not a boot record's


@dataclass(frozen=True, slots=True)
class Choice:
    """What survives. `name` says which for a replay: `kept-HEX` (a bit for each unit) or `torn-...`."""

    name: str
    kept: tuple[Unit, ...]

    @property
    def is_torn(self) -> bool:
        return self.name.startswith("torn-")


def every(pending: Sequence[Pending], bound: int, rng: Random, records: frozenset[str]) -> Iterator[Choice]:
    """All choices for one crash point; at least that nothing waiting survives."""
    units = [one.unit for one in pending]
    for mask in dict.fromkeys(masks(len(units), bound, rng)):
        kept = tuple(unit for number, unit in enumerate(units) if mask >> number & 1)
        yield Choice(f"kept-{mask:x}", kept)
    yield from torn(pending, records)


def named(pending: Sequence[Pending], name: str, records: frozenset[str]) -> Choice:
    """The choice of this name at a crash point. Raises InputError `input-invalid` when there is none."""
    kind, _, mask = name.partition("-")
    if kind == "kept" and re.fullmatch("[0-9a-f]{1,4096}", mask) and int(mask, 16) >> len(pending) == 0:
        units = (one.unit for number, one in enumerate(pending) if int(mask, 16) >> number & 1)
        return Choice(name, tuple(units))
    for one in torn(pending, records):
        if one.name == name:
            return one
    raise error(
        "input-invalid", f"this crash point has {len(pending)} unflushed units, and no choice {name!r}"
    )


def masks(count: int, bound: int, rng: Random) -> Iterator[int]:
    """The subsets of `count` units, as bits: unit 0, the oldest, is the lowest bit."""
    if 1 << min(count, 64) <= bound:
        yield from range(1 << count)
        return
    everything = (1 << count) - 1
    newest = max(0, bound.bit_length() - 3)
    older = everything >> newest
    for upper in range(1 << newest):
        yield upper << (count - newest)
        yield upper << (count - newest) | older
    left = bound - (2 << newest)
    third = max(1, left // 3)
    singles = sorted(rng.sample(range(count), min(count, third)))
    yield from ((1 << number) - 1 for number in singles)
    yield from (everything & ~(1 << number) for number in singles)
    yield from (rng.getrandbits(count) for _ in range(left - 2 * len(singles)))


def torn(pending: Sequence[Pending], records: frozenset[str]) -> Iterator[Choice]:
    """The newest write, torn in its first or its last sector."""
    if not pending:
        return
    latest = pending[-1].op
    newest = [
        number for number, one in enumerate(pending) if one.op == latest and isinstance(one.unit, Sector)
    ]
    for number in dict.fromkeys((*newest[:1], *newest[-1:])):
        unit = pending[number].unit
        assert isinstance(unit, Sector)
        others = [one.unit for other, one in enumerate(pending) if other != number]
        for at in tears(unit, records):
            half = Sector(unit.where, unit.number, unit.data[:at] + unit.before[at:], unit.before)
            yield Choice(f"torn-{number}-{at}-lost", (half,))
            if others:
                kept = [*(one.unit for one in pending[:number]), half]
                kept += [one.unit for one in pending[number + 1 :]]
                yield Choice(f"torn-{number}-{at}-kept", tuple(kept))


def tears(unit: Sector, records: frozenset[str]) -> list[int]:
    """How many new bytes a torn sector may begin with, without those that change nothing."""
    new, old = unit.data, unit.before
    if len(old) < len(new):
        old = old.ljust(len(new), b"\0")
    differ = [at for at in range(1, len(new)) if new[at - 1] != old[at - 1] and new[at:] != old[at:]]
    if unit.where in records or len(differ) <= TEARS_MAX:
        return differ
    step = len(differ) / TEARS_MAX
    return [differ[int(number * step)] for number in range(TEARS_MAX)]
