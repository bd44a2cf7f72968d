"""Comparing bytes with the length and hashes that metadata lists for them.

At least one listed hash must be of a strong kind, and every one of a strong kind must match. Kinds that are
unknown or broken (MD5, SHA-1) prove nothing and are passed over.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any, Final

from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STRONG: Final[dict[str, Callable[[], Any]]] = {
    "sha256": hashlib.sha256,
    "sha384": hashlib.sha384,
    "sha512": hashlib.sha512,
    "blake2b-256": lambda: hashlib.blake2b(digest_size=32),
}


def strong(listed: Mapping[str, str]) -> dict[str, str]:
    """Those of the listed hashes that prove something, in the order of `STRONG`."""
    return {kind: listed[kind] for kind in STRONG if kind in listed}


def digest(kind: str, data: bytes) -> str:
    """The hash of `data` in lower-case hex, of a kind in `STRONG`."""
    running = STRONG[kind]()
    running.update(data)
    return str(running.hexdigest())


class Checker:
    """Compares a stream of chunks with what is listed; `length` of None means that none is listed.

    Raises `code` when no listed hash is of a strong kind.
    """

    def __init__(self, length: int | None, listed: Mapping[str, str], code: str, what: str) -> None:
        self._length, self._code, self._what = length, code, what
        self._expected: Final = strong(listed)
        if not self._expected:
            raise error(code, f"{what} is listed without a hash that this version knows to be strong")
        self._running = {kind: STRONG[kind]() for kind in self._expected}
        self._seen = 0

    def feed(self, chunk: bytes | memoryview) -> None:
        """Takes the next bytes; raises `code` as soon as there are more than listed."""
        self._seen += len(chunk)
        if self._length is not None and self._seen > self._length:
            raise error(self._code, f"{self._what} has more than the {self._length} bytes that are listed")
        for running in self._running.values():
            running.update(chunk)

    def finish(self) -> None:
        """Raises `code` unless length and hashes are those listed."""
        if self._length is not None and self._seen != self._length:
            raise error(
                self._code, f"{self._what} has {self._seen} bytes, not the {self._length} that are listed"
            )
        for kind, running in self._running.items():
            if not hmac.compare_digest(running.hexdigest(), self._expected[kind]):
                raise error(self._code, f"{self._what} does not have the {kind} that is listed")


def check(data: bytes, length: int | None, listed: Mapping[str, str], code: str, what: str) -> None:
    """Raises `code` unless `data` has the listed length and hashes."""
    checker = Checker(length, listed, code, what)
    checker.feed(data)
    checker.finish()
