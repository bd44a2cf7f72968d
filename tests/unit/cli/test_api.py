"""The operator API's client: every failure has a code, nothing is unbounded, the token goes nowhere else."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.cli import operator_server as fake
from tests.unit.cli.operator_server import TOKEN, Fault, OperatorServer
from twinlock.cli import api
from twinlock.cli.api import Api, check_address, connect
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB


def refusal(step: Callable[[], object]) -> TwinlockError:
    with pytest.raises(TwinlockError) as caught:
        step()
    assert TOKEN not in f"{caught.value.what}{caught.value.hint}"
    return caught.value


@pytest.fixture
def server() -> Iterator[OperatorServer]:
    with OperatorServer().running() as running:
        yield running


def client(server: OperatorServer, **waits: float) -> Api:
    return Api(server.address, TOKEN, **waits)  # type: ignore[arg-type]


def test_answers_are_objects_with_named_fields(server: OperatorServer) -> None:
    answer = client(server).get("/health")
    assert answer == {"status": "ok", "version": "test"}
    assert refusal(lambda: answer["devices"]).code == "answer-malformed"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (fake.busy, "server-busy"),
        (fake.broken, "server-error"),
        (fake.hang_up, "connection-lost"),
        (fake.half_an_answer, "connection-lost"),
        (fake.not_json, "answer-malformed"),
        (fake.a_list, "answer-malformed"),
        (fake.deep, "answer-malformed"),
        (fake.elsewhere, "redirect-refused"),
        (fake.not_found_page, "answer-malformed"),
        (fake.full, "disk-full"),
        (fake.of_tomorrow, "server-error"),
    ],
)
def test_every_failure_has_a_code(server: OperatorServer, fault: Fault, code: str) -> None:
    server.fail("GET", fault)
    server.fail("POST", fault)
    one = client(server)
    assert refusal(lambda: one.get("/releases")).code == code
    assert refusal(lambda: one.post("/metadata", {})).code == code
    assert one.get("/releases") == {"releases": []}  # the next request is not disturbed


def test_the_servers_own_words_reach_the_user(server: OperatorServer) -> None:
    server.fail("GET", fake.full)
    problem = refusal(lambda: client(server).get("/releases"))
    assert (problem.what, problem.hint) == ("the server's disk is full", "do better")
    server.fail("GET", fake.of_tomorrow)
    assert "something new [code-of-tomorrow]" in refusal(lambda: client(server).get("/releases")).what


def test_nobody_listens_and_no_such_host() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    problem = refusal(lambda: Api(f"http://127.0.0.1:{port}", TOKEN).get("/health"))
    assert (problem.code, "refused" in problem.what) == ("server-unreachable", True)
    assert "0x" not in problem.what  # no object addresses
    problem = refusal(lambda: Api("https://host.invalid", TOKEN).get("/health"))
    assert problem.code == "server-unreachable"


def test_silence_and_a_drip_end(server: OperatorServer) -> None:
    def silent(handler: fake.Handler) -> None:
        handler.rfile.read(1)  # until the client gives up

    def drip(handler: fake.Handler) -> None:
        handler.answer(200, b"", Content_Length="100000")
        try:
            while True:
                handler.wfile.write(b" ")
                handler.wfile.flush()
        except OSError:
            handler.close_connection = True

    server.fail("GET", silent)
    assert refusal(lambda: client(server, answer_wait_s=0.1).get("/health")).code == "transfer-stalled"
    server.fail("GET", drip)
    assert refusal(lambda: client(server, total_s=0.0).get("/health")).code == "transfer-stalled"


def test_an_endless_answer_is_cut_off(server: OperatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "ANSWER_SIZE_BYTES_MAX", MIB)
    server.fail("GET", lambda handler: handler.answer(200, b"{}".ljust(MIB)))
    assert client(server).get("/releases") == {}
    server.fail("GET", lambda handler: handler.answer(200, b"{}".ljust(MIB + 1)))
    problem = refusal(lambda: client(server).get("/releases"))
    assert (problem.code, str(MIB) in problem.what) == ("answer-malformed", True)


def test_a_server_that_does_not_say_how_large_is_no_twinlock_server(server: OperatorServer) -> None:
    server.fail("HEAD", lambda handler: handler.answer(200, Content_Length="many"))
    assert refusal(lambda: client(server).payload_size_bytes("0" * 64)).code == "answer-malformed"


def test_a_compressed_answer_is_not_unpacked(server: OperatorServer) -> None:
    server.fail("GET", lambda handler: handler.answer(200, b"\x1f\x8b" + bytes(100), Content_Encoding="gzip"))
    assert refusal(lambda: client(server).get("/releases")).code == "answer-malformed"


def test_a_payload_is_asked_for_sent_and_known(server: OperatorServer, rng: random.Random) -> None:
    data = rng.randbytes(3 * MIB + 17)
    sha256 = hashlib.sha256(data).hexdigest()
    told: list[int] = []
    one = client(server)
    assert one.payload_size_bytes(sha256) is None
    assert one.put_payload(sha256, io.BytesIO(data), len(data), told.append) is True
    assert server.payloads == {sha256: data}
    assert sum(told) == len(data)
    assert max(told) <= api.CHUNK_SIZE_BYTES
    assert one.payload_size_bytes(sha256) == len(data)
    assert one.put_payload(sha256, io.BytesIO(data), len(data), told.append) is False
    other = "0" * 64
    problem = refusal(lambda: one.put_payload(other, io.BytesIO(data), len(data), told.append))
    assert problem.code == "payload-hash"


def test_a_disk_that_fails_is_not_the_networks_fault(server: OperatorServer) -> None:
    class Bad(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    problem = refusal(lambda: client(server).put_payload("0" * 64, Bad(), 10, lambda size_bytes: None))
    assert problem.code == "io-error"


def test_an_upload_that_breaks_off_is_a_transport_error(server: OperatorServer, rng: random.Random) -> None:
    data = rng.randbytes(8 * MIB)
    server.fail("PUT", fake.hang_up_after_a_part)
    problem = refusal(
        lambda: client(server).put_payload("0" * 64, io.BytesIO(data), len(data), lambda size_bytes: None)
    )
    assert problem.code == "connection-lost"


def test_a_wrong_token_is_named_for_every_method(server: OperatorServer) -> None:
    one = Api(server.address, "wrong-token")
    assert refusal(lambda: one.get("/releases")).code == "unauthorised"
    assert refusal(lambda: one.payload_size_bytes("0" * 64)).code == "unauthorised"


def test_the_token_is_in_the_header_and_nowhere_else(
    server: OperatorServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        one = client(server)
        one.get("/releases", {"after": "x y&z", "limit": 3, "status": None})
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert server.asked == ["GET /api/v1/releases?after=x+y%26z&limit=3"]
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(one)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "updates.example.org",
        "ftp://updates.example.org",
        "https://",
        "https://h:99999",
        "https://h:0",
        "https://h:x",
        "https://user:pass@h",
        "https://h/?token=1",
        "https://h/#x",
        "http://updates.example.org",
        "http://10.0.0.1:8000",
        "http://localhost.example.org",
        "https://[::1",
    ],
)
def test_an_address_that_is_no_server_is_refused(address: str) -> None:
    assert refusal(lambda: check_address(address)).code == "input-invalid"


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8000/", "http://localhost", "http://[::1]:80", "https://updates.example.org/x"],
)
def test_a_server_is_taken(address: str) -> None:
    assert check_address(address) == address.rstrip("/")


def test_a_token_comes_from_the_option_or_a_file(tmp_path: Path, server: OperatorServer) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert connect(server.address, None, tmp_path / "token").get("/releases") == {"releases": []}
    assert connect(server.address, TOKEN, tmp_path / "none").get("/releases") == {"releases": []}
    for token in ("", "two words", "newline\nx", "umlaut-ä", "\x00"):
        assert refusal(lambda token=token: connect(server.address, token)).code == "input-invalid"  # type: ignore[misc]
    assert refusal(lambda: connect(server.address, None)).code == "input-invalid"
    assert refusal(lambda: connect(server.address, None, tmp_path / "none")).code == "input-missing"
    (tmp_path / "token").write_bytes(b"x" * 5000)
    assert refusal(lambda: connect(server.address, None, tmp_path / "token")).code == "input-too-large"


def test_an_option_counts_more_than_a_variable(
    tmp_path: Path, server: OperatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("of-the-file")
    file = tmp_path / "token"
    for variables, token, token_file, expected in [
        ({"TOKEN": "of-the-variable"}, "of-the-variable", file, "of-the-file"),
        ({"TOKEN_FILE": str(file)}, "of-the-option", file, "of-the-option"),
        ({"TOKEN": "v", "TOKEN_FILE": str(file)}, "v", file, "v"),
        ({"TOKEN": "v"}, "of-the-option", file, "of-the-option"),
    ]:
        for name in ("TOKEN", "TOKEN_FILE"):
            monkeypatch.delenv(f"TWINLOCK_{name}", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(f"TWINLOCK_{name}", value)
        server.tokens.clear()
        connect(server.address, token, token_file).get("/health")
        assert server.tokens == {f"Bearer {expected}"}


def test_a_token_may_come_by_a_pipe(tmp_path: Path, server: OperatorServer) -> None:
    """As a shell's process substitution hands it in."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("of-the-pipe\n",))
    writer.start()
    try:
        connect(server.address, None, tmp_path / "pipe").get("/health")
    finally:
        writer.join()
    assert server.tokens == {"Bearer of-the-pipe"}


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_certificate_file_that_is_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    problem = refusal(lambda: connect("https://127.0.0.1:1", TOKEN, None, tmp_path / "ca.pem"))
    assert problem.code == ("input-missing" if content is None else "input-wrong-type")
    assert "ca.pem" in problem.what
