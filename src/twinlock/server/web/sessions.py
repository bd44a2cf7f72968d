"""How an operator's browser is known: a sealed cookie, got for the operator's token or by a one-time link.

The cookie names the operator and the token that was used, so that a new token ends the sessions of the old
one. It is HttpOnly and SameSite=Strict: no script reads it, no other site's request carries it.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from twinlock.server.seals import seal, unseal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

COOKIE: Final = "twinlock_operator"
COOKIE_S: Final = 12 * 3600
_KIND: Final = "w1"
_PROXY_HEADERS: Final = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_TOKEN_MARK_LENGTH: Final = 32


def make_cookie(secret: bytes, name: str, token_sha256: str, now_s: int) -> str:
    """A sealed cookie for this operator and this token (by its hash), good for `COOKIE_S`."""
    return seal(secret, _KIND, f"{name}\n{token_sha256[:_TOKEN_MARK_LENGTH]}\n{now_s + COOKIE_S}")


def read_cookie(secret: bytes, text: str, known: Sequence[tuple[str, str]], now_s: float) -> str | None:
    """The operator whose cookie it is, None for any other text. `known` holds names and token hashes."""
    try:
        name, mark, expires = unseal(secret, _KIND, text)
        in_time = now_s < int(expires)
    except ValueError:
        return None
    is_known = any(
        one == name and hmac.compare_digest(token_sha256[:_TOKEN_MARK_LENGTH], mark)
        for one, token_sha256 in known
    )
    return name if in_time and is_known else None


def set_cookie(request: Request, response: Response, value: str) -> None:
    """Hands the cookie to the browser."""
    response.set_cookie(
        COOKIE,
        value,
        max_age=COOKIE_S,
        httponly=True,
        samesite="strict",
        secure="https" in (request.url.scheme, request.headers.get("x-forwarded-proto")),
        path="/",
    )


class OneTimeLogin:
    """A secret that logs in once. Made by whoever starts the server; empty: there is none."""

    def __init__(self, secret: str = "") -> None:
        self._secret = secret

    def use(self, given: str) -> bool:
        """Whether it is the secret, for the first time."""
        right = bool(self._secret) and hmac.compare_digest(self._secret.encode(), given.encode())
        if right:
            self._secret = ""
        return right


def is_local(request: Request) -> bool:
    """Whether this machine asks for this machine: by address, by name, and not through a proxy that says so.

    The name matters: a page of another site may have its own name resolve to 127.0.0.1 (DNS rebinding).
    """
    client = request.client
    if any(name in request.headers for name in _PROXY_HEADERS):
        return False
    try:
        named = urlsplit("//" + request.headers.get("host", "")).hostname
    except ValueError:
        return False
    return client is not None and _is_loopback(client.host) and _is_loopback(named or "")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
