"""What every edge answers when something is wrong: a status, and an `ErrorAnswer` as JSON, never HTML.

| kind of the error | status                                                                      |
|-------------------|-----------------------------------------------------------------------------|
| input             | 400; 404 not-found, 405 method-not-allowed, 409 input-exists, 413, 416      |
| trust             | 422                                                                         |
| compatibility     | 409                                                                         |
| policy            | 401 unauthorised and session-expired, 403 enrolment-*, else 409             |
| transport         | 503                                                                         |
| device            | 507 disk-full, else 500                                                     |
| internal, health  | 500                                                                         |

A failure that nobody foresaw is `internal`: its trace goes to the log, not to whoever asked.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from twinlock.core.errors import Kind, TwinlockError, error
from twinlock.core.protocol import ErrorAnswer, ErrorBody, encode

if TYPE_CHECKING:
    import msgspec
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log: Final = logging.getLogger("twinlock.server.http")

JSON: Final = "application/json"
_BY_CODE: Final = {
    "not-found": 404,
    "method-not-allowed": 405,
    "input-exists": 409,
    "request-too-large": 413,
    "input-too-large": 413,
    "range-not-satisfiable": 416,
    "unauthorised": 401,
    "session-expired": 401,
    "enrolment-pending": 403,
    "enrolment-rejected": 403,
    "enrolment-conflict": 403,
    "disk-full": 507,
}
_BY_KIND: Final = {
    Kind.INPUT: 400,
    Kind.TRUST: 422,
    Kind.COMPATIBILITY: 409,
    Kind.POLICY: 409,
    Kind.TRANSPORT: 503,
    Kind.DEVICE: 500,
    Kind.HEALTH: 500,
    Kind.INTERNAL: 500,
}
# Refusals that somebody should look at, though the server did right.
_SUSPICIOUS: Final = frozenset({"conflict", "enrolment-conflict"})
_OF_STATUS: Final = {404: "not-found", 405: "method-not-allowed", 413: "request-too-large"}


class LengthRequiredError(Exception):
    """A body came without Content-Length where one is needed: 411."""


def status_of(problem: TwinlockError) -> int:
    """The HTTP status for an error; see the table above."""
    return _BY_CODE.get(problem.code, _BY_KIND[problem.kind])


def answer(message: msgspec.Struct, status: int = 200) -> Response:
    """A message as JSON."""
    return Response(encode(message), status, media_type=JSON)


def refusal(problem: TwinlockError, status: int | None = None) -> Response:
    """The answer for an error."""
    status = status_of(problem) if status is None else status
    body = ErrorAnswer(error=ErrorBody(code=problem.code, what=problem.what, hint=problem.hint))
    response = answer(body, status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        response.headers["Retry-After"] = "5"
    return response


async def on_error(request: Request, problem: Exception) -> Response:
    """Exception handler for TwinlockError."""
    assert isinstance(problem, TwinlockError)
    if status_of(problem) >= 500:
        log.error("%s %s: %s", request.method, request.url.path, problem)
    elif problem.kind is Kind.TRUST or problem.code in _SUSPICIOUS:
        log.warning("refused %s %s: %s", request.method, request.url.path, problem)
    return refusal(problem)


async def on_http_exception(request: Request, problem: Exception) -> Response:
    """Exception handler for Starlette's own refusals: unknown paths, wrong methods, broken bodies."""
    assert isinstance(problem, HTTPException)
    code = _OF_STATUS.get(problem.status_code, "request-malformed")
    texts = {
        "not-found": f"nothing is at {request.url.path[:200]!r}",
        "method-not-allowed": f"{request.method} is not a method of {request.url.path[:200]!r}",
    }
    response = refusal(error(code, texts.get(code, str(problem.detail)[:200])), problem.status_code)
    response.headers.update(problem.headers or {})
    return response


async def on_length_required(request: Request, problem: Exception) -> Response:
    """Exception handler for LengthRequiredError."""
    return refusal(error("request-malformed", "the request has no Content-Length"), 411)


async def on_disconnect(request: Request, problem: Exception) -> Response:
    """Exception handler for a client that went away in the middle of its body; nobody reads the answer."""
    return refusal(error("connection-lost", "the connection broke in the middle of the body"))


class FaultBoundary:
    """ASGI middleware around everything: a failure that nobody foresaw is logged once and answered as one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app: Final = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as problem:
            if scope["type"] != "http":
                raise
            log.error("%s %s failed", scope["method"], scope["path"], exc_info=problem)
            if not started:
                await fault()(scope, receive, send)


def fault() -> Response:
    """The answer when the server itself failed."""
    return refusal(error("internal", "the server failed at this request"))


HANDLERS: Final = {
    TwinlockError: on_error,
    HTTPException: on_http_exception,
    LengthRequiredError: on_length_required,
    ClientDisconnect: on_disconnect,
}
