"""The status page, a device's page, a rollout's page; logging in and out.

Every page works without a script. One small script of our own fetches the page again every few seconds and
swaps its content; without it, the page reloads itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from twinlock import __version__
from twinlock.core import limits
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import check_device_id, check_sha256_hex
from twinlock.server.clock import now_ms
from twinlock.server.devices import evidence
from twinlock.server.devices.model import Status
from twinlock.server.devices.service import known
from twinlock.server.http_bodies import read_body
from twinlock.server.operators import hash_of, name_of
from twinlock.server.rollouts.service import number_of
from twinlock.server.web import sessions, show

if TYPE_CHECKING:
    from starlette.requests import Request

    from twinlock.server.clock import Clock
    from twinlock.server.ports import Database
    from twinlock.server.web.sessions import OneTimeLogin

DEVICES_SHOWN: Final = 100
ROLLOUTS_SHOWN: Final = 20
RELEASES_SHOWN: Final = 20
ASSIGNMENTS_SHOWN: Final = 200
REPORTS_SHOWN: Final = 50
LOGIN_SIZE_BYTES_MAX: Final = 4 * limits.KIB

_TEMPLATES: Final = show.environment()
_TYPES: Final = {"style.css": "text/css", "refresh.js": "text/javascript", "icon.svg": "image/svg+xml"}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Pages:
    """Handlers of the pages. `page_open` shows them without a login to this machine."""

    database: Database
    secret: bytes
    page_open: bool
    once: OneTimeLogin
    clock: Clock

    async def status(self, request: Request) -> Response:
        """GET /"""
        after = request.query_params.get("after", "")
        if after:
            check_device_id(after)
        return await self._page(request, "status.html", lambda: self._status(after))

    async def device(self, request: Request) -> Response:
        """GET /devices/ID"""
        device_id = request.path_params["device_id"]
        return await self._page(request, "device.html", lambda: self._device(device_id))

    async def evidence(self, request: Request) -> Response:
        """GET /devices/ID/evidence/NAME"""
        device_id, name = request.path_params["device_id"], request.path_params["name"]
        return await self._page(request, "evidence.html", lambda: self._evidence(device_id, name))

    async def rollout(self, request: Request) -> Response:
        """GET /rollouts/ID"""
        rollout_id = request.path_params["rollout_id"]
        return await self._page(request, "rollout.html", lambda: self._rollout(rollout_id))

    async def login_form(self, request: Request) -> Response:
        """GET /login"""
        return self._render("login.html", {"failed": False}, None)

    async def login(self, request: Request) -> Response:
        """POST /login with the operator's token in the form."""
        body = await read_body(request, LOGIN_SIZE_BYTES_MAX)
        form = dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=8))
        known_tokens = await run_in_threadpool(self._operators)
        token = form.get("token", "").strip()
        try:
            name = name_of(token, known_tokens)
        except TwinlockError:
            return self._render("login.html", {"failed": True}, None, 401)
        return self._logged_in(request, name, hash_of(token))

    async def login_once(self, request: Request) -> Response:
        """GET /login/SECRET: the link that a server prints when it starts; good for one login."""
        known_tokens = await run_in_threadpool(self._operators)
        if not known_tokens or not self.once.use(request.path_params["secret"]):
            return RedirectResponse("/login", 303, _HEADERS)
        return self._logged_in(request, *known_tokens[0])

    async def logout(self, request: Request) -> Response:
        """POST /logout"""
        response = RedirectResponse("/login", 303, _HEADERS)
        response.delete_cookie(sessions.COOKIE, path="/", httponly=True, samesite="strict")
        return response

    async def static(self, request: Request) -> Response:
        """GET /static/NAME"""
        name = request.path_params["name"]
        if name not in _TYPES:
            raise error("not-found", f"nothing is at {request.url.path[:200]!r}")
        data = resources.files(__package__).joinpath("static", name).read_bytes()
        headers = {**_HEADERS, "Cache-Control": "public, max-age=300"}
        return Response(data, media_type=_TYPES[name], headers=headers)

    def _logged_in(self, request: Request, name: str, token_sha256: str) -> Response:
        response = RedirectResponse("/", 303, _HEADERS)
        now_s = self.clock.now_us() // 1_000_000
        sessions.set_cookie(request, response, sessions.make_cookie(self.secret, name, token_sha256, now_s))
        return response

    def _operators(self) -> list[tuple[str, str]]:
        with self.database.read() as transaction:
            return list(transaction.operators.all())

    async def _page(self, request: Request, template: str, make: Any) -> Response:
        operator = await run_in_threadpool(self._who, request)
        if operator is None:
            return RedirectResponse("/login", 303, _HEADERS)
        return self._render(template, await run_in_threadpool(make), operator)

    def _who(self, request: Request) -> str | None:
        """The operator's name; an empty text where the page is open to this machine; None for nobody."""
        cookie = request.cookies.get(sessions.COOKIE, "")
        now_s = self.clock.now_us() / 1_000_000
        name = sessions.read_cookie(self.secret, cookie, self._operators(), now_s) if cookie else None
        if name is None and self.page_open and sessions.is_local(request):
            return ""
        return name

    def _render(
        self, template: str, values: dict[str, Any], operator: str | None, status: int = 200
    ) -> Response:
        text = _TEMPLATES.get_template(template).render(
            **values, operator=operator, version=__version__, now_ms=now_ms(self.clock)
        )
        return Response(text, status, headers=_HEADERS, media_type="text/html")

    def _status(self, after: str) -> dict[str, Any]:
        with self.database.read() as transaction:
            rows = list(transaction.devices.rows(None, after, DEVICES_SHOWN + 1))
            releases = transaction.releases.newest(RELEASES_SHOWN)
            return {
                "counts": {one.value: transaction.devices.count(one) for one in Status},
                "devices": rows[:DEVICES_SHOWN],
                "next": rows[DEVICES_SHOWN - 1].device.device_id if len(rows) > DEVICES_SHOWN else "",
                "rollouts": transaction.rollouts.newest(ROLLOUTS_SHOWN),
                "releases": [(one, transaction.releases.payloads(one.release_id)) for one in releases],
            }

    def _device(self, device_id: str) -> dict[str, Any]:
        with self.database.read() as transaction:
            known(transaction, device_id)
            return {
                "row": transaction.devices.row(device_id),
                "reports": transaction.reports.of_device(device_id, REPORTS_SHOWN),
                "indicators": transaction.devices.indicators(device_id),
                "evidence": transaction.evidence.of_device(device_id),
            }

    def _evidence(self, device_id: str, name: str) -> dict[str, Any]:
        check_sha256_hex(name)
        with self.database.read() as transaction:
            known(transaction, device_id)
            text = evidence.text(transaction, device_id, name)
            return {"device_id": device_id, "name": name, "text": text}

    def _rollout(self, rollout_id: str) -> dict[str, Any]:
        number = number_of(rollout_id)
        with self.database.read() as transaction:
            found = transaction.rollouts.progress(number)
            if found is None:
                raise error("not-found", f"no rollout is called {rollout_id!r}")
            rows = transaction.rollouts.assignments(number, "", ASSIGNMENTS_SHOWN)
            return {"found": found, "assignments": rows}


def web_routes(
    database: Database, secret: bytes, page_open: bool, once: OneTimeLogin, clock: Clock
) -> list[Route]:
    """What is under /."""
    pages = Pages(database, secret, page_open, once, clock)
    return [
        Route("/", pages.status, methods=["GET"]),
        Route("/devices/{device_id}", pages.device, methods=["GET"]),
        Route("/devices/{device_id}/evidence/{name}", pages.evidence, methods=["GET"]),
        Route("/rollouts/{rollout_id}", pages.rollout, methods=["GET"]),
        Route("/login", pages.login_form, methods=["GET"]),
        Route("/login", pages.login, methods=["POST"]),
        Route("/login/{secret}", pages.login_once, methods=["GET"]),
        Route("/logout", pages.logout, methods=["POST"]),
        Route("/static/{name}", pages.static, methods=["GET"]),
    ]
