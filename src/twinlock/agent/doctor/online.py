"""The one check that uses the network, when it is asked for: what the health gate asks of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.agent import lock, memory
from twinlock.agent import plan as plans
from twinlock.agent.checker import ChildChecker
from twinlock.agent.clock import SystemRandom
from twinlock.agent.doctor.findings import fine, found
from twinlock.agent.plan import CheckRequest
from twinlock.core.errors import TwinlockError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.agent.doctor.case import Case
    from twinlock.agent.doctor.findings import Finding


def server(case: Case) -> Iterator[Finding]:
    """The device's key opens a session, and the server's metadata is fresh and verifies."""
    control, config = case.control(), case.config
    running = memory.running(case.store, control.read())
    request = CheckRequest(mode="gate", slot=control.booted().slot, running=running, phase="idle")
    try:
        with lock.held(config.state, case.clock) as lock_fd:
            timeout_s = config.network.check_timeout_s
            checker = ChildChecker(case.store, SystemRandom(), case.config_path, timeout_s, lock_fd)
            problem = plans.answer_error(checker.check(request))
    except TwinlockError as failed:
        problem = failed
    if problem is None:
        yield fine("server", f"{config.server} answers with fresh signed metadata")
    else:
        yield found("server", "server-failed", str(problem), hint=problem.hint)
