"""Which addresses the agent talks to."""

from __future__ import annotations

from typing import Final
from urllib.parse import SplitResult, urlsplit

from twinlock.core.errors import error

URL_LENGTH_MAX: Final = 4096


def check_url(url: str) -> SplitResult:
    """The parts of `url` if the agent may talk to it: https anywhere, http on loopback.

    Raises DeviceError `config-invalid`.
    """
    parts = urlsplit(url)
    try:
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        port_fits = False
    rules = (
        (len(url) <= URL_LENGTH_MAX, "is too long"),
        (parts.scheme in ("http", "https"), "is neither http nor https"),
        (bool(parts.hostname) and port_fits, "names no server"),
        (parts.username is None and parts.password is None, "holds a user name"),
        (url.isascii() and url.isprintable() and " " not in url, "has characters that an address has not"),
        (
            parts.scheme == "https" or is_loopback(parts.hostname or ""),
            "is http outside of loopback; use https",
        ),
    )
    for holds, what in rules:
        if not holds:
            raise error("config-invalid", f"the address {url[:80]!r} {what}")
    return parts


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine: localhost, 127.0.0.0/8 or ::1."""
    if host in ("localhost", "::1"):
        return True
    numbers = host.split(".")
    return (
        len(numbers) == 4
        and numbers[0] == "127"
        and all(one.isascii() and one.isdecimal() for one in numbers)
    )
