"""Challenges and session tokens: texts that only this server can have made, so that it need not keep them.

A challenge names its device and the time it was made; it is good for `CHALLENGE_S`. That it is answered only
once is the store's part (`DeviceStore.raise_session_floor`). A token names its device and the fingerprint of
the key that opened the session: a device that enrols anew with another key has no session any more. It also
names the time of its challenge. A device uses the newest session that it opened, and never goes back: who
polls with an older one is a second device with the same key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from twinlock.core.errors import error
from twinlock.server.seals import seal, unseal

CHALLENGE_S: Final = 120
NONCE_SIZE_BYTES: Final = 16
_CHALLENGE: Final = "c1"
_TOKEN: Final = "t2"  # noqa: S105  the kind's name, not a token


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a challenge says: for whom, and when it was made (microseconds since 1970)."""

    device_id: str
    issued_us: int


class Session(msgspec.Struct, frozen=True, gc=False):
    """What a token says: whose it is, the key's fingerprint (hex), and when it ends (seconds since 1970).

    `issued_us` is the time of the challenge that opened the session, in microseconds since 1970.
    """

    device_id: str
    fingerprint: str
    expires_s: int
    issued_us: int


def make_challenge(secret: bytes, device_id: str, now_us: int, nonce: bytes) -> str:
    """A challenge for this device. `nonce` is random and `NONCE_SIZE_BYTES` long."""
    return seal(secret, _CHALLENGE, f"{device_id}\n{now_us}\n{nonce.hex()}")


def read_challenge(secret: bytes, text: str, device_id: str, now_us: int) -> Challenge:
    """The challenge in `text`. Raises PolicyError `unauthorised` or `session-expired`."""
    try:
        named, issued, _ = unseal(secret, _CHALLENGE, text)
        challenge = Challenge(named, int(issued))
    except ValueError as problem:
        raise error("unauthorised", "the challenge was not made by this server") from problem
    if challenge.device_id != device_id:
        raise error("unauthorised", "the challenge was made for another device")
    if not 0 <= now_us - challenge.issued_us <= CHALLENGE_S * 1_000_000:
        raise error("session-expired", "the challenge is too old", hint="ask for a new challenge")
    return challenge


def make_token(secret: bytes, device_id: str, fingerprint: str, expires_s: int, issued_us: int) -> str:
    """A session token; see the module docstring for what it binds."""
    return seal(secret, _TOKEN, f"{device_id}\n{fingerprint}\n{expires_s}\n{issued_us}")


def read_token(secret: bytes, text: str, now_s: float) -> Session:
    """The session in `text`. Raises PolicyError `unauthorised` or `session-expired`."""
    try:
        device_id, fingerprint, expires, issued = unseal(secret, _TOKEN, text)
        session = Session(device_id, fingerprint, int(expires), int(issued))
    except ValueError as problem:
        raise error("unauthorised", "the session token was not made by this server") from problem
    if now_s >= session.expires_s:
        raise error("session-expired", "the session has ended")
    return session
