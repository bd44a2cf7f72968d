"""Payload bytes: whole or in ranges (RFC 9110, sections 13 and 14), read in chunks of 1 MiB.

The ETag is the payload's SHA-256, the same on every server that holds it; a payload never changes, so
If-Range and If-None-Match compare it alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from starlette.responses import FileResponse, Response

from twinlock.core import limits
from twinlock.core.errors import TwinlockError, error
from twinlock.server.http_answers import refusal

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

CHUNK_SIZE_BYTES: Final = limits.MIB
RANGES_MAX: Final = 16
RANGE_LENGTH_MAX: Final = 1024
_SPEC: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18})", re.ASCII)


class PayloadResponse(FileResponse):
    """Starlette's FileResponse with our chunk size, our ETag, and refusals as JSON."""

    chunk_size = CHUNK_SIZE_BYTES
    max_ranges = RANGES_MAX

    def __init__(self, path: Path, stat_result: os.stat_result, etag: str) -> None:
        headers = {"ETag": etag, "Cache-Control": "private, immutable, max-age=31536000"}
        super().__init__(
            path, headers=headers, media_type="application/octet-stream", stat_result=stat_result
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands FileResponse a Range header that it can serve, or none, or refuses as JSON."""
        headers = dict(scope["headers"])
        text = headers.pop(b"range", b"").decode("latin-1").strip()
        if text and self._is_wanted(headers.get(b"if-range")):
            try:
                ranges = satisfiable(text, self.size_bytes)
            except TwinlockError as problem:
                response = refusal(problem)
                response.headers["Content-Range"] = f"bytes */{self.size_bytes}"
                await response(scope, receive, send)
                return
            if ranges:
                headers[b"range"] = b"bytes=" + b",".join(b"%d-%d" % one for one in ranges)
        headers.pop(b"if-range", None)
        await super().__call__({**scope, "headers": list(headers.items())}, receive, send)

    def _is_wanted(self, condition: bytes | None) -> bool:
        """If-Range: only the ETag proves that it is the same payload; a date does not."""
        return condition is None or condition.decode("latin-1") == self.headers["etag"]

    @property
    def size_bytes(self) -> int:
        """How large the payload is."""
        assert self.stat_result is not None
        return self.stat_result.st_size


def satisfiable(text: str, size_bytes: int) -> list[tuple[int, int]]:
    """The first and last byte of each range in a Range header that lies in a file of this size.

    Empty when the header is in another unit than bytes and so must be ignored (RFC 9110, 14.2). Raises
    InputError `request-malformed` for a header that cannot be read, `range-not-satisfiable` when no range
    lies in the file.
    """
    unit, equals, specs = text.partition("=")
    if equals and unit.strip().lower() != "bytes":
        return []
    if len(text) > RANGE_LENGTH_MAX or specs.count(",") >= RANGES_MAX:
        raise error("request-malformed", f"more than {RANGES_MAX} ranges are asked for")
    found = []
    for spec in specs.split(","):
        match = _SPEC.fullmatch(spec.strip())
        if match is None:
            raise error("request-malformed", f"{spec.strip()[:60]!r} is no range of bytes")
        first, last, suffix = (None if part is None else int(part) for part in match.groups())
        if suffix is not None:
            first, last = max(size_bytes - suffix, 0), size_bytes - 1
        elif first is not None and last is not None and last < first:
            raise error("request-malformed", f"{spec.strip()[:60]!r} ends before it begins")
        first, last = first or 0, size_bytes - 1 if last is None else min(last, size_bytes - 1)
        if first <= last and suffix != 0:
            found.append((first, last))
    if not found:
        raise error("range-not-satisfiable", f"the payload has {size_bytes} bytes, not {text[:60]}")
    return found


def payload_response(request: Request, path: Path, sha256: str) -> Response:
    """The answer to GET or HEAD for the payload at `path`. Raises InputError `not-found`."""
    try:
        stat_result = path.stat()
    except FileNotFoundError as problem:
        raise error("not-found", f"this server has no payload {sha256}") from problem
    etag = f'"{sha256}"'
    known = [one.strip() for one in request.headers.get("if-none-match", "").split(",")]
    if etag in known or f"W/{etag}" in known or known == ["*"]:
        return Response(status_code=304, headers={"ETag": etag})
    return PayloadResponse(path, stat_result, etag)
