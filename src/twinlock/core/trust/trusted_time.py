"""What time it is for a device whose clock may be anything: 1970 after a dead battery, 2038 after a glitch.

Time never runs back behind what is known: it is at least when the agent was built, and at least the last
time at which all metadata was fresh. Keep a time only after a refresh succeeded at it: then signed metadata
vouches that it is not ahead by more than the shortest expiry, and a clock that ran ahead leaves nothing
behind when it is right again. Expiry stops a new install; it never stops a boot, a fallback or the end of an
install.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_LAST: Final = datetime(9999, 1, 1, tzinfo=UTC)


def trusted_now(clock_s: float, built_s: float, kept_s: float) -> datetime:
    """The latest of the machine's clock, the build's and the kept time, all in seconds since 1970."""
    latest_s = max(clock_s, built_s, kept_s, 0.0)
    if not latest_s < _LAST.timestamp():
        return _LAST
    return datetime.fromtimestamp(latest_s, UTC)
