"""The fault proxy: bytes pass unchanged, faults come at their byte, everything is counted."""

from __future__ import annotations

import http.client
import http.server
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from twinlock.core.errors import TwinlockError
from twinlock.lab import tls
from twinlock.lab.proxy import Cut, FaultProxy, Flip, Stall, random_cuts

PAYLOAD = random.Random(1).randbytes(300_000)
PATH = "/device/v1/payloads/abc"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers ranges of PAYLOAD, echoes bodies, and knows a chunked answer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"hello ", b"world"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\nX-Trailer: 1\r\n\r\n")
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        body = PAYLOAD[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "99")
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Stays quiet."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # broken links are what is tested
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def connect(proxy: FaultProxy, timeout_s: float = 10) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", int(proxy.url.rpartition(":")[2]), timeout=timeout_s)


def ask(link: http.client.HTTPConnection) -> http.client.HTTPResponse:
    link.request("GET", PATH)
    return link.getresponse()


def fetch(proxy: FaultProxy, path: str = PATH, start: int = 0, timeout_s: float = 10) -> bytes:
    """The body of one answer, as far as it came."""
    link = connect(proxy, timeout_s)
    try:
        link.request("GET", path, headers={"Range": f"bytes={start}-"})
        answer = link.getresponse()
        body = b""
        try:
            while piece := answer.read1(65536):
                body += piece
        except (http.client.IncompleteRead, ConnectionError, TimeoutError):
            return body
        return body
    finally:
        link.close()


def test_without_faults_everything_passes_and_is_counted(upstream: str) -> None:
    with FaultProxy(upstream) as proxy:
        assert fetch(proxy) == PAYLOAD
        link = connect(proxy)
        for _ in range(2):  # one connection, several exchanges
            link.request("POST", "/echo", body=b"x" * 1000)
            assert link.getresponse().read() == b"x" * 1000
        link.request("HEAD", "/echo")
        assert link.getresponse().read() == b""
        link.request("GET", "/chunked")
        assert link.getresponse().read() == b"hello world"
        link.request("GET", PATH, headers={"Range": "bytes=299000-"})
        assert link.getresponse().read() == PAYLOAD[299_000:]
        link.close()
        counts = proxy.counts()
    assert counts.payload_bytes == len(PAYLOAD) + 1000
    assert counts.by_path[PATH] == len(PAYLOAD) + 1000
    assert counts.by_path["/echo"] == 2000
    assert counts.cuts == 0
    assert [(each.method, each.status, each.request_bytes) for each in counts.exchanges] == [
        ("GET", 200, 0),
        ("POST", 200, 1000),
        ("POST", 200, 1000),
        ("HEAD", 200, 0),
        ("GET", 200, 0),
        ("GET", 206, 0),
    ]
    assert counts.to_server_bytes > 2000
    assert counts.to_client_bytes > len(PAYLOAD) + 3000


def test_clients_can_speak_https_to_it(upstream: str, tmp_path: Path) -> None:
    certificates = tls.make(tmp_path / "tls", ("127.0.0.1",))
    trusting = ssl.create_default_context(cafile=str(certificates.ca_file))
    with FaultProxy(upstream, tls=certificates.server) as proxy:
        assert proxy.url == f"https://127.0.0.1:{proxy.port}"
        connection = http.client.HTTPSConnection("127.0.0.1", proxy.port, context=trusting, timeout=20)
        connection.request("GET", PATH)
        assert connection.getresponse().read() == PAYLOAD
        connection.close()
        stranger = http.client.HTTPSConnection("127.0.0.1", proxy.port, timeout=20)
        with pytest.raises(ssl.SSLCertVerificationError):
            stranger.request("GET", PATH)


def test_cuts_come_at_their_bytes_over_all_connections(upstream: str) -> None:
    with FaultProxy(upstream, [Cut(200_000), Cut(70_000)]) as proxy:
        got = fetch(proxy)
        assert got == PAYLOAD[:70_000]
        got += fetch(proxy, start=len(got))
        assert got == PAYLOAD[:200_000]
        got += fetch(proxy, start=len(got))
        assert got == PAYLOAD
        assert proxy.counts().cuts == 2
        assert proxy.counts().payload_bytes == len(PAYLOAD)


def test_a_reset_loses_the_connection(upstream: str) -> None:
    with FaultProxy(upstream, [Cut(100_000, reset=True)]) as proxy:
        assert len(fetch(proxy)) <= 100_000
        assert fetch(proxy) == PAYLOAD


def test_a_link_can_stay_away_after_a_cut(upstream: str) -> None:
    with FaultProxy(upstream, [Cut(70_000, away=True)]) as proxy:
        assert fetch(proxy) == PAYLOAD[:70_000]
        link = connect(proxy)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(link)
        link.close()
        proxy.down = False
        assert fetch(proxy) == PAYLOAD


def test_a_cut_leaves_other_paths_alone(upstream: str) -> None:
    with FaultProxy(upstream, [Cut(10)]) as proxy:
        link = connect(proxy)
        link.request("POST", "/echo", body=b"y" * 5000)
        assert link.getresponse().read() == b"y" * 5000
        link.close()


def test_one_bit_of_one_byte_is_flipped(upstream: str) -> None:
    with FaultProxy(upstream, [Flip(65_536, bit=3), Flip(0)]) as proxy:
        got = fetch(proxy)
    assert [at for at in range(len(PAYLOAD)) if got[at] != PAYLOAD[at]] == [0, 65_536]
    assert got[65_536] == PAYLOAD[65_536] ^ 8


def test_a_stall_for_ever_gives_nothing_more(upstream: str) -> None:
    with FaultProxy(upstream, [Stall(50_000)]) as proxy:
        assert fetch(proxy, timeout_s=0.3) == PAYLOAD[:50_000]
        assert fetch(proxy) == PAYLOAD


def test_a_stall_ends_after_its_time(upstream: str) -> None:
    with FaultProxy(upstream, [Stall(50_000, wait_s=0.3)]) as proxy:
        began = time.monotonic()
        assert fetch(proxy) == PAYLOAD
        assert time.monotonic() - began >= 0.3


def test_a_throttled_link_takes_its_time(upstream: str) -> None:
    with FaultProxy(upstream, rate_bytes_s=1_000_000) as proxy:
        began = time.monotonic()
        assert fetch(proxy) == PAYLOAD
        assert time.monotonic() - began >= 0.25


def test_a_drip_is_one_byte_at_a_time(upstream: str) -> None:
    with FaultProxy(upstream, rate_bytes_s=200, drip=True) as proxy:
        began = time.monotonic()
        got = fetch(proxy, start=len(PAYLOAD) - 40)
        assert got == PAYLOAD[-40:]
        assert time.monotonic() - began >= 0.15


def test_a_server_that_is_down_refuses_and_comes_back(upstream: str) -> None:
    with FaultProxy(upstream) as proxy:
        proxy.down = True
        link = connect(proxy)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(link)
        link.close()
        proxy.down = False
        assert fetch(proxy) == PAYLOAD


def test_an_upstream_that_is_gone_looks_like_one() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with FaultProxy(f"http://127.0.0.1:{port}") as proxy:
        link = connect(proxy)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(link)
        link.close()


def test_a_fault_can_be_added_late_and_a_past_place_is_now(upstream: str) -> None:
    with FaultProxy(upstream) as proxy:
        assert fetch(proxy) == PAYLOAD
        proxy.add(Cut(1000))
        assert fetch(proxy) == b""
        assert fetch(proxy) == PAYLOAD


def test_stop_ends_open_connections_and_frees_the_port(upstream: str) -> None:
    proxy = FaultProxy(upstream, [Stall(1000)])
    proxy.start()
    port = int(proxy.url.rpartition(":")[2])
    link = connect(proxy)
    link.request("GET", PATH)
    answer = link.getresponse()
    assert answer.read(1000) == PAYLOAD[:1000]
    proxy.stop()
    assert "fault-proxy" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        answer.read()
    answer.close()
    link.close()
    with FaultProxy(upstream, port=port) as again:
        assert again.url == proxy.url


def test_a_port_in_use_is_an_error(upstream: str) -> None:
    with FaultProxy(upstream) as proxy:
        second = FaultProxy(upstream, port=int(proxy.url.rpartition(":")[2]))
        with pytest.raises(TwinlockError) as refused:
            second.start()
        assert refused.value.code == "io-error"


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "http://127.0.0.1", "127.0.0.1:80", ""])
def test_only_plain_http_with_a_port_can_be_behind_it(url: str) -> None:
    with pytest.raises(TwinlockError) as refused:
        FaultProxy(url)
    assert refused.value.code == "input-invalid"


def test_random_cuts_repeat_from_their_seed() -> None:
    first = random_cuts(random.Random(7), 5, 1_000_000)
    assert first == random_cuts(random.Random(7), 5, 1_000_000)
    assert first != random_cuts(random.Random(8), 5, 1_000_000)
    assert len({cut.after_bytes for cut in first}) == 5


@pytest.mark.parametrize(
    "junk", [b"junk\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"z" * 70_000]
)
def test_what_is_not_http_ends_the_connection(upstream: str, junk: bytes) -> None:
    with (
        FaultProxy(upstream) as proxy,
        socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])), 10) as raw,
    ):
        raw.sendall(junk)
        try:
            assert raw.recv(10) == b""
        except ConnectionError:
            assert proxy.counts().exchanges == ()
