"""HTTP for the agent: http.client under bounds on time, rate and size. Is a `ports.Network`.

What a server can do to a device is bounded here: an answer has to begin within `answer_timeout_s`, no pause
may be longer than `stall_timeout_s`, and over every `rate_window_s` seconds of waiting at least
`rate_bytes_s_min` bytes a second have to come. Redirects are given to the caller like any other status, and
http is for loopback only. A connection whose answer was read to its end is used again.
"""

from __future__ import annotations

import http.client
import io
import socket
from typing import TYPE_CHECKING, Final

from twinlock import __version__
from twinlock.agent.address import check_url
from twinlock.core import limits
from twinlock.core.errors import TwinlockError, error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

    from twinlock.agent.config import NetworkConfig
    from twinlock.agent.ports import Clock, Request, Response

READ_SIZE_BYTES_MAX: Final = 128 * limits.KIB
_STALE: Final = (http.client.RemoteDisconnected, ConnectionError)


class Watch:
    """How long the other side may let us wait. Only time spent waiting counts, not the time between reads."""

    def __init__(self, clock: Clock, bounds: NetworkConfig) -> None:
        self._clock = clock
        self._bounds = bounds
        self.stall_timeout_s: Final = bounds.stall_timeout_s
        self.begin_answer()

    def begin_answer(self) -> None:
        """Until the head of the answer is whole, only the time in total counts."""
        self._until: float | None = self._clock.monotonic_s() + self._bounds.answer_timeout_s
        self._waited_s = 0.0
        self._bytes = 0

    def begin_body(self) -> None:
        """From now on the rate counts."""
        self._until = None

    def recv(self, sock: socket.socket, buffer: bytearray | memoryview) -> int:
        """One read from the socket. Raises TransportError `transfer-stalled`, or OSError."""
        started = self._clock.monotonic_s()
        wait_s = self.stall_timeout_s
        if self._until is not None:
            wait_s = min(wait_s, self._until - started)
            if wait_s <= 0:
                raise error("transfer-stalled", f"no answer within {self._bounds.answer_timeout_s:g} s")
        sock.settimeout(wait_s)
        try:
            got = sock.recv_into(buffer)
        except TimeoutError as problem:
            raise error("transfer-stalled", f"nothing came for {wait_s:.0f} s") from problem
        self._count(got, self._clock.monotonic_s() - started)
        return got

    def _count(self, got: int, waited_s: float) -> None:
        if self._until is not None:
            return
        self._waited_s += waited_s
        self._bytes += got
        if self._waited_s < self._bounds.rate_window_s:
            return
        if self._bytes < self._bounds.rate_bytes_s_min * self._waited_s:
            raise error(
                "transfer-stalled",
                f"{self._bytes} bytes in {self._waited_s:.0f} s are fewer than "
                f"{self._bounds.rate_bytes_s_min} a second",
            )
        self._waited_s, self._bytes = 0.0, 0


class _Raw(io.RawIOBase):
    """What http.client reads an answer from."""

    def __init__(self, owner: _Socket) -> None:
        super().__init__()
        self._owner = owner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        return self._owner.watch.recv(self._owner.sock, buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._owner.reader_closed()


class _Socket:
    """The part of a socket that http.client uses, with a watch on every read.

    As with a real socket, `close` takes effect once the file made from it is closed too.
    """

    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        self.sock = sock
        self.watch = watch
        self._readers = 0
        self._closed = False

    def sendall(self, data: bytes) -> None:
        self.sock.settimeout(self.watch.stall_timeout_s)
        self.sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        self._readers += 1
        return io.BufferedReader(_Raw(self))

    def reader_closed(self) -> None:
        self._readers -= 1
        if self._closed and not self._readers:
            self.sock.close()

    def close(self) -> None:
        self._closed = True
        if not self._readers:
            self.sock.close()


class HttpResponse:
    """An answer. Read the body with `read_into`; `close` in any case. Is a `ports.Response`."""

    def __init__(self, answer: http.client.HTTPResponse, owner: HttpNetwork) -> None:
        self._answer = answer
        self._owner = owner
        self.status: Final = answer.status
        self.headers: Final[Mapping[str, str]] = _headers(answer)
        length = self.headers.get("content-length")
        self._left = int(length) if length is not None else None

    def read_into(self, buffer: memoryview) -> int:
        """At most one read from the network. Raises TransportError `connection-lost`, `transfer-stalled`."""
        wanted = min(len(buffer), READ_SIZE_BYTES_MAX if self._left is None else self._left)
        if not wanted:
            return 0
        try:
            # one copy more than readinto, which would hide how much came before a failure
            data = self._answer.read1(min(wanted, READ_SIZE_BYTES_MAX))
        except (OSError, http.client.HTTPException) as problem:
            raise _lost(problem) from problem
        buffer[: len(data)] = data
        if self._left is not None:
            self._left -= len(data)
            if not data:
                raise error("connection-lost", f"the answer ended {self._left} bytes early")
        return len(data)

    def close(self) -> None:
        """Keeps the connection if the body was read to its end, else ends it."""
        finished = self._left == 0 or (self._left is None and self._answer.isclosed())
        self._answer.close()
        self._owner.done(keep=finished and not self._answer.will_close)


class HttpNetwork:
    """One connection at a time; an answer must be closed before the next request. Is a `ports.Network`."""

    def __init__(self, clock: Clock, bounds: NetworkConfig) -> None:
        self._clock = clock
        self._bounds = bounds
        self._watch = Watch(clock, bounds)
        self._connection: http.client.HTTPConnection | None = None
        self._origin: tuple[str, str, int | None] | None = None

    def open(self, request: Request) -> HttpResponse:
        """The head of the answer, whatever its status.

        Raises TransportError `server-unreachable`, `connection-lost`, `transfer-stalled`, `answer-malformed`.
        """
        parts = check_url(request.url)
        origin = (parts.scheme, parts.hostname or "", parts.port)
        if self._connection is not None and self._origin == origin:
            try:
                return self._exchange(self._connection, request, parts)
            except _STALE:
                self.done(keep=False)  # the server had closed it meanwhile
        self.done(keep=False)
        self._connection, self._origin = self._connect(parts), origin
        try:
            return self._exchange(self._connection, request, parts)
        except _STALE as problem:
            self.done(keep=False)
            raise _lost(problem) from problem

    def _exchange(
        self, connection: http.client.HTTPConnection, request: Request, parts: SplitResult
    ) -> HttpResponse:
        self._watch.begin_answer()
        headers = {
            "user-agent": f"twinlock-agent/{__version__}",
            "accept-encoding": "identity",
            **request.headers,
        }
        path = parts.path or "/"
        try:
            connection.request(
                request.method, f"{path}?{parts.query}" if parts.query else path, request.body, headers
            )
            response = self._response(connection.getresponse())
        except _STALE:
            raise
        except TwinlockError:
            self.done(keep=False)
            raise
        except (OSError, http.client.HTTPException) as problem:
            self.done(keep=False)
            raise _lost(problem) from problem
        self._watch.begin_body()
        return response

    def _response(self, answer: http.client.HTTPResponse) -> HttpResponse:
        try:
            return HttpResponse(answer, self)
        except TwinlockError:
            answer.close()
            raise

    def done(self, *, keep: bool) -> None:
        """Ends the connection unless it can serve the next request."""
        if self._connection is not None and not keep:
            self._connection.close()
            self._connection = None

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            sock = socket.create_connection((host, port), self._bounds.connect_timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if parts.scheme == "https":
                sock = self._encrypt(sock, host)
        except (OSError, UnicodeError) as problem:
            raise error("server-unreachable", f"{parts.scheme}://{parts.netloc}: {problem}") from problem
        connection = http.client.HTTPConnection(host, parts.port)
        connection.sock = _Socket(sock, self._watch)
        connection.auto_open = 0
        return connection

    def _encrypt(self, sock: socket.socket, host: str) -> socket.socket:
        import ssl

        ca_file = self._bounds.ca_file
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        try:
            return context.wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise


def _headers(answer: http.client.HTTPResponse) -> dict[str, str]:
    """Header fields by lower-case name. Raises TransportError `answer-malformed` for an ambiguous length."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    lengths = set(answer.headers.get_all("content-length") or ())
    if len(lengths) > 1 or any(not text.isascii() or not text.isdecimal() for text in lengths):
        raise error("answer-malformed", "the answer's length is given twice or is no number")
    if lengths and "transfer-encoding" in headers:
        raise error("answer-malformed", "the answer has a length and is chunked")
    if headers.get("content-encoding", "identity") != "identity":
        raise error("answer-malformed", "the answer is compressed, which nobody asked for")
    return headers


def _lost(problem: BaseException) -> TwinlockError:
    if isinstance(problem, http.client.HTTPException) and not isinstance(problem, _STALE):
        return error("answer-malformed", f"the answer is no HTTP: {type(problem).__name__} {problem}")
    return error("connection-lost", f"the connection ended: {problem}")


def read_all(response: Response, size_bytes_max: int, what: str) -> bytes:
    """The whole body. Raises TrustError `transfer-oversized` past `size_bytes_max`, and what reads raise."""
    data = bytearray()
    buffer = memoryview(bytearray(min(size_bytes_max + 1, READ_SIZE_BYTES_MAX)))
    while got := response.read_into(buffer):
        data += buffer[:got]
        if len(data) > size_bytes_max:
            raise error("transfer-oversized", f"{what} has more than {size_bytes_max} bytes")
    return bytes(data)
