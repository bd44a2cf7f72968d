"""Long commands that started processes of their own end in order, whatever signal asks them to."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A closed terminal and SIGTERM end what runs inside as Ctrl-C does: everything that it started is ended.

    Only the first one counts: a second one must not interrupt the ending.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in _END_SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
