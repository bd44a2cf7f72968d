"""HTTP against servers that stall, drip, lie and vanish."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.agent.fakes import FakeClock, FakeRandom, config_for
from tests.unit.agent.sockets import RawServer, Script, ok, reply, serving
from twinlock.agent.address import check_url, is_loopback
from twinlock.agent.api import DeviceApi
from twinlock.agent.clock import SystemClock
from twinlock.agent.config import NetworkConfig
from twinlock.agent.http import HttpNetwork, Watch, read_all
from twinlock.agent.ports import Request
from twinlock.core import protocol
from twinlock.core.errors import TwinlockError

BOUNDS = NetworkConfig(
    connect_timeout_s=15, stall_timeout_s=15, retries=2, backoff_s_min=0.01, backoff_s_max=0.02
)
IMPATIENT = msgspec.structs.replace(
    BOUNDS, stall_timeout_s=0.3, answer_timeout_s=0.6, rate_bytes_s_min=1000, rate_window_s=0.5
)


def network(bounds: NetworkConfig = BOUNDS) -> HttpNetwork:
    return HttpNetwork(SystemClock(), bounds)


def get(server: RawServer, net: HttpNetwork | None = None, size_bytes_max: int = 1 << 20) -> bytes:
    response = (net or network()).open(Request("GET", f"{server.url}/x?y=1"))
    try:
        return read_all(response, size_bytes_max, "it")
    finally:
        response.close()


def code_of(script: Script, bounds: NetworkConfig = BOUNDS) -> str:
    with serving(script) as server, pytest.raises(TwinlockError) as caught:
        get(server, network(bounds))
    return caught.value.code


def until_closed(conn: socket.socket) -> None:
    """Waits for the other side to give up."""
    try:
        while conn.recv(4096):
            continue
    except OSError:
        return


def test_a_body_comes_whole() -> None:
    body = bytes(range(256)) * 2000
    with serving(ok(body)) as server:
        assert get(server) == body
    request = server.requests[0].decode()
    assert request.startswith("GET /x?y=1 HTTP/1.1\r\n")
    assert "accept-encoding: identity" in request
    assert "user-agent: twinlock-agent/" in request


def test_a_chunked_body_comes_whole() -> None:
    text = "200 OK\nTransfer-Encoding: chunked"
    with serving(reply(text, b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")) as server:
        assert get(server) == b"hello world"


def test_a_connection_serves_several_requests() -> None:
    with serving(ok(b"one", close=False), ok(b"two", close=False), keep_alive=True) as server:
        net = network()
        assert (get(server, net), get(server, net)) == (b"one", b"two")
        net.done(keep=False)


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew() -> None:
    with serving(ok(b"one", close=False), ok(b"two", close=False)) as server:
        net = network()
        assert get(server, net) == b"one"
        assert get(server, net) == b"two"
        net.done(keep=False)


def test_a_body_that_was_not_read_is_not_taken_for_the_next_answer() -> None:
    with serving(ok(b"x" * 1000, close=False), ok(b"two", close=False)) as server:
        net = network()
        response = net.open(Request("GET", server.url))
        response.read_into(memoryview(bytearray(10)))
        response.close()
        assert get(server, net) == b"two"
        net.done(keep=False)


def test_what_came_before_a_cut_is_delivered() -> None:
    def cut(conn: socket.socket, request: bytes) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"y" * 60)

    with serving(cut) as server:
        response = network().open(Request("GET", server.url))
        buffer = memoryview(bytearray(1000))
        came = response.read_into(buffer)
        while came < 60:
            came += response.read_into(buffer[came:])
        with pytest.raises(TwinlockError) as caught:
            response.read_into(buffer[came:])
        response.close()
    assert caught.value.code == "connection-lost"
    assert came == 60


def test_no_server_is_unreachable() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(TwinlockError) as caught:
        network().open(Request("GET", f"http://127.0.0.1:{port}/"))
    assert caught.value.code == "server-unreachable"


def test_silence_is_a_stall() -> None:
    assert code_of(lambda conn, request: until_closed(conn), IMPATIENT) == "transfer-stalled"


def test_a_stall_within_the_body_is_a_stall() -> None:
    def script(conn: socket.socket, request: bytes) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        until_closed(conn)

    assert code_of(script, IMPATIENT) == "transfer-stalled"


def drip(conn: socket.socket, data: bytes, step_s: float) -> None:
    """One byte at a time, each well within the stall's bound."""
    gone = threading.Event()
    try:
        for byte in data:
            conn.sendall(bytes([byte]))
            gone.wait(step_s)
    except OSError:
        return


def test_a_head_that_drips_is_bounded_in_time() -> None:
    started = time.monotonic()
    head = b"HTTP/1.1 200 OK\r\nX: " + b"a" * 4000
    assert code_of(lambda conn, request: drip(conn, head, 0.02), IMPATIENT) == "transfer-stalled"
    assert time.monotonic() - started < 15


def test_a_body_that_drips_is_too_slow() -> None:
    def script(conn: socket.socket, request: bytes) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        drip(conn, b"a" * 4000, 0.02)

    assert code_of(script, IMPATIENT) == "transfer-stalled"


class OneByte:
    """A socket that gives a byte at a time."""

    def settimeout(self, wait_s: float) -> None:
        assert wait_s > 0

    def recv_into(self, buffer: memoryview) -> int:
        buffer[:1] = b"x"
        return 1


class Ticking(FakeClock):
    """Each look at the clock takes a tenth of a second."""

    def monotonic_s(self) -> float:
        self.passed_s += 0.1
        return self.passed_s


@pytest.mark.parametrize(("rate", "slow"), [(1000, True), (11, True), (9, False), (0, False)])
def test_the_rate_counts_over_every_window(rate: int, slow: bool) -> None:
    """Ten bytes a second."""
    watch = Watch(Ticking(), msgspec.structs.replace(BOUNDS, rate_bytes_s_min=rate, rate_window_s=1.0))
    watch.begin_body()
    buffer = memoryview(bytearray(8))
    for _ in range(9):  # the first window is not over yet
        watch.recv(OneByte(), buffer)  # type: ignore[arg-type]
    codes = set()
    for _ in range(90):
        try:
            watch.recv(OneByte(), buffer)  # type: ignore[arg-type]
        except TwinlockError as problem:
            codes.add(problem.code)
    assert codes == ({"transfer-stalled"} if slow else set())


def test_an_endless_body_ends_at_its_bound() -> None:
    def script(conn: socket.socket, request: bytes) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                conn.sendall(b"z" * 65536)
        except OSError:
            return

    assert code_of(script) == "transfer-oversized"


@pytest.mark.parametrize(
    "head",
    [
        "200 OK\nContent-Length: 3\nContent-Length: 4",
        "200 OK\nContent-Length: -3",
        "200 OK\nContent-Length: 3x",
        "200 OK\nContent-Length: 3\nTransfer-Encoding: chunked",
        "200 OK\nContent-Length: 3\nContent-Encoding: gzip",
        "2xx",
        "200 OK\n" + "\n".join(f"X{number}: 1" for number in range(200)),
        "200 OK\nX: " + "y" * 70_000,
    ],
)
def test_ambiguous_or_broken_answers_are_refused(head: str) -> None:
    assert code_of(reply(head, b"abc")) == "answer-malformed"


def test_bytes_that_are_no_http_are_refused() -> None:
    code = code_of(lambda conn, request: conn.sendall(b"SSH-2.0-OpenSSH\r\n\r\n"))
    assert code == "answer-malformed"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "http://127.0.0.1.example.com/",
        "http://10.0.2.2:8000/",
        "http://127.1/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "https:///x",
        "https://user:secret@example.com/",
        "https://example.com:99999/",
        "https://example.com/a b",
        "https://example.com/\r\nX: y",
        "https://ex\u00e4mple.com/",
        "https://example.com/" + "a" * 5000,
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        check_url(url)
    assert caught.value.code == "config-invalid"
    assert len(caught.value.what) < 200


def test_no_request_leaves_for_an_address_that_is_refused() -> None:
    with pytest.raises(TwinlockError) as caught:
        network().open(Request("GET", "http://10.0.2.2:1/"))
    assert caught.value.code == "config-invalid"


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1"))
    assert not any(is_loopback(host) for host in ("127.1", "128.0.0.1", "::2", "localhost.example", "0"))
    check_url("https://example.com:8443/path?x=1")
    check_url("http://[::1]:80/")


def certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for `name` that vouches for itself, as a file and as a server's context."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / f"{name}.key"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, private)
    return path, context


@pytest.mark.parametrize(
    ("name", "trusted", "works"),
    [("localhost", True, True), ("localhost", False, False), ("elsewhere.example", True, False)],
)
def test_https_needs_the_right_certificate(tmp_path: Path, name: str, trusted: bool, works: bool) -> None:
    path, context = certificate(tmp_path, name)
    bounds = msgspec.structs.replace(BOUNDS, ca_file=path) if trusted else BOUNDS
    with serving(ok(b"hello"), tls=context) as server:
        url = f"https://localhost:{server.port}/"
        net = network(bounds)
        if works:
            response = net.open(Request("GET", url))
            assert read_all(response, 100, "it") == b"hello"
            response.close()
        else:
            with pytest.raises(TwinlockError) as caught:
                net.open(Request("GET", url))
            assert caught.value.code == "server-unreachable"


def test_plain_bytes_are_no_tls() -> None:
    hasty = msgspec.structs.replace(BOUNDS, connect_timeout_s=0.5)
    with serving(reply("200 OK")) as server, pytest.raises(TwinlockError) as caught:
        network(hasty).open(Request("GET", f"https://127.0.0.1:{server.port}/"))
    assert caught.value.code == "server-unreachable"


# --- messages


def api(server: RawServer) -> DeviceApi:
    return DeviceApi(network(), SystemClock(), FakeRandom(), BOUNDS, server.url + "/")


def challenge(server: RawServer) -> protocol.ChallengeAnswer:
    return api(server).call(
        "challenge", protocol.ChallengeRequest(device_id="d"), protocol.ChallengeAnswer, "secret"
    )


def test_a_message_and_its_answer() -> None:
    with serving(ok(b'{"challenge":"c","expires_s":60}')) as server:
        assert challenge(server).challenge == "c"
    request = server.requests[0].decode()
    assert request.startswith("POST /device/v1/challenge HTTP/1.1")
    assert "authorization: Bearer secret" in request
    assert request.endswith('{"device_id":"d"}')


ANSWER = b'{"challenge":"c","expires_s":60}'
BUSY = reply("503 Busy\nContent-Length: 0\nRetry-After: 0")


def failing(conn: socket.socket, request: bytes) -> None:
    conn.close()


def test_it_is_tried_again_when_the_link_or_the_server_fails() -> None:
    with serving(BUSY, failing, ok(ANSWER)) as server:
        assert challenge(server).challenge == "c"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (BUSY, "server-busy"),
        (reply("503 Busy\nContent-Length: 0\nRetry-After: 86400"), "server-busy"),
        (reply("302 Found\nLocation: http://evil.example/\nContent-Length: 0"), "redirect-refused"),
        (reply("500 Oops\nContent-Length: 2", b"{}"), "server-error"),
        (reply("404 No\nContent-Length: 4", b"oops"), "answer-malformed"),
        (ok(b'{"challenge":"c","expires_s":60,"unknown":1}'), "answer-malformed"),
        (ok(b"[" * 100_000), "transfer-oversized"),
        (ok(b"[" * 60_000), "answer-malformed"),
        (
            reply(
                "403 No\nContent-Length: 59", b'{"error":{"code":"enrolment-pending","what":"not yet now"}}'
            ),
            "enrolment-pending",
        ),
        (
            reply(
                "400 No\nContent-Length: 46", b'{"error":{"code":"made-up","what":"not known"}}'[:46] + b""
            ),
            "answer-malformed",
        ),
        (
            reply("400 No\nContent-Length: 47", b'{"error":{"code":"made-up","what":"not known"}}'),
            "server-error",
        ),
    ],
)
def test_failures_have_their_code(script: Script, code: str) -> None:
    with serving(script) as server, pytest.raises(TwinlockError) as caught:
        challenge(server)
    assert caught.value.code == code


def test_a_long_retry_after_ends_the_run_at_once() -> None:
    script = reply("503 Busy\nContent-Length: 0\nRetry-After: 86400")
    with serving(script) as server, pytest.raises(TwinlockError):
        challenge(server)
    assert len(server.requests) == 1


def test_the_configuration_has_these_bounds() -> None:
    assert config_for().network.retries == 3
