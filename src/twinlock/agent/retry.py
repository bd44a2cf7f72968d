"""When to try again: exponential backoff with full jitter, bounded, started over by progress.

The wait before try n is uniform between 0 and min(max, min * 2^(n-1)), so that a fleet that lost its server
at one moment does not come back at one moment. A server's own Retry-After is honoured up to a bound; past it
the agent ends this run, and the timer brings the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.core.errors import Kind, TwinlockError

if TYPE_CHECKING:
    from twinlock.agent.config import NetworkConfig
    from twinlock.agent.ports import Clock, Random

RETRY_AFTER_S_MAX: Final = 300.0
PROGRESS_BYTES_MIN: Final = 16 * 1024  # fewer between two failures count as none
_EXPONENT_MAX: Final = 30


class Patience:
    """Counts the failures in a row of one transfer."""

    def __init__(self, clock: Clock, random: Random, bounds: NetworkConfig) -> None:
        self._clock = clock
        self._random = random
        self._bounds = bounds
        self._progress_bytes = 0
        self.failures = 0

    def progress(self, size_bytes: int) -> None:
        """Bytes came."""
        self._progress_bytes += size_bytes
        if self._progress_bytes >= PROGRESS_BYTES_MIN:
            self.failures = 0

    def wait(self, problem: TwinlockError, retry_after_s: float = 0.0) -> None:
        """Waits before the next try, or raises `problem` when there shall be none."""
        if problem.kind is not Kind.TRANSPORT or retry_after_s > RETRY_AFTER_S_MAX:
            raise problem
        self.failures += 1
        self._progress_bytes = 0
        if self.failures > self._bounds.retries:
            raise problem
        longest_s = self._bounds.backoff_s_min * 2 ** min(self.failures - 1, _EXPONENT_MAX)
        wait_s = min(self._bounds.backoff_s_max, longest_s) * self._random.fraction()
        self._clock.sleep(max(wait_s, retry_after_s))


def retry_after_s(text: str | None) -> float:
    """The seconds that a Retry-After header asks for (RFC 9110, 10.2.3); 0 for none or a date."""
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 9:
        return 0.0
    return float(text)
