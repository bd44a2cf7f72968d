"""A small server that speaks the operator API's part for publishing, and fails on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "secret-token-0123456789"
Fault = Callable[["Handler"], None]


class OperatorServer:
    """What the server holds, what it was asked, and the faults to come, taken one for each request."""

    def __init__(self) -> None:
        self.payloads: dict[str, bytes] = {}
        self.releases: dict[str, dict[str, Any]] = {}
        self.metadata: dict[str, Any] | None = None
        self.fleet: list[dict[str, Any]] | None = None  # None: a server that does not know the call
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.faults: list[tuple[str, Fault]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"

    def _handler(self) -> type[Handler]:
        return type("BoundHandler", (Handler,), {"state": self})

    def fail(self, method: str, fault: Fault, times: int = 1) -> None:
        """The next `times` requests with this method end in `fault`."""
        self.faults += [(method, fault)] * times

    @contextmanager
    def running(self) -> Iterator[OperatorServer]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    state: OperatorServer
    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.state.asked.append(f"{self.command} {self.path}")

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        self.state.asked.append(f"{self.command} {self.path}: {format % args}")

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, what: str = "no") -> None:
        self.answer(status, {"error": {"code": code, "what": what, "hint": "do better"}})

    def _begin(self) -> bool:
        """False when a fault took the request."""
        for number, (method, fault) in enumerate(self.state.faults):
            if method == self.command:
                del self.state.faults[number]
                self.close_connection = True
                if method == "POST":  # a connection that is closed over unread bytes is reset: no answer
                    self.rfile.read(int(self.headers.get("Content-Length", "0")))
                fault(self)
                return False
        self.state.tokens.add(self.headers.get("Authorization", ""))
        if self.path == "/api/v1/health":
            self.answer(200, {"status": "ok", "version": "test"})
            return False
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "unauthorised")
            return False
        return True

    def do_HEAD(self) -> None:
        if self._begin():
            data = self.state.payloads.get(self.path.rpartition("/")[2])
            if data is None:
                self.answer(404)
            else:
                self.answer(200, Content_Length=str(len(data)))

    def do_PUT(self) -> None:
        if self._begin():
            sha256 = self.path.rpartition("/")[2]
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if hashlib.sha256(data).hexdigest() != sha256:
                self.refuse(400, "payload-hash")
                return
            known = sha256 in self.state.payloads
            self.state.payloads[sha256] = data
            self.answer(200 if known else 201, {"sha256": sha256})

    def do_GET(self) -> None:
        if self._begin():
            if self.path.split("?")[0] == "/api/v1/releases":
                self.answer(200, {"releases": list(self.state.releases.values())})
            elif self.path == "/api/v1/fleet/demo" and self.state.fleet is not None:
                self.answer(200, {"product": "demo", "images": self.state.fleet})
            elif self.path.removeprefix("/api/v1/releases/") in self.state.releases:
                self.answer(200, self.state.releases[self.path.removeprefix("/api/v1/releases/")])
            else:
                self.refuse(404, "not-found", f"{self.path} is not here")

    def do_POST(self) -> None:
        if self._begin():
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/v1/metadata":
                self.state.metadata = body
                self.answer(200)
                return
            made = json.loads(base64.b64decode(body["manifest"]))
            missing = [one for one in body["payloads"] if one["sha256"] not in self.state.payloads]
            if missing:
                self.refuse(422, "payload-unfit")
                return
            self.state.metadata = body["metadata"]
            row = {
                name: made[name] for name in ("product", "version", "counter", "hardware", "image_size_bytes")
            }
            self.state.releases[f"{made['product']}/{made['version']}"] = row
            self.answer(201, {"release": row})


# Faults


def busy(handler: Handler) -> None:
    handler.refuse(503, "server-busy")


def broken(handler: Handler) -> None:
    handler.answer(500, b"<html>oops</html>")


def hang_up(handler: Handler) -> None:
    handler.connection.close()


def hang_up_after_a_part(handler: Handler) -> None:
    handler.rfile.read(1000)
    handler.connection.close()


def half_an_answer(handler: Handler) -> None:
    handler.answer(200, b"{", Content_Length="1000")


def not_json(handler: Handler) -> None:
    handler.answer(200, b"<html>hello</html>")


def a_list(handler: Handler) -> None:
    handler.answer(200, [])


def nothing(handler: Handler) -> None:
    handler.answer(200, {})


def elsewhere(handler: Handler) -> None:
    handler.answer(307, Location="http://127.0.0.1:1/steal")


def deep(handler: Handler) -> None:
    handler.answer(200, b"[" * 100_000)


def not_found_page(handler: Handler) -> None:
    handler.answer(404, b"<html>no such page</html>")


def full(handler: Handler) -> None:
    handler.refuse(507, "disk-full", "the server's disk is full")


def of_tomorrow(handler: Handler) -> None:
    handler.refuse(409, "code-of-tomorrow", "something new")
