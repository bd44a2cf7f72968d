"""A server of raw sockets on loopback: each connection is handed to the next of a list of scripts."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Script = Callable[[socket.socket, bytes], None]
WAIT_S = 20.0


@dataclass
class RawServer:
    """`scripts` are used in turn, the last one for ever. Each gets the connection and the request's bytes."""

    scripts: list[Script]
    requests: list[bytes] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def read_request(conn: socket.socket) -> bytes:
    """One request, with its body if it has a length; empty when the other side closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = conn.recv(4096)
        if not chunk:
            return data
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            while len(body) < int(value):
                body += conn.recv(4096)
    return head + b"\r\n\r\n" + body


def reply(text: str, body: bytes = b"", *, close: bool = True) -> Script:
    """Answers with a head (status line and headers, one per line) and a body."""

    def script(conn: socket.socket, request: bytes) -> None:
        head = text.strip().replace("\n", "\r\n")
        extra = "\r\nConnection: close" if close else ""
        conn.sendall(f"HTTP/1.1 {head}{extra}\r\n\r\n".encode() + body)

    return script


def ok(body: bytes, *, close: bool = True) -> Script:
    return reply(f"200 OK\nContent-Length: {len(body)}", body, close=close)


@contextmanager
def serving(
    *scripts: Script, keep_alive: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[RawServer]:
    """Serves until the block ends; one connection at a time, several requests on it with `keep_alive`."""
    server = RawServer(list(scripts))
    listener = socket.create_server(("127.0.0.1", 0))
    server.port = listener.getsockname()[1]
    ended = threading.Event()

    def one(conn: socket.socket) -> None:
        with conn:
            conn.settimeout(WAIT_S)
            while True:
                request = read_request(conn)
                if not request:
                    return
                server.requests.append(request)
                script = server.scripts.pop(0) if len(server.scripts) > 1 else server.scripts[0]
                script(conn, request)
                if not keep_alive:
                    return

    def serve() -> None:
        while not ended.is_set():
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            try:
                one(conn if tls is None else tls.wrap_socket(conn, server_side=True))
            except OSError as problem:
                server.requests.append(repr(problem).encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(WAIT_S)
        assert not thread.is_alive(), "the server's script hangs"
