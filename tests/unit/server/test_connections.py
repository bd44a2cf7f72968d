"""Raw connections: what comes too slowly, never ends or is no HTTP is answered as JSON and cut off."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from tests.unit.server.rig import Server, Site
from twinlock.server import connections


@pytest.fixture
def site(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(connections, "REQUEST_WAIT_S", 0.2)
    with contextlib.closing(Site(server)) as made:
        yield made


def answer_to(site: Site, *parts: bytes) -> bytes:
    """Everything that comes back after these bytes, until the server ends the connection."""
    with socket.create_connection(site.listener.getsockname(), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    return received


def refusal(received: bytes) -> tuple[int, str]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "begun",
    [
        b"G",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"POST /device/v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
        b"POST /device/v1/session HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nt\r\n",
    ],
)
def test_a_request_that_does_not_come_whole_is_given_up(site: Site, begun: bytes) -> None:
    assert refusal(answer_to(site, begun)) == (408, "transfer-stalled")


@pytest.mark.parametrize("path", ["/device/v1/poll", "/api/v1/rollouts"])
def test_a_request_that_was_answered_before_its_body_came_gets_no_second_answer(
    site: Site, path: str
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
    received = answer_to(site, head)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert received.count(b"HTTP/1.1 ") == 1


def test_a_drip_does_not_help(site: Site) -> None:
    with socket.create_connection(site.listener.getsockname(), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Drip: ")
        connection.settimeout(0.02)
        received = b""
        for _ in range(1000):
            with contextlib.suppress(TimeoutError):
                received = connection.recv(65_536)
                break
            connection.send(b"a")
    assert refusal(received) == (408, "transfer-stalled")


def test_a_head_that_never_ends_is_refused(site: Site) -> None:
    """As many bytes as the bound and one more, so that nothing is left unread when the answer is sent."""
    begun = b"GET / HTTP/1.1\r\nX-Long: "
    received = answer_to(site, begun + b"a" * (connections.HEAD_SIZE_BYTES_MAX - len(begun) + 1))
    assert refusal(received) == (431, "request-too-large")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 no HTTP\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nA b: c\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_as_json(site: Site, data: bytes) -> None:
    assert refusal(answer_to(site, data)) == (400, "request-malformed")


def test_requests_one_after_the_other_are_each_given_their_time(site: Site) -> None:
    request = b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(site.listener.getsockname(), timeout=30) as connection:
        for _ in range(3):
            connection.sendall(request[:10])
            connection.sendall(request[10:])
            received = b""
            while not received.endswith(b"}"):
                received += connection.recv(65_536)
            assert received.startswith(b"HTTP/1.1 200 ")


def test_an_upload_may_take_longer(server: Server, site: Site) -> None:
    """Only its head has to come in time; pieces of the body with pauses between them are taken."""
    import hashlib
    import threading

    data = b"x" * 10
    sha256 = hashlib.sha256(data).hexdigest()
    head = (
        f"PUT /api/v1/payloads/{sha256} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {server.token}\r\nContent-Length: 10\r\n\r\n"
    ).encode()
    pause = threading.Event()
    with socket.create_connection(site.listener.getsockname(), timeout=30) as connection:
        connection.sendall(head + data[:4])
        pause.wait(3 * connections.REQUEST_WAIT_S)
        connection.sendall(data[4:])
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 201 ")
