"""Which call is at which path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.routing import Route

from twinlock.core.errors import error
from twinlock.core.names import check_sha256_hex
from twinlock.core.protocol import PREFIX
from twinlock.server.device_api.calls import DeviceCalls
from twinlock.server.device_api.downloads import payload_response
from twinlock.server.device_api.repository import DirectorRoots, RepositoryCalls

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from twinlock.server.clock import Clock
    from twinlock.server.director.answers import Director
    from twinlock.server.enrolment.fleet_ca import FleetCa
    from twinlock.server.ports import Database
    from twinlock.server.releases.ports import MetadataFolder, PayloadFolder
    from twinlock.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Downloads:
    """GET and HEAD /payloads/SHA256, for accepted devices, of published releases."""

    calls: DeviceCalls
    payloads: PayloadFolder

    async def payload(self, request: Request) -> Response:
        await self.calls.authorise(request)
        sha256 = check_sha256_hex(request.path_params["sha256"])
        if not await self.calls.database.is_published(sha256):
            raise error("not-found", f"no release has a payload {sha256}")
        return payload_response(request, self.payloads.path(sha256), sha256)


def device_routes(
    database: Database,
    payloads: PayloadFolder,
    settings: Settings,
    secret: bytes,
    clock: Clock,
    director: Director | None = None,
    fleet_ca: FleetCa | None = None,
) -> list[Route]:
    """What is under /device/v1, each with its whole path: one lookup less than a mount, at every poll."""
    calls = DeviceCalls(database, settings, secret, clock, director, fleet_ca)
    downloads = Downloads(calls, payloads)
    return [
        Route(f"{PREFIX}/poll", calls.poll, methods=["POST"]),
        Route(f"{PREFIX}/reports", calls.reports, methods=["POST"]),
        Route(PREFIX + "/payloads/{sha256}", downloads.payload, methods=["GET"]),
        Route(f"{PREFIX}/evidence", calls.evidence, methods=["POST"]),
        Route(f"{PREFIX}/director", calls.directed, methods=["POST"]),
        Route(f"{PREFIX}/enrol", calls.enrol, methods=["POST"]),
        Route(f"{PREFIX}/challenge", calls.challenge, methods=["POST"]),
        Route(f"{PREFIX}/session", calls.session, methods=["POST"]),
    ]


def director_routes(director: Director | None) -> list[Route]:
    """What is under /director."""
    calls = DirectorRoots(director)
    return [Route("/metadata/{name}", calls.root, methods=["GET"])]


def repository_routes(folder: MetadataFolder) -> list[Route]:
    """What is under /repository."""
    calls = RepositoryCalls(folder)
    return [
        Route("/metadata/{name}", calls.metadata, methods=["GET"]),
        Route("/targets/{path:path}", calls.manifest, methods=["GET"]),
    ]
