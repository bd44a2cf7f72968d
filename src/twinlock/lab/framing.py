"""Which bytes of an HTTP/1.1 connection belong to which request: enough for a proxy that watches and breaks.

Bytes are labelled, never changed (RFC 9112, section 6: lengths by Content-Length, chunked coding, or the end
of the connection). This trusts both ends: it is an instrument of the lab, not a security boundary.
"""

from __future__ import annotations

import abc
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from twinlock.core.limits import KIB

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

HEAD_SIZE_BYTES_MAX: Final = 64 * KIB
_HEAD_END: Final = b"\r\n\r\n"
_UNTIL_CLOSE: Final = 1 << 62
_WITHOUT_BODY: Final = frozenset({204, 304})


class FramingError(Exception):
    """The bytes are not HTTP/1.1 as this module knows it."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as far as they went. Sizes count body bytes that passed the proxy."""

    method: str
    path: str
    range: str = ""
    status: int = 0
    request_bytes: int = 0
    response_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """A run of bytes of one message; `body` is false for its head."""

    data: bytes
    exchange: Exchange
    body: bool


def _headers(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        found[name.strip().lower()] = value.strip()
    return first, found


def _announced(headers: dict[str, str], default: int) -> int:
    """Body length from the headers; `default` when they do not say."""
    text = headers.get("content-length")
    if text is None:
        return default
    if not text.isdecimal():
        raise FramingError(f"Content-Length is {text[:40]!r}")
    return int(text)


class _Chunks:
    """Finds the end of a chunked body."""

    def __init__(self) -> None:
        self._line = b""
        self._left = 0
        self._last = False
        self.done = False

    def take(self, data: bytes) -> int:
        """How many bytes of `data` belong to the body; sets `done` at its end."""
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            self._line += data[at : at + 1]
            at += 1
            if self._line.endswith(b"\r\n"):
                self._end_of_line(self._line[:-2])
                self._line = b""
            elif len(self._line) > HEAD_SIZE_BYTES_MAX:
                raise FramingError("a chunk's head is too long")
        return at

    def _end_of_line(self, line: bytes) -> None:
        if self._last:
            self.done = not line  # trailers end with an empty line
            return
        try:
            size_bytes = int(line.split(b";")[0], 16)
        except ValueError as problem:
            raise FramingError(f"a chunk's head is {line[:40]!r}") from problem
        self._last = size_bytes == 0
        self._left = size_bytes + 2 if size_bytes else 0


@dataclass(slots=True)
class _Stream(abc.ABC):
    """One direction: `feed` it what arrives."""

    waiting: deque[Exchange]
    _head: bytes = b""
    _exchange: Exchange | None = None
    _left: int = 0
    _chunks: _Chunks | None = None

    def feed(self, data: bytes) -> Iterator[Span]:
        """The labelled spans of `data`, in order; a head comes out once it is complete."""
        while data:
            if self._exchange is not None and (self._left or self._chunks is not None):
                data = yield from self._body(self._exchange, data)
                continue
            self._head += data
            end = self._head.find(_HEAD_END)
            if end < 0:
                if len(self._head) > HEAD_SIZE_BYTES_MAX:
                    raise FramingError("the head of a message is too long")
                return
            head, data = self._head[: end + len(_HEAD_END)], self._head[end + len(_HEAD_END) :]
            self._head = b""
            self._exchange = self._begin(*_headers(head[:end]))
            yield Span(head, self._exchange, body=False)

    def _body(self, exchange: Exchange, data: bytes) -> Generator[Span, None, bytes]:
        if self._chunks is not None:
            size_bytes = self._chunks.take(data)
            if self._chunks.done:
                self._chunks = None
        else:
            size_bytes = min(self._left, len(data))
            self._left -= size_bytes
        yield Span(data[:size_bytes], exchange, body=True)
        return data[size_bytes:]

    @abc.abstractmethod
    def _begin(self, first: str, headers: dict[str, str]) -> Exchange:
        """The exchange that a head belongs to; sets what body follows."""

    def _expect(self, headers: dict[str, str], default: int) -> None:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._chunks = _Chunks()
        else:
            self._left = _announced(headers, default)


@dataclass(slots=True)
class Requests(_Stream):
    """The direction from client to server; every request is put into `waiting` and `seen`."""

    seen: list[Exchange] = field(default_factory=list)

    def _begin(self, first: str, headers: dict[str, str]) -> Exchange:
        words = first.split(" ")
        if len(words) != 3:
            raise FramingError(f"a request begins with {first[:80]!r}")
        exchange = Exchange(words[0], words[1].partition("?")[0], headers.get("range", ""))
        self.waiting.append(exchange)
        self.seen.append(exchange)
        self._expect(headers, 0)
        return exchange


@dataclass(slots=True)
class Responses(_Stream):
    """The direction from server to client; answers take their exchange out of `waiting`, in order."""

    def _begin(self, first: str, headers: dict[str, str]) -> Exchange:
        words = first.split(" ")
        if len(words) < 2 or not words[1].isdecimal() or not self.waiting:
            raise FramingError(f"an answer begins with {first[:80]!r}")
        status = int(words[1])
        exchange = self.waiting[0]
        if status < 200:
            return exchange
        self.waiting.popleft()
        exchange.status = status
        if exchange.method != "HEAD" and status not in _WITHOUT_BODY:
            self._expect(headers, _UNTIL_CLOSE)
        return exchange
