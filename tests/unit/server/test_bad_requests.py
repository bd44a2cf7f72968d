"""Every endpoint and everything that can be wrong with a request: a code and a hint, never a trace."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.unit.server.rig import FakeDevice, Server, code_of
from twinlock.core import limits
from twinlock.core.device_key import DeviceKey, generate
from twinlock.server.device_api.calls import BATCH_SIZE_BYTES_MAX
from twinlock.server.operator_api.models import PUBLICATION_SIZE_BYTES_MAX

OPEN_CALLS = ["/device/v1/enrol", "/device/v1/challenge", "/device/v1/session"]
SESSION_CALLS = ["/device/v1/poll", "/device/v1/reports"]
OPERATOR_CALLS = [
    "/api/v1/releases",
    "/api/v1/metadata",
    "/api/v1/rollouts",
    "/api/v1/devices/preauthorise",
    "/api/v1/enrolment-tokens",
]
CALLS = OPEN_CALLS + SESSION_CALLS + OPERATOR_CALLS
BOUNDS = dict.fromkeys(CALLS, limits.MESSAGE_SIZE_BYTES_MAX)
BOUNDS |= dict.fromkeys(OPERATOR_CALLS, PUBLICATION_SIZE_BYTES_MAX)
BOUNDS["/device/v1/reports"] = BATCH_SIZE_BYTES_MAX


def send(server: Server, path: str, body: Any, **headers: str) -> httpx.Response:
    """POST with whatever the path wants as proof of identity."""
    bearer = server.token
    if path in SESSION_CALLS:
        if server.operator("GET", "/devices/dev-1").status_code == 404:
            server.device("dev-1")
        device_token = _session(server)
        bearer = device_token
    named = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
    return server.http("POST", path, body=body, headers=named | headers)


def _session(server: Server) -> str:
    from twinlock.server.enrolment.sessions import make_token
    from twinlock.server.setup import read_secret

    fingerprint = server.operator("GET", "/devices/dev-1").json()["fingerprint"]
    expires_s = int(server.clock.now.timestamp()) + 60
    return make_token(read_secret(server.settings), "dev-1", fingerprint, expires_s, server.clock.now_us())


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"{}",
        b'{"a":1}',
        b"\xff\xfe",
        b'{"device_id":1}',
        b'{"device_id":"dev-1","device_id":',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"\x00",
    ],
)
def test_a_body_that_is_not_what_the_call_wants(server: Server, path: str, body: bytes) -> None:
    answer = send(server, path, body)
    assert (answer.status_code, code_of(answer)) == (400, "request-malformed")


@pytest.mark.parametrize("path", CALLS)
def test_a_body_over_its_bound_is_413_with_and_without_a_length(server: Server, path: str) -> None:
    large = BOUNDS[path] + 1

    async def endless() -> AsyncIterator[bytes]:
        sent = 0
        while sent <= large + 10 * limits.MIB:
            sent += limits.MIB
            yield b" " * limits.MIB

    for body in (b" " * large, endless()):
        answer = send(server, path, body)
        assert (answer.status_code, code_of(answer)) == (413, "request-too-large")


@pytest.mark.parametrize("path", OPEN_CALLS + OPERATOR_CALLS[:1])
def test_a_length_that_is_a_lie_is_refused_before_the_body(server: Server, path: str) -> None:
    answer = send(server, path, b"{}", **{"Content-Length": "999999999999"})
    assert (answer.status_code, code_of(answer)) == (413, "request-too-large")
    answer = send(server, path, b"{}", **{"Content-Length": "-5"})
    assert (answer.status_code, code_of(answer)) == (400, "request-malformed")


@pytest.mark.parametrize(
    "path", [*CALLS, "/", "/login/x", "/static/style.css", "/repository/metadata/1.root.json"]
)
@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_a_method_that_a_path_lacks_is_405(server: Server, path: str, method: str) -> None:
    bearer = {"Authorization": f"Bearer {server.token}"}
    answer = server.http(method, path, headers=bearer)
    assert (answer.status_code, code_of(answer)) == (405, "method-not-allowed")
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    "path",
    [
        "/device",
        "/device/v1",
        "/device/v1/",
        "/device/v2/poll",
        "/device/v1/poll/",
        "/device/v1/nothing",
        "/api",
        "/api/v1",
        "/api/v2/health",
        "/static/",
        "/static/../pages.py",
        "/static/%2e%2e/pages.py",
        "/favicon.ico",
        "/x" * 500,
        "/<script>alert(1)</script>",
        "/%00",
        "/%ff",
    ],
)
def test_an_unknown_path_is_404(server: Server, path: str) -> None:
    answer = server.http("GET", path, headers={"Authorization": f"Bearer {server.token}"})
    assert (answer.status_code, code_of(answer)) == (404, "not-found")
    assert len(answer.content) < 1000


@pytest.mark.parametrize("path", ["/device/v1/poll", "/api/v1/devices", "/"])
def test_a_fault_of_ours_is_internal_and_logged_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the-secret-reason")

    device = server.device()
    monkeypatch.setattr(type(server.database), "poll_view", fail)
    monkeypatch.setattr(type(server.database), "read", fail)
    monkeypatch.setattr("twinlock.server.web.pages.Pages._who", fail)
    bearer = {"Authorization": f"Bearer {device.token if 'device' in path else server.token}"}
    answer = server.http("POST" if "poll" in path else "GET", path, body=b"{}", headers=bearer)
    assert (answer.status_code, code_of(answer)) == (500, "internal")
    assert "the-secret-reason" not in answer.text
    traces = [one for one in caplog.records if one.exc_info]
    assert len(traces) == 1
    assert "the-secret-reason" in str(traces[0].exc_info)


def test_what_somebody_should_look_at_is_logged_in_one_line(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    device = server.device()
    forged = device.sign(device.report("idle"), key=DeviceKey(generate()))
    device.send_reports(forged)
    FakeDevice(server, "dev-1").enrol()
    device.poll(slot="c")
    logged = [one.getMessage() for one in caplog.records if one.name == "twinlock.server.http"]
    assert [line.rpartition(" ")[2] for line in logged] == ["[signature-invalid]", "[enrolment-conflict]"]


def test_no_secret_is_in_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    device = server.device()
    device.poll()
    device.tell("idle")
    server.http("POST", "/login", body=f"token={server.token}".encode())
    logged = " ".join(one.getMessage() for one in caplog.records)
    for secret in (server.token, device.token, device.key.public_pem):
        assert secret not in logged
