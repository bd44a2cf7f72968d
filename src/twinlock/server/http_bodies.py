"""Bodies from outside, read with a bound on their size, whatever their headers say.

How long a request may take to come is bounded by `twinlock.server.connections`, for all requests alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.requests import Request

from twinlock.core import limits
from twinlock.core.errors import TwinlockError, error
from twinlock.server.http_answers import refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


def announced_bytes(request: Request) -> int | None:
    """What Content-Length says, None without one. Raises InputError `request-malformed` for no number."""
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise error("request-malformed", "Content-Length is no number of bytes")
    return int(text)


async def read_body(request: Request, size_bytes_max: int = limits.MESSAGE_SIZE_BYTES_MAX) -> bytes:
    """The whole body. Raises InputError `request-too-large`.

    The count is of bytes that came: a body in chunks without Content-Length has the same bound.
    """
    announced = announced_bytes(request)
    if announced is not None and announced > size_bytes_max:
        raise _too_large(size_bytes_max)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > size_bytes_max:
            raise _too_large(size_bytes_max)
    return bytes(body)


def _too_large(size_bytes_max: int) -> Exception:
    return error("request-too-large", f"the body has more than {size_bytes_max} bytes")


class BoundedBodies:
    """ASGI middleware for an edge whose framework reads bodies by itself: it gets them whole and bounded.

    PUT is left alone: an upload is streamed, and its handler bounds it.
    """

    def __init__(self, app: ASGIApp, size_bytes_max: int) -> None:
        self._app: Final = app
        self._size_bytes_max: Final = size_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "PUT":
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(Request(scope, receive), self._size_bytes_max)
        except TwinlockError as problem:
            await refusal(problem)(scope, receive, send)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)
