"""How a process of the agent ends with the one that started it."""

from __future__ import annotations

import os
import sys
from typing import Final

PARENT: Final = "TWINLOCK_AGENT_PARENT"  # in a child's environment: the id of the process that started it


def end_with(parent: int) -> None:
    """Has the kernel end this process when its parent ends, however that happens (prctl(2), PDEATHSIG)."""
    import ctypes
    import signal

    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before it could be watched
        sys.exit(1)
