"""Sealed texts: only this server can have made them, so that it need not keep them.

They are `KIND.PAYLOAD.MAC`: payload and MAC in URL-safe base64 without padding; the MAC is HMAC-SHA256
(RFC 2104) with the server's secret over the kind and the payload, so that one kind never passes for another.
There is one algorithm and no field that names it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

SEALED_LENGTH_MAX: Final = 512


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def seal(secret: bytes, kind: str, payload: str) -> str:
    """`payload` (its fields separated by newlines) sealed as this kind."""
    body = f"{kind}.{_b64(payload.encode('utf-8'))}"
    return f"{body}.{_b64(hmac.digest(secret, b'twinlock ' + body.encode('ascii'), hashlib.sha256))}"


def unseal(secret: bytes, kind: str, text: str) -> list[str]:
    """The payload's fields. Raises ValueError for anything that this server did not make."""
    if len(text) > SEALED_LENGTH_MAX or not text.isascii():
        raise ValueError("too long, or not ASCII")
    body, dot, mac = text.rpartition(".")
    if not dot or not body.startswith(kind + "."):
        raise ValueError("of another kind")
    # The MAC is over the text as it is sent, and compared as text: no other spelling of either passes.
    expected = hmac.digest(secret, b"twinlock " + body.encode("ascii"), hashlib.sha256)
    if not hmac.compare_digest(_b64(expected), mac):
        raise ValueError("made by someone else")
    payload = body[len(kind) + 1 :]
    return base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).decode("utf-8").split("\n")
