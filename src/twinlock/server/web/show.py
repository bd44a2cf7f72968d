"""How values look on the page. Whatever a device reported is escaped by the templates, always."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from twinlock.core.limits import KIB
from twinlock.server.clock import iso
from twinlock.server.rollouts.state import STATES

if TYPE_CHECKING:
    from collections.abc import Mapping

_STEPS: Final = ((60, "s", 1), (3600, "min", 60), (48 * 3600, "h", 3600))
_NOW_S: Final = 3
_UNITS: Final = ("B", "KiB", "MiB", "GiB")
BAR_WIDTH: Final = 200
# The colour classes of the style sheet.
TONES: Final = {
    "succeeded": "good",
    "accepted": "good",
    "active": "busy",
    "failed": "bad",
    "rolled_back": "bad",
    "lost": "bad",
    "rejected": "bad",
    "downloading": "busy",
    "armed": "busy",
    "trial": "busy",
    "pending": "wait",
    "halted": "wait",
}
_ORDER: Final = ("good", "bad", "busy", "wait", "plain")


def environment() -> Environment:
    """The templates. Everything is escaped, an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("twinlock.server.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        ago=ago, iso=iso, size=size, words=words, tone=tone, visible=visible, brief=brief, in_order=in_order
    )
    made.globals["bar"] = bar
    return made


def ago(at_ms: int, now_ms: int) -> str:
    """`just now`, `12 s ago`, `5 min ago`, `3 h ago`, `9 days ago`."""
    passed_s = max(0, (now_ms - at_ms) // 1000)
    if passed_s < _NOW_S:
        return "just now"
    for below_s, unit, unit_s in _STEPS:
        if passed_s < below_s:
            return f"{passed_s // unit_s} {unit} ago"
    return f"{passed_s // (24 * 3600)} days ago"


def size(size_bytes: int) -> str:
    """`931 B`, `1.5 KiB`, `64.0 MiB`."""
    power = next((power for power in range(len(_UNITS)) if size_bytes < KIB ** (power + 1)), len(_UNITS) - 1)
    return f"{size_bytes} B" if power == 0 else f"{size_bytes / KIB**power:.1f} {_UNITS[power]}"


def words(state: str) -> str:
    """A state as words: `rolled back`."""
    return state.replace("_", " ")


def tone(state: str) -> str:
    """The style sheet's class for a state."""
    return TONES.get(state, "plain")


def visible(text: str) -> str:
    """Text of a device without control and direction characters, which could make it look like another."""
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def brief(text: str, length_max: int = 140) -> str:
    """The first line, cut to a length that fits a table."""
    line = visible(text).strip().split("\n", 1)[0]
    return line if len(line) <= length_max else line[: length_max - 1] + "\N{HORIZONTAL ELLIPSIS}"


def in_order(counts: Mapping[str, int]) -> list[str]:
    """States as a bar and its legend show them: what ended well, what did not, what goes on, the rest."""
    return sorted(counts, key=lambda state: (_ORDER.index(tone(state)), STATES.index(state)))


def bar(counts: Mapping[str, int], waiting: int) -> list[tuple[str, float, float]]:
    """A progress bar's parts: class, start and width, in units of `BAR_WIDTH` for all devices together."""
    total = sum(counts.values()) + waiting
    parts, start = [], 0.0
    order = sorted(
        counts, key=lambda state: (TONES.get(state) != "good", TONES.get(state) != "bad", STATES.index(state))
    )
    for state in order:
        width = BAR_WIDTH * counts[state] / total
        parts.append((tone(state), round(start, 2), round(width, 2)))
        start += width
    return parts
