"""The server process: its start, its end, its bounds on raw connections, and what survives a SIGKILL."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server.conftest import MadeServer
from tests.e2e.server.process import ServerProcess, twinlock
from tests.unit.server.rig import HARDWARE, list_release, make_release, offered, text
from twinlock.core.device_key import (
    DeviceKey,
    enrolment_bytes,
    evidence_bytes,
    generate,
    report_bytes,
    session_bytes,
)
from twinlock.core.protocol import (
    ChallengeAnswer,
    ChallengeRequest,
    EnrolRequest,
    Evidence,
    EvidenceAnswer,
    PollAnswer,
    PollRequest,
    Report,
    ReportAnswer,
    ReportBatch,
    SessionAnswer,
    SessionRequest,
    SignedEvidence,
    SignedReport,
    decode_answer,
    encode,
)
from twinlock.core.zstd import compress


class Client:
    """The device's and the operator's calls over a real socket."""

    def __init__(self, server: ServerProcess, token: str) -> None:
        self.server = server
        self.operator = {"Authorization": f"Bearer {token}"}
        self.key = DeviceKey(generate())
        self.session: dict[str, str] = {}

    def post(self, path: str, message: Any, kind: Any) -> Any:
        answer = self.server.request("POST", f"/device/v1{path}", body=encode(message), headers=self.session)
        assert answer.status == 200, answer.data
        return decode_answer(answer.data, kind)

    def admin(self, method: str, path: str, **options: Any) -> Any:
        answer = self.server.request(method, f"/api/v1{path}", headers=self.operator, **options)
        assert answer.status < 300, answer.data
        return answer.json()

    def enrol(self, name: str = "dev-1") -> None:
        proof = self.key.sign(enrolment_bytes(name, HARDWARE, self.key.public_pem))
        request = EnrolRequest(device_id=name, hardware=HARDWARE, public_key=self.key.public_pem, proof=proof)
        answer = self.server.request("POST", "/device/v1/enrol", body=encode(request))
        assert answer.json() == {"status": "pending"}
        self.admin("POST", f"/devices/{name}/accept")
        challenge = self.post("/challenge", ChallengeRequest(device_id=name), ChallengeAnswer).challenge
        signature = self.key.sign(session_bytes(name, challenge))
        opened = self.post(
            "/session",
            SessionRequest(device_id=name, challenge=challenge, signature=signature),
            SessionAnswer,
        )
        self.session = {"Authorization": f"Bearer {opened.token}"}

    def poll(self, version: str = "1.0") -> PollAnswer:
        request = PollRequest(hardware=HARDWARE, slot="a", product="demo", version=version)
        answer: PollAnswer = self.post("/poll", request, PollAnswer)
        return answer

    def report(self, seq: int, state: Any, assignment_id: str) -> tuple[int, ...]:
        report = Report(device_id="dev-1", seq=seq, nonce="n", state=state, assignment_id=assignment_id)
        body = encode(report)
        signed = SignedReport(body=body, signature=self.key.sign(report_bytes(body)))
        durable: tuple[int, ...] = self.post("/reports", ReportBatch(reports=(signed,)), ReportAnswer).durable
        return durable

    def leave(self, text: str) -> str:
        """Sends a piece of evidence; its name."""
        body = encode(Evidence(device_id="dev-1", kind="pstore", data=compress(text.encode())))
        signed = SignedEvidence(body=body, signature=self.key.sign(evidence_bytes(body)))
        name: str = self.post("/evidence", signed, EvidenceAnswer).durable
        return name

    def publish(self, made: MadeServer) -> Any:
        release = make_release("1.1")
        self.admin("PUT", f"/payloads/{release.sha256}", body=release.payload)
        list_release(made.repository, release)
        made.repository.publish("targets", "snapshot", "timestamp")
        body = {
            "metadata": offered(made.repository),
            "manifest": text(release.data),
            "payloads": [release.offer()],
        }
        self.admin("POST", "/releases", json=body)
        return release


@pytest.mark.usefixtures("measured")
def test_a_release_reaches_a_device_and_its_outcome_the_operator(made: MadeServer) -> None:
    running = ServerProcess(made.folder)
    client = Client(running, made.token)
    client.enrol()
    release = client.publish(made)
    rollout = client.admin("POST", "/rollouts", json={"product": "demo", "version": "1.1", "devices": "all"})
    assignment = client.poll().assignment
    assert assignment is not None
    sha256 = assignment.payloads[0].sha256.hex()
    path = f"/device/v1/payloads/{sha256}"
    first = running.request("GET", path, headers={**client.session, "Range": "bytes=0-99"})
    rest = running.request(
        "GET", path, headers={**client.session, "Range": "bytes=100-", "If-Range": first.headers["ETag"]}
    )
    assert (first.status, rest.status) == (206, 206)
    assert hashlib.sha256(first.data + rest.data).hexdigest() == sha256 == release.sha256
    assert client.report(1, "succeeded", assignment.id) == (1,)
    shown = client.admin("GET", f"/rollouts/{rollout['rollout_id']}")
    assert [one["state"] for one in shown["assignments"]] == ["succeeded"]
    code, log = running.stop()
    assert code == 0
    assert [line for line in log.splitlines() if " level=info " not in line] == []


def test_a_signal_ends_it_after_everything_is_written(made: MadeServer) -> None:
    server = ServerProcess(made.folder)
    client = Client(server, made.token)
    client.enrol()
    client.poll(version="1.7")
    assert server.stop(signal.SIGTERM)[0] == 0
    client.server = server = ServerProcess(made.folder)
    shown = client.admin("GET", "/devices/dev-1")
    assert (shown["running"]["version"], shown["last_seen"] is None) == ("1.7", False)
    assert server.stop(signal.SIGINT)[0] == 0


def test_what_was_acknowledged_survives_a_sigkill(made: MadeServer) -> None:
    server = ServerProcess(made.folder)
    client = Client(server, made.token)
    client.enrol()
    for seq in (1, 2, 3):
        assert client.report(seq, "idle", "") == (seq,)
    server.stop(signal.SIGKILL)
    client.server = server = ServerProcess(made.folder)
    kept = client.admin("GET", "/devices/dev-1/reports")["reports"]
    assert [one["seq"] for one in kept] == [3, 2, 1]
    server.stop()


def test_a_full_disk_refuses_an_upload_and_the_server_goes_on(made: MadeServer) -> None:
    """The process may write no file larger than 8 MiB: the kernel refuses the rest as a full disk would."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))

    server = ServerProcess(made.folder, prepare=limit)
    client = Client(server, made.token)
    data = os.urandom(9 << 20)
    answer = server.request(
        "PUT", f"/api/v1/payloads/{hashlib.sha256(data).hexdigest()}", body=data, headers=client.operator
    )
    assert (answer.status, answer.json()["error"]["code"]) == (507, "disk-full")
    assert list((made.folder / "tmp").iterdir()) == list((made.folder / "payloads").iterdir()) == []
    client.enrol()
    assert client.poll().assignment is None
    server.stop()


def test_an_upload_that_is_killed_leaves_nothing_after_the_next_start(made: MadeServer) -> None:
    server = ServerProcess(made.folder)
    head = (
        f"PUT /api/v1/payloads/{'0' * 64} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {made.token}\r\n"
        f"Content-Length: {64 << 20}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + bytes(4 << 20))
        deadline = time.monotonic() + 30
        while not any(path.stat().st_size for path in (made.folder / "tmp").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.stop(signal.SIGKILL)
    assert len(list((made.folder / "tmp").iterdir())) == 1
    again = ServerProcess(made.folder)
    assert list((made.folder / "tmp").iterdir()) == []
    again.stop()


def refusal(received: bytes) -> tuple[int, str]:
    """Status and error code of a raw answer."""
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_raw_requests_that_no_client_would_send(running: ServerProcess) -> None:
    for path in ("/repository/../secret.key", "/repository/metadata/../../secret.key", "//etc/passwd"):
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        assert refusal(running.send_raw(request)) == (404, "not-found"), path
    garbage = running.send_raw(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    assert garbage.startswith(b"HTTP/1.1 400 ")
    assert b"<html" not in garbage.lower()


def test_an_endless_head_is_cut_off(running: ServerProcess) -> None:
    """The kernel's buffers take some of it; the server takes no more than its bound, then ends it."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            connection.sendall(b"a" * (512 << 20))
    assert running.request("GET", "/api/v1/health").status == 200


def test_a_large_head_within_the_bound_is_served(running: ServerProcess) -> None:
    answer = running.request("GET", "/api/v1/health", headers={"X-Long": "a" * 16_384})
    assert answer.status == 200


def test_a_broken_body_harms_nobody(running: ServerProcess) -> None:
    head = b"POST /device/v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    running.send_raw(head, end=True)
    assert running.request("GET", "/api/v1/health").status == 200


def failed(*args: str) -> tuple[int, str]:
    """Exit code and error code of a command that fails, in one line and without a trace."""
    done = twinlock(*args)
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error["), line
    assert " -- hint: " in line
    return done.returncode, line[len("error[") :].partition("]")[0]


def test_a_start_that_cannot_be_says_why(made: MadeServer, running: ServerProcess, tmp_path: Path) -> None:
    assert failed("server", "run", str(tmp_path / "none")) == (2, "input-missing")
    port = str(running.port)
    assert failed("server", "run", str(made.folder), "--port", port) == (2, "input-invalid")


def test_a_database_that_is_damaged_says_so(made: MadeServer) -> None:
    (made.folder / "twinlock.db").write_bytes(b"not a database" * 1000)
    for suffix in ("-wal", "-shm"):
        (made.folder / f"twinlock.db{suffix}").unlink(missing_ok=True)
    assert failed("server", "run", str(made.folder), "--port", "0") == (6, "io-error")
