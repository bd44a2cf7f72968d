"""Who may call: the token is checked before a byte of the body is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from twinlock.core.errors import TwinlockError
from twinlock.server.http_answers import on_error
from twinlock.server.operators import name_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from twinlock.server.ports import Database

OPEN_PATHS: Final = frozenset({"/health", "/openapi.json"})
_BEARER: Final = "Bearer "


class Guard:
    """ASGI middleware: lets operators through, their name in `request.state.operator`."""

    def __init__(self, app: ASGIApp, database: Database) -> None:
        self._app: Final = app
        self._database: Final = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and path not in OPEN_PATHS:
            request = Request(scope, receive)
            try:
                request.state.operator = await run_in_threadpool(self._name, request)
            except TwinlockError as problem:
                await (await on_error(request, problem))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _name(self, request: Request) -> str:
        header = request.headers.get("authorization", "")
        token = header[len(_BEARER) :] if header.startswith(_BEARER) else ""
        with self._database.read() as transaction:
            return name_of(token, transaction.operators.all())
