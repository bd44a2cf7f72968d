"""How much memory this process has needed at most, as the kernel counted it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_FIELD: Final = "VmHWM:"
_KIB: Final = 1024


def peak_bytes(status: Path = _STATUS) -> int:
    """The peak of the resident set since this program began, in bytes; 0 where the kernel does not tell.

    Source: proc(5), VmHWM. Unlike getrusage(2) it leaves out what ran in this process before exec.
    """
    try:
        lines = status.read_text("ascii", "replace").splitlines()
        return next(int(line.split()[1]) * _KIB for line in lines if line.startswith(_FIELD))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
