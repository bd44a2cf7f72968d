"""Operators' tokens: random, shown once, kept as a hash, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN_SIZE_BYTES: Final = 32
TOKEN_LENGTH_MAX: Final = 256


def make_token() -> str:
    """A new token: 32 random bytes as URL-safe base64; never one that a command line takes for an option."""
    while (token := secrets.token_urlsafe(TOKEN_SIZE_BYTES)).startswith("-"):
        continue
    return token


def hash_of(token: str) -> str:
    """SHA-256 as hex. A token has 256 random bits, so that a slow hash would add nothing."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def name_of(token: str, known: Sequence[tuple[str, str]]) -> str:
    """Whose token it is. `known` holds names and hashes. Raises PolicyError `unauthorised`.

    Every known hash is compared, so that the time taken says nothing about which one was near.
    """
    if not token or len(token) > TOKEN_LENGTH_MAX:
        raise error("unauthorised", "the request bears no operator token")
    given = hash_of(token)
    found = ""
    for name, token_sha256 in known:
        if hmac.compare_digest(given, token_sha256):
            found = name
    if not found:
        raise error("unauthorised", "no operator of this server has this token")
    return found
