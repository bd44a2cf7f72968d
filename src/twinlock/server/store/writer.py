"""One thread that writes for all devices: groups of work share a commit, check-ins are written behind.

Work is answered only after the commit that holds it. Check-ins wait up to `CHECK_IN_WAIT_S`, and only the
newest of each device is kept meanwhile; a power cut may lose those of that last second, and nothing else.
When a group cannot be committed, every piece of work in it fails and none of it is there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from twinlock.server.devices.model import CheckIn
    from twinlock.server.store.database import SqlTransaction

T = TypeVar("T")

GROUP_MAX: Final = 128
WAITING_MAX: Final = 10_000
CHECK_IN_WAIT_S: Final = 1.0
CHECK_IN_GROUP_MAX: Final = 5_000

log: Final = logging.getLogger("twinlock.server.writer")


class Writer:
    """See the module docstring. `group` opens one transaction that is durable when its block ends."""

    def __init__(self, group: Callable[[], AbstractContextManager[SqlTransaction]]) -> None:
        self._group: Final = group
        self._wake: Final = threading.Condition()
        self._work: Final[deque[tuple[Callable[[Any], Any], Future[Any]]]] = deque()
        self._check_ins: dict[str, CheckIn] = {}
        self._due_s: float | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="twinlock-writer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after everything that waits is written."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def submit(self, work: Callable[[SqlTransaction], T]) -> Future[T]:
        """The result of `work`, once durable. Raises TransportError `server-busy` when too much waits."""
        future: Future[T] = Future()
        with self._wake:
            if self._stopping:
                raise error("server-busy", "the server is stopping")
            if len(self._work) >= WAITING_MAX:
                raise error("server-busy", "too many writes wait for the disk")
            self._work.append((work, future))
            self._wake.notify()
        return future

    def check_in(self, check_in: CheckIn) -> None:
        """Keeps a check-in for the next flush."""
        with self._wake:
            self._check_ins[check_in.device_id] = check_in
            if self._due_s is None:
                self._due_s = time.monotonic() + CHECK_IN_WAIT_S
                self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._work or self._stopping or self._is_due()):
                    self._wake.wait(self._wait_s())
                group = [self._work.popleft() for _ in range(min(len(self._work), GROUP_MAX))]
                check_ins = self._take_check_ins()
                last = self._stopping and not self._work
            if group:
                self._write_group(group)
            if check_ins:
                self._write_check_ins(check_ins)
            if last:
                return

    def _is_due(self) -> bool:
        return self._due_s is not None and time.monotonic() >= self._due_s

    def _wait_s(self) -> float | None:
        return None if self._due_s is None else max(0.0, self._due_s - time.monotonic())

    def _take_check_ins(self) -> dict[str, CheckIn]:
        if not (self._stopping or self._is_due()):
            return {}
        taken, self._check_ins, self._due_s = self._check_ins, {}, None
        return taken

    def _write_group(self, group: list[tuple[Callable[[Any], Any], Future[Any]]]) -> None:
        done: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._group() as transaction:
                for work, future in group:
                    done.append((future, *_attempt(transaction, work)))
        except Exception as problem:  # noqa: BLE001  whoever waits is told, whatever it was
            for _, future in group:
                future.set_exception(problem)
            return
        for future, result, problem_of_one in done:
            if problem_of_one is None:
                future.set_result(result)
            else:
                future.set_exception(problem_of_one)

    def _write_check_ins(self, check_ins: dict[str, CheckIn]) -> None:
        """Sorted by id, so that neighbours in the table are written together. What fails waits again."""
        ordered = [check_ins[key] for key in sorted(check_ins)]
        try:
            for start in range(0, len(ordered), CHECK_IN_GROUP_MAX):
                with self._group() as transaction:
                    transaction.devices.check_in(ordered[start : start + CHECK_IN_GROUP_MAX])
        except Exception as problem:  # noqa: BLE001  the writer outlives a full disk
            log.error("check-ins are not written, will try again: %s", problem)
            with self._wake:
                self._check_ins = {**check_ins, **self._check_ins}
                self._due_s = time.monotonic() + CHECK_IN_WAIT_S


def _attempt(transaction: SqlTransaction, work: Callable[[Any], Any]) -> tuple[Any, BaseException | None]:
    """The result of one piece of work, or what it raised after its own changes were undone."""
    point = transaction.connection.begin_nested()
    try:
        result = work(transaction)
    except Exception as problem:  # noqa: BLE001  it goes to whoever submitted the work
        point.rollback()
        return None, problem
    point.commit()
    return result, None
