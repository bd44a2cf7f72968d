"""Wires a server: the only place that knows every part."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route, Router

from twinlock.core.protocol import DIRECTOR, REPOSITORY
from twinlock.server.blobs.metadata import MetadataFiles
from twinlock.server.blobs.payloads import PayloadFiles
from twinlock.server.clock import Clock, SystemClock, now_utc
from twinlock.server.device_api.routes import device_routes, director_routes, repository_routes
from twinlock.server.director.folder import DirectorFolder
from twinlock.server.enrolment.fleet_ca import FleetCa
from twinlock.server.http_answers import HANDLERS, FaultBoundary
from twinlock.server.operator_api.routes import PREFIX as OPERATOR_PREFIX
from twinlock.server.operator_api.routes import Parts, operator_app
from twinlock.server.releases.publish import Publisher
from twinlock.server.setup import read_root, read_secret
from twinlock.server.store.database import SqlDatabase
from twinlock.server.web.pages import web_routes
from twinlock.server.web.sessions import OneTimeLogin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from twinlock.server.settings import Settings


def create_app(settings: Settings, *, clock: Clock | None = None, login_once: str = "") -> Starlette:
    """The ASGI application of the server in `settings.folder`. Its lifespan opens and closes the database.

    `login_once` is a secret that logs a browser in once, at /login/SECRET. `app.state.start()` opens the
    database before the lifespan does, for a caller who wants its errors. Raises what reading the server's
    secret, root, director and fleet CA raises.
    """
    clock = clock or SystemClock()
    secret = read_secret(settings)
    pinned = read_root(settings, clock)
    director = DirectorFolder(settings.folder).load(now_utc(clock), settings.director_answer_s)
    fleet_ca = FleetCa.load(settings.folder / settings.fleet_ca) if settings.fleet_ca else None
    database = SqlDatabase(settings.url)
    payloads = PayloadFiles(settings.payloads, settings.temporary, settings.free_bytes_min)
    metadata = MetadataFiles(settings.repository)
    publisher = Publisher(database, metadata, payloads, pinned, clock)
    operators = Parts(database, payloads, publisher, settings, clock)

    def start() -> None:
        database.open()
        payloads.remove_leftovers()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        start()
        try:
            yield
        finally:
            database.close()

    routes = [
        *device_routes(database, payloads, settings, secret, clock, director, fleet_ca),
        _mount(DIRECTOR, director_routes(director)),
        _mount(REPOSITORY, repository_routes(metadata)),
        Mount(OPERATOR_PREFIX, operator_app(operators)),
        *web_routes(database, secret, settings.page_open, OneTimeLogin(login_once), clock),
    ]
    app = Starlette(
        routes=routes, exception_handlers=HANDLERS, lifespan=lifespan, middleware=[Middleware(FaultBoundary)]
    )
    app.router.redirect_slashes = False
    app.state.start = start
    app.state.database = database
    return app


def _mount(prefix: str, routes: list[Route]) -> Mount:
    """Routes below a prefix; a slash too many is an unknown path, not a redirect."""
    return Mount(prefix, Router(routes, redirect_slashes=False))
