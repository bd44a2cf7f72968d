"""The real clock and the real randomness."""

from __future__ import annotations

import os
import time


class SystemClock:
    """Is a `ports.Clock`."""

    def now_s(self) -> float:
        """Seconds since 1970 as the machine believes; may be wrong by decades."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds since some point; never goes back."""
        return time.monotonic()

    def sleep(self, wait_s: float) -> None:
        """Waits."""
        time.sleep(wait_s)


class SystemRandom:
    """Is a `ports.Random`, from the kernel's generator; the random module would cost memory for nothing."""

    def fraction(self) -> float:
        """Uniform in [0, 1), with 53 bits."""
        return (int.from_bytes(os.urandom(7), "little") >> 3) / (1 << 53)

    def token(self) -> str:
        """32 hex digits that nobody can guess."""
        return os.urandom(16).hex()
