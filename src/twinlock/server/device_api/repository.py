"""Signed metadata and manifests, byte for byte. Names are matched against patterns, never used as paths.

What a name may be is decided here; which file that is, by the folder that was handed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import check_name, check_sha256_hex, check_version
from twinlock.server.releases.ports import METADATA_FILE, ROOT_FILE

if TYPE_CHECKING:
    from starlette.requests import Request

    from twinlock.server.director.answers import Director
    from twinlock.server.releases.ports import MetadataFolder

_MANIFEST: Final = re.compile(r"([^/]{1,64})/([0-9a-f]{64})\.([^/]{1,64})\.manifest", re.ASCII)
_FOREVER: Final = "public, immutable, max-age=31536000"


@dataclass(frozen=True, slots=True)
class RepositoryCalls:
    """Handlers of /repository."""

    folder: MetadataFolder

    async def metadata(self, request: Request) -> Response:
        """GET /metadata/NAME"""
        name: str = request.path_params["name"]
        data = None
        if METADATA_FILE.fullmatch(name):
            data = await run_in_threadpool(self.folder.read, name)
        if data is None:
            raise error("not-found", f"this repository has no metadata {name[:80]!r}")
        caching = "no-cache" if name == "timestamp.json" else _FOREVER
        return Response(data, media_type="application/json", headers={"Cache-Control": caching})

    async def manifest(self, request: Request) -> Response:
        """GET /targets/PRODUCT/SHA256.VERSION.manifest"""
        path: str = request.path_params["path"]
        data = None
        match = _MANIFEST.fullmatch(path)
        if match is not None and _are_names(*match.groups()):
            data = await run_in_threadpool(self.folder.read_manifest, *match.groups())
        if data is None:
            raise error("not-found", f"this repository has no manifest {path[:200]!r}")
        return Response(data, media_type="application/json", headers={"Cache-Control": _FOREVER})


@dataclass(frozen=True, slots=True)
class DirectorRoots:
    """Handler of /director: the roots that lead to the online key."""

    director: Director | None

    async def root(self, request: Request) -> Response:
        """GET /metadata/N.root.json"""
        name: str = request.path_params["name"]
        match = ROOT_FILE.fullmatch(name)
        data = None
        if match is not None and self.director is not None:
            data = self.director.roots.get(int(match[1]))
        if data is None:
            raise error("not-found", f"the director has no root {name[:80]!r}")
        return Response(data, media_type="application/json", headers={"Cache-Control": _FOREVER})


def _are_names(product: str, sha256: str, version: str) -> bool:
    try:
        check_name(product)
        check_sha256_hex(sha256)
        check_version(version)
    except TwinlockError:
        return False
    return True
