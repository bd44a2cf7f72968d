"""The server's clock, in one place so that tests can set it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall-clock time."""

    def now_us(self) -> int:
        """Microseconds since 1970, UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000


def now_ms(clock: Clock) -> int:
    """Milliseconds since 1970, UTC."""
    return clock.now_us() // 1000


def now_utc(clock: Clock) -> datetime:
    """The time as a datetime."""
    return datetime.fromtimestamp(clock.now_us() / 1_000_000, UTC)


def iso(at_ms: int) -> str:
    """A time as ISO 8601, UTC, to the second: `2026-11-21T22:50:00Z`."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
