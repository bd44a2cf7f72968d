"""The device's session with the server: a bearer token, kept until shortly before it expires.

The wall clock may jump, so the expiry is only a hint that saves a round trip: what counts is the server's
401, upon which a new session is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent.plan import CheckRequest, answer_error
from twinlock.core import limits
from twinlock.core.errors import TwinlockError, error

if TYPE_CHECKING:
    from twinlock.agent.ports import Ports, Store

SESSION: Final = "session.json"
TOKEN_LENGTH_MAX: Final = 4096
MARGIN_S: Final = 30.0


class Session(msgspec.Struct, frozen=True):
    """`expires_s` is on this device's wall clock."""

    token: str
    opened_s: float
    expires_s: float


def load(store: Store, now_s: float) -> Session | None:
    """The stored session, unless it is over, damaged, or the clock went back behind its start."""
    try:
        data = store.read(SESSION, limits.MESSAGE_SIZE_BYTES_MAX)
        session = None if data is None else msgspec.json.decode(data, type=Session)
    except (msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
        return None
    if session is None or not session.opened_s <= now_s < session.expires_s - MARGIN_S:
        return None
    return session


def save(store: Store, token: str, expires_s: int, now_s: float) -> Session:
    """Keeps a session that was just opened. Raises TransportError `answer-malformed` for an odd token."""
    if (
        not 0 < len(token) <= TOKEN_LENGTH_MAX
        or not token.isascii()
        or not token.isprintable()
        or " " in token
    ):
        raise error("answer-malformed", "the session's token is not one that a header can hold")
    session = Session(token, now_s, now_s + expires_s)
    store.write_volatile(SESSION, msgspec.json.encode(session))
    return session


class SessionCredentials:
    """The token for payload requests; `renew` has the metadata process open a session."""

    def __init__(self, ports: Ports, token: str) -> None:
        self._ports = ports
        self._token = token

    def token(self) -> str:
        return self._token

    def renew(self) -> None:
        """Raises what the metadata process met: TransportError, PolicyError."""
        answer = self._ports.checker.check(CheckRequest(mode="session"))
        problem = answer_error(answer)
        if problem is not None:
            raise problem
        session = load(self._ports.store, self._ports.clock.now_s())
        if session is None:
            raise error("session-expired", "the server gave no session that is good for now")
        self._token = session.token
