"""One-time enrolment tokens: a text that one device shows once, so that the operator knows whence it comes.

A token proves that whoever made it (the line, the installer) handed it to this device. It accepts nobody: a
device that showed one still waits for the operator, who sees which token it was. With the setting
`enrolment_needs_token`, a device that is neither known nor preauthorised is refused without one, and cannot
fill the list of those that wait. The server keeps a hash; the token is shown once.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from twinlock.core.errors import error
from twinlock.core.names import check_name
from twinlock.server.audit.chain import append
from twinlock.server.operators import TOKEN_LENGTH_MAX, hash_of, make_token

if TYPE_CHECKING:
    from twinlock.server.ports import Transaction

LIFETIME_S_MIN: Final = 60
LIFETIME_S_MAX: Final = 366 * 24 * 3600
TOKENS_MAX: Final = 10_000  # that are neither used nor past their time

State = Literal["open", "used", "revoked", "ended"]


@dataclass(frozen=True, slots=True)
class EnrolmentToken:
    """A token as the server knows it; `used_by` is the device that it served, empty before that."""

    name: str
    token_sha256: str
    created_ms: int
    created_by: str
    expires_ms: int
    used_by: str = ""
    used_ms: int | None = None
    revoked_ms: int | None = None

    def state(self, now_ms: int) -> State:
        """What it is good for: only an `open` one lets a device in that it has not served."""
        if self.used_by:
            return "used"
        if self.revoked_ms is not None:
            return "revoked"
        return "open" if now_ms < self.expires_ms else "ended"


def make(transaction: Transaction, name: str, lifetime_s: int, actor: str, now_ms: int) -> tuple[str, int]:
    """A new token and when it ends (ms). Raises InputError `input-invalid`, PolicyError `conflict`."""
    check_name(name, "name of a token")
    if not LIFETIME_S_MIN <= lifetime_s <= LIFETIME_S_MAX:
        raise error("input-invalid", f"a token lives {LIFETIME_S_MIN} s to a year, not {lifetime_s} s")
    if transaction.enrolment.token_named(name) is not None:
        raise error("conflict", f"there is an enrolment token called {name!r} already")
    if transaction.enrolment.count_open_tokens(now_ms) >= TOKENS_MAX:
        raise error("conflict", "too many enrolment tokens wait to be used", hint="let some of them end")
    token, expires_ms = make_token(), now_ms + lifetime_s * 1000
    transaction.enrolment.add_token(EnrolmentToken(name, hash_of(token), now_ms, actor, expires_ms))
    append(transaction.audit, now_ms, actor, "enrolment-token-made", name)
    return token, expires_ms


def check(transaction: Transaction, text: str, device_id: str, now_ms: int) -> EnrolmentToken:
    """The token that a device shows: unused, or used by this very device. Locks it for this transaction.

    Raises PolicyError `unauthorised` for any other; which of the reasons it is says nothing to a stranger.
    """
    known = None
    if 0 < len(text) <= TOKEN_LENGTH_MAX:
        known = transaction.enrolment.token(hash_of(text))
    if known is None or not hmac.compare_digest(known.token_sha256, hash_of(text)):
        raise _refused("gave out no such enrolment token")
    if known.used_by and known.used_by != device_id:
        raise _refused(f"saw the enrolment token {known.name!r} used by another device")
    state = known.state(now_ms)
    if state == "revoked":
        raise _refused(f"took the enrolment token {known.name!r} back")
    if state == "ended":
        raise _refused(f"gave out the enrolment token {known.name!r} for a time that is over")
    return known


def revoke(transaction: Transaction, name: str, actor: str, now_ms: int) -> EnrolmentToken:
    """Takes a token back that served nobody yet; again changes nothing.

    Raises InputError `not-found`, PolicyError `conflict` for one that a device has used.
    """
    if transaction.enrolment.revoke_token(name, now_ms):
        append(transaction.audit, now_ms, actor, "enrolment-token-revoked", name)
    known = transaction.enrolment.token_named(name)
    if known is None:
        raise error("not-found", f"there is no enrolment token called {name[:64]!r}")
    if known.used_by:
        hint = f"reject the device instead: twinlock device reject {known.used_by}"
        what = f"the enrolment token {name!r} has served {known.used_by}"
        raise error("conflict", what, hint=hint)
    return known


def _refused(what: str) -> Exception:
    return error(
        "unauthorised",
        f"this server {what}",
        hint="make a new one with `twinlock device token`, or preauthorise the device's key",
    )


def tokens(transaction: Transaction, limit: int) -> Sequence[EnrolmentToken]:
    """The newest tokens, newest first."""
    return transaction.enrolment.tokens(limit)
