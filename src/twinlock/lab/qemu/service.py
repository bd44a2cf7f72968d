"""When a device's service answered: what an update costs those who use the device.

A thread asks again and again; each answer is noted with its time and its words. The time between the last
answer before a reboot and the first one after it is what the update took away.
"""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

ASK_S: Final = 0.25
ANSWER_WAIT_S: Final = 2.0
ANSWER_SIZE_BYTES_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `time_s` is on the lab's monotonic clock."""

    time_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without an answer, between two answers."""

    start_s: float
    end_s: float
    before: str
    after: str

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end_s - self.start_s


def gaps(answers: Sequence[Answer], seconds_min: float) -> list[Gap]:
    """The times without an answer that were at least `seconds_min` long, in order."""
    found = [Gap(one.time_s, two.time_s, one.text, two.text) for one, two in pairwise(answers)]
    return [gap for gap in found if gap.seconds >= seconds_min]


def ask(port: int, wait_s: float = ANSWER_WAIT_S) -> str | None:
    """The service's words, None when it does not answer: what listens before a dead guest says nothing."""
    try:
        with socket.create_connection(("127.0.0.1", port), wait_s) as connection:
            connection.settimeout(wait_s)
            return connection.recv(ANSWER_SIZE_BYTES_MAX).decode("utf-8", "replace").strip() or None
    except OSError:
        return None


class ServiceWatch:
    """Asks the service at `port` of this machine for as long as the block runs."""

    def __init__(self, port: int) -> None:
        self._port: Final = port
        self._over: Final = threading.Event()
        self._lock: Final = threading.Lock()
        self._answers: list[Answer] = []
        self._thread: Final = threading.Thread(target=self._ask, name="service-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(ASK_S):
            text = ask(self._port)
            if text is not None:
                with self._lock:
                    self._answers.append(Answer(time.monotonic(), text))

    @property
    def answers(self) -> list[Answer]:
        """Every answer so far."""
        with self._lock:
            return list(self._answers)

    @property
    def latest(self) -> str:
        """The words of the latest answer, empty before the first."""
        with self._lock:
            return self._answers[-1].text if self._answers else ""
