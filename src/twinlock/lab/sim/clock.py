"""Simulated time and randomness."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


class SimClock:
    """Is a `ports.Clock`: time passes only by waiting. `wall_s` may be set to anything at any time."""

    def __init__(self, wall_s: float) -> None:
        self.wall_s = wall_s
        self._monotonic_s = 0.0

    def now_s(self) -> float:
        return self.wall_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def sleep(self, wait_s: float) -> None:
        self.wall_s += wait_s
        self._monotonic_s += wait_s


class SimRandom:
    """Is a `ports.Random`, from a seeded generator."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def fraction(self) -> float:
        return self._rng.random()

    def token(self) -> str:
        return self._rng.randbytes(16).hex()
