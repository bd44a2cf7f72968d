"""A TCP proxy on loopback that breaks links as real ones break, at exact bytes, and counts what passes.

Faults are placed by the number of payload bytes: body bytes of answers to requests below `/payloads/`,
counted over all connections since the proxy started. So a fault at byte N comes at the same place of the
download in every run, however the client splits its requests. Each fault fires once; rates always hold.

    with FaultProxy(server_url, [Cut(3_000_000), Stall(9_000_000, wait_s=2)]) as proxy:
        run_agent(server=proxy.url)
        print(proxy.counts().payload_bytes)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from twinlock.core.errors import error
from twinlock.core.limits import KIB
from twinlock.lab.framing import Exchange, FramingError, Requests, Responses, Span

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from random import Random
    from types import TracebackType
    from typing import Self

PAYLOAD_PATH: Final = "/payloads/"
_READ_SIZE_BYTES: Final = 64 * KIB
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_WAIT_S: Final = 10.0
_ACCEPT_STEPS: Final = 10  # turns of the loop in which a connection that was just accepted gets its task


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection ends after payload byte `after_bytes`: in order, or by a reset that loses what the
    client's system has not handed over yet. With `away` the proxy is `down` from then on."""

    after_bytes: int
    reset: bool = False
    away: bool = False


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing more arrives on a connection after payload byte `after_bytes`, for `wait_s`; None: for ever."""

    after_bytes: int
    wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class Flip:
    """Payload byte number `at_byte` (from 0) arrives with one bit inverted."""

    at_byte: int
    bit: int = 0


Fault = Cut | Stall | Flip


@dataclass(frozen=True, slots=True)
class Counts:
    """What passed so far. `payload_bytes` are those handed to clients; `by_path` counts answers' bodies."""

    to_server_bytes: int
    to_client_bytes: int
    payload_bytes: int
    cuts: int
    by_path: dict[str, int]
    exchanges: tuple[Exchange, ...]


def random_cuts(rng: Random, count: int, size_bytes: int, *, reset: bool = False) -> list[Cut]:
    """`count` cuts at different places of a download of `size_bytes`, the same for the same generator."""
    return [Cut(place, reset) for place in sorted(rng.sample(range(1, size_bytes), count))]


class _SeveredError(Exception):
    """A fault ended this connection."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__("the link is cut")
        self.reset = reset


class FaultProxy:
    """A proxy in front of `upstream` (http://HOST:PORT), at `url` between `start` and `stop`.

    `rate_bytes_s` bounds payload bytes per second over all connections; with `drip` they come one at a time.
    With `tls` clients speak https to the proxy; the way upstream stays plain.
    `down` makes it end every connection at once, as a server that is away; it can be set at any time.
    `refused` counts the connections that it ended so.
    """

    def __init__(
        self,
        upstream: str,
        faults: Iterable[Fault] = (),
        *,
        rate_bytes_s: float | None = None,
        drip: bool = False,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise error("input-invalid", f"a proxy stands before http://HOST:PORT, not {upstream!r}")
        self._upstream: Final = (parts.hostname, parts.port)
        self._faults: list[Fault] = sorted(faults, key=_place)
        self._rate_bytes_s: Final = rate_bytes_s
        self._drip: Final = drip
        self._port = port
        self._tls: Final = tls
        self.down = False
        self.refused = 0
        self._lock: Final = threading.Lock()
        self._to_server = self._to_client = self._payload = self._cuts = 0
        self._seen: list[Exchange] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._free_at_s = 0.0

    @property
    def url(self) -> str:
        """Where clients connect; the port is known once the proxy has started."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """The port of `url`."""
        return self._port

    def add(self, fault: Fault) -> None:
        """Schedules one more fault; its place counts from the proxy's start as all places do."""
        with self._lock:
            self._faults = sorted([*self._faults, fault], key=_place)

    def counts(self) -> Counts:
        """What passed so far, as a copy."""
        with self._lock:
            by_path: dict[str, int] = {}
            for exchange in self._seen:
                by_path[exchange.path] = by_path.get(exchange.path, 0) + exchange.response_bytes
            return Counts(
                self._to_server,
                self._to_client,
                self._payload,
                self._cuts,
                by_path,
                tuple(replace(exchange) for exchange in self._seen),
            )

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listens. Raises DeviceError `io-error` when the port cannot be had."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", self._port))
        except OSError as problem:
            listener.close()
            raise error("io-error", f"cannot listen on port {self._port}: {problem.strerror}") from problem
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, ready)), name="fault-proxy", daemon=True
        )
        self._thread.start()
        if not ready.wait(_WAIT_S):
            raise error("internal", "the proxy did not start")

    def stop(self) -> None:
        """Ends every connection and waits for the thread; the port is free afterwards."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_WAIT_S)
            if self._thread.is_alive():
                raise error("internal", "the proxy did not stop")
        self._loop = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._accepted, sock=listener, ssl=self._tls)
        ready.set()
        async with server:
            await self._stopping.wait()
            server.close()
            for _ in range(_ACCEPT_STEPS):
                await asyncio.sleep(0)
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- one connection --------------------------------------------------------------------------------------

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connected(reader, writer)
        except asyncio.CancelledError:
            _reset(writer)  # only `stop` cancels; the task ends here
        finally:
            self._tasks.discard(task)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            self.refused += 1
            _reset(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            _reset(writer)  # what a client sees when nobody listens
            return
        waiting: deque[Exchange] = deque()
        up = asyncio.create_task(self._upwards(reader, server_writer, waiting))
        try:
            await self._downwards(server_reader, writer, waiting)
            await _close(writer)
        except _SeveredError as severed:
            if severed.reset:
                _reset(writer)
            else:
                await _close(writer)
        except (OSError, FramingError):
            _reset(writer)
        finally:
            _reset(server_writer)  # before anything that a cancellation could interrupt
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)

    async def _upwards(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: deque[Exchange]
    ) -> None:
        stream = Requests(waiting, seen=self._seen)
        try:
            while data := await reader.read(_READ_SIZE_BYTES):
                for span in stream.feed(data):
                    with self._lock:
                        self._to_server += len(span.data)
                        span.exchange.request_bytes += len(span.data) if span.body else 0
                    writer.write(span.data)
                await writer.drain()
            writer.write_eof()
        except (OSError, FramingError):
            writer.transport.abort()  # the other direction sees the end and closes

    async def _downwards(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: deque[Exchange]
    ) -> None:
        stream = Responses(waiting)
        while data := await reader.read(_READ_SIZE_BYTES):
            for span in stream.feed(data):
                if self.down:
                    raise _SeveredError(reset=True)
                if span.body and PAYLOAD_PATH in span.exchange.path:
                    await self._payload_out(span, writer)
                else:
                    await self._out(span, span.data, writer)

    async def _out(self, span: Span, data: bytes, writer: asyncio.StreamWriter) -> None:
        with self._lock:
            self._to_client += len(data)
            if span.body:
                span.exchange.response_bytes += len(data)
        writer.write(data)
        await writer.drain()

    async def _payload_out(self, span: Span, writer: asyncio.StreamWriter) -> None:
        """Hands out payload bytes up to each fault's place, then lets the fault happen."""
        data = span.data
        while data:
            with self._lock:
                fault = self._faults[0] if self._faults else None
                room = _place(fault) - self._payload if fault is not None else len(data)
                step = max(0, min(room, len(data), 1 if self._drip else len(data)))
                piece, data = data[:step], data[step:]
                self._payload += step
                due = fault is not None and step >= room
                if due:
                    self._faults.pop(0)
            if piece:
                await self._pace(len(piece))
                await self._out(span, piece, writer)
            if due and fault is not None:
                data = await self._happen(fault, data)

    async def _happen(self, fault: Fault, rest: bytes) -> bytes:
        if isinstance(fault, Flip):
            return bytes([rest[0] ^ (1 << fault.bit)]) + rest[1:] if rest else self._flip_later(fault)
        if isinstance(fault, Stall):
            if fault.wait_s is None:
                await asyncio.Event().wait()
            else:
                await asyncio.sleep(fault.wait_s)
            return rest
        with self._lock:
            self._cuts += 1
        self.down = self.down or fault.away
        raise _SeveredError(reset=fault.reset)

    def _flip_later(self, fault: Flip) -> bytes:
        """The byte to flip is the first of what comes next."""
        with self._lock:
            self._faults.insert(0, fault)
        return b""

    async def _pace(self, size_bytes: int) -> None:
        """Waits until the link has room for `size_bytes` more."""
        if self._rate_bytes_s is None:
            return
        loop = asyncio.get_running_loop()
        start_s = max(self._free_at_s, loop.time())
        self._free_at_s = start_s + size_bytes / self._rate_bytes_s
        await asyncio.sleep(max(0.0, self._free_at_s - loop.time()))


def _place(fault: Fault) -> int:
    return fault.at_byte if isinstance(fault, Flip) else fault.after_bytes


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection as a dead link does: the peer gets a reset."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):  # it is gone already
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Ends a connection in order: the peer gets everything that was sent, then the end."""
    writer.close()
    with contextlib.suppress(OSError):  # the peer was faster
        await writer.wait_closed()
