"""Payload uploads: streamed to disk in pieces of 1 MiB, seen by nobody until size and hash are checked."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from starlette.concurrency import run_in_threadpool

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.server.http_answers import LengthRequiredError
from twinlock.server.http_bodies import announced_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from twinlock.server.releases.ports import PayloadFolder

PIECE_SIZE_BYTES: Final = limits.MIB
STALL_WAIT_S: Final = 60.0

log: Final = logging.getLogger("twinlock.server.uploads")


async def receive(
    request: Request, payloads: PayloadFolder, sha256: str, size_bytes_max: int
) -> tuple[int, bool]:
    """Keeps the request's body as the payload `sha256` (hex); returns its size, and whether it was new.

    A payload that is here already is not written again, if its bytes still have their hash; a copy that a
    failing disk has damaged is replaced. Raises InputError `payload-hash`, `request-too-large`, DeviceError
    `disk-full`, TransportError `transfer-stalled`; then nothing is kept. Without a Content-Length it is
    LengthRequiredError.
    """
    size_bytes = announced_bytes(request)
    if size_bytes is None:
        raise LengthRequiredError
    if size_bytes > size_bytes_max:
        raise error("request-too-large", f"a payload has at most {size_bytes_max} bytes, not {size_bytes}")
    if await run_in_threadpool(payloads.is_whole, sha256):
        return await run_in_threadpool(payloads.size_bytes, sha256) or 0, False
    upload = await run_in_threadpool(payloads.upload, sha256, size_bytes)
    try:
        piece = bytearray()
        chunks = request.stream()
        while True:
            chunk = await _next(chunks)
            piece += chunk or b""
            if piece and (chunk is None or len(piece) >= PIECE_SIZE_BYTES):
                await run_in_threadpool(upload.write, bytes(piece))
                piece.clear()
            if chunk is None:
                break
        await run_in_threadpool(upload.finish)
    finally:
        await run_in_threadpool(upload.abandon)
    log.info("payload stored sha256=%s size_bytes=%d", sha256, size_bytes)
    return size_bytes, True


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    """The next bytes of the body, None at its end. Raises TransportError `transfer-stalled`."""
    try:
        async with asyncio.timeout(STALL_WAIT_S):
            return await anext(chunks, None)
    except TimeoutError as problem:
        raise error("transfer-stalled", f"no bytes came for {STALL_WAIT_S:.0f} s") from problem
