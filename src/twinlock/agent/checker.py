"""Starts the metadata process and reads its answer. Is a `ports.Checker`."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent.parent import PARENT
from twinlock.agent.plan import CHECK_MESSAGE_SIZE_BYTES_MAX, CHECKED, CheckAnswer, CheckRequest
from twinlock.core.errors import TwinlockError, error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from twinlock.agent.ports import Random, Store

STDERR_LENGTH_MAX: Final = 500
PROGRAM: Final = (sys.executable, "-m", "twinlock.agent.main")


class ChildChecker:
    """One child per check: `python -m twinlock.agent.main check`, with this process's configuration.

    `program` is what to start instead of this very agent; the lab gives one that counts and breaks.

    The child inherits the agent's lock (`lock_fd`) and ends with this process. Its answer is taken only with
    the number that this very request carried.
    """

    def __init__(
        self,
        store: Store,
        random: Random,
        config_path: Path,
        timeout_s: float,
        lock_fd: int | None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._store = store
        self._random = random
        self._config_path = config_path
        self._timeout_s = timeout_s
        self._lock_fd = lock_fd
        self._program = tuple(program)

    def check(self, request: CheckRequest) -> CheckAnswer:
        """Raises TransportError `transfer-stalled` when it takes too long, `internal` when it dies."""
        request = msgspec.structs.replace(request, nonce=self._random.token())
        argv = [*self._program, "--config", str(self._config_path), "check"]
        try:
            done = subprocess.run(
                argv,
                input=msgspec.json.encode(request),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=self._timeout_s,
                env={**os.environ, PARENT: str(os.getpid())},
                pass_fds=() if self._lock_fd is None else (self._lock_fd,),
            )
        except subprocess.TimeoutExpired as problem:
            raise error(
                "transfer-stalled", f"the check did not end within {self._timeout_s:g} s"
            ) from problem
        except OSError as problem:
            raise error("internal", f"the metadata process does not start: {problem}") from problem
        answer = self._answer()
        if answer is None or answer.nonce != request.nonce:
            said = done.stderr.decode("utf-8", "replace").strip()[-STDERR_LENGTH_MAX:]
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
            raise error("internal", f"the metadata process ended with {how} and no answer: {said}")
        return answer

    def _answer(self) -> CheckAnswer | None:
        try:
            data = self._store.read(CHECKED, CHECK_MESSAGE_SIZE_BYTES_MAX)
            return None if data is None else msgspec.json.decode(data, type=CheckAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
            return None
