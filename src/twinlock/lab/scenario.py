"""What a scenario found: steps with their times, figures, and what did not hold."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened, `at_s` seconds after the scenario's start."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which the device's service answered (`label` says what served) or did not (empty)."""

    start_s: float
    end_s: float
    label: str


@dataclass(slots=True)
class Result:
    """One scenario's result; it passed when there are no `problems`."""

    name: str
    title: str
    steps: list[Step] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether everything held."""
        return not self.problems

    def expect(self, found: object, wanted: object, what: str) -> None:
        """Notes a problem when something is not as it must be."""
        if found != wanted:
            self.problems.append(f"{what} is {found!r}; it must be {wanted!r}")

    def check(self, holds: bool, what: str) -> None:
        """Notes a problem when something does not hold."""
        if not holds:
            self.problems.append(what)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


class Recorder:
    """Writes down what happens in a scenario, and tells whoever watches."""

    def __init__(self, result: Result, told: Callable[[str], None]) -> None:
        self.result: Final = result
        self.start_s: Final = time.monotonic()
        self._told: Final = told

    def note(self, text: str) -> None:
        """Something happened now."""
        self.result.steps.append(Step(round(time.monotonic() - self.start_s, 1), text))
        self._told(text)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run of scenarios on one device."""

    device: str
    image: str
    results: tuple[Result, ...]
    facts: dict[str, float | int | str]

    @property
    def passed(self) -> bool:
        """Whether every scenario passed."""
        return all(one.passed for one in self.results)

    def as_data(self) -> dict[str, Any]:
        """For JSON: `{"passed": ..., "device": ..., "image": ..., "facts": {...}, "scenarios": [...]}`."""
        return {
            "passed": self.passed,
            "device": self.device,
            "image": self.image,
            "facts": self.facts,
            "scenarios": [one.as_data() for one in self.results],
        }
