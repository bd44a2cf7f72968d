"""One-time enrolment tokens: each serves one device once, and accepts nobody by itself."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from tests.unit.server.rig import FakeDevice, Server, code_of
from twinlock.core.device_key import DevicePublicKey
from twinlock.server.enrolment import tokens

DAY_S = 24 * 3600


def make(server: Server, name: str = "line-1", lifetime_s: int = DAY_S) -> str:
    body = {"name": name, "lifetime_s": lifetime_s}
    answer = server.operator("POST", "/enrolment-tokens", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def listed(server: Server) -> list[tuple[str, str | None]]:
    found = server.operator("GET", "/enrolment-tokens").json()["tokens"]
    return [(one["name"], one["used_by"]) for one in found]


def test_a_token_brings_a_device_to_the_operator_who_decides(server: Server) -> None:
    device = FakeDevice(server, "dev-1")
    token = make(server)
    assert listed(server) == [("line-1", None)]
    assert device.enrol(token=token).json() == {"status": "pending"}
    assert listed(server) == [("line-1", "dev-1")]
    entries = server.operator("GET", "/audit").json()["entries"]
    assert any(one["subject"] == "dev-1" and "token line-1" in one["detail"] for one in entries)
    assert token.encode() not in (server.folder / "twinlock.db").read_bytes()


def test_the_same_device_may_ask_again_with_its_token(server: Server) -> None:
    device = FakeDevice(server, "dev-1")
    token = make(server)
    assert [device.enrol(token=token).status_code for _ in range(2)] == [200, 200]
    server.clock.advance(2 * DAY_S)
    assert device.enrol(token=token).json() == {"status": "pending"}


def test_a_token_serves_no_second_device(server: Server) -> None:
    token = make(server)
    assert FakeDevice(server, "dev-1").enrol(token=token).status_code == 200
    answer = FakeDevice(server, "dev-2").enrol(token=token)
    assert (answer.status_code, code_of(answer)) == (401, "unauthorised")
    assert server.operator("GET", "/devices/dev-2").status_code == 404


def test_a_token_does_not_change_a_key(server: Server) -> None:
    token = make(server)
    assert FakeDevice(server, "dev-1").enrol(token=token).status_code == 200
    assert code_of(FakeDevice(server, "dev-1").enrol(token=token)) == "enrolment-conflict"


@pytest.mark.parametrize("token", ["", "x", "a" * 256, "a" * 10_000, "\ud7ff", "line-1"])
def test_a_token_that_nobody_made(server: Server, token: str) -> None:
    make(server)
    assert code_of(FakeDevice(server, "dev-1").enrol(token=token)) == "unauthorised"
    assert listed(server) == [("line-1", None)]


def test_a_token_past_its_time(server: Server) -> None:
    token = make(server)
    server.clock.advance(DAY_S + 1)
    assert code_of(FakeDevice(server, "dev-1").enrol(token=token)) == "unauthorised"


def test_a_token_of_one_name_is_made_once(server: Server) -> None:
    make(server)
    answer = server.operator("POST", "/enrolment-tokens", json={"name": "line-1", "lifetime_s": DAY_S})
    assert code_of(answer) == "conflict"


def test_the_number_of_open_tokens_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "TOKENS_MAX", 1)
    make(server)
    answer = server.operator("POST", "/enrolment-tokens", json={"name": "line-2", "lifetime_s": DAY_S})
    assert code_of(answer) == "conflict"
    server.clock.advance(DAY_S + 1)
    make(server, "line-2")


def revoke(server: Server, name: str = "line-1") -> httpx.Response:
    return server.operator("POST", f"/enrolment-tokens/{name}/revoke")


def states(server: Server) -> dict[str, str]:
    found = server.operator("GET", "/enrolment-tokens").json()["tokens"]
    return {one["name"]: one["state"] for one in found}


def test_a_token_that_was_taken_back_lets_nobody_in(server: Server) -> None:
    token, other = make(server), make(server, "line-2")
    answer = revoke(server)
    assert (answer.status_code, answer.json()["state"]) == (200, "revoked")
    assert answer.json()["revoked"] is not None
    refused = FakeDevice(server, "dev-1").enrol(token=token)
    assert (refused.status_code, code_of(refused)) == (401, "unauthorised")
    assert server.operator("GET", "/devices/dev-1").status_code == 404
    assert FakeDevice(server, "dev-2").enrol(token=other).status_code == 200
    assert states(server) == {"line-1": "revoked", "line-2": "used"}


def test_taking_it_back_is_in_the_audit_log_once(server: Server) -> None:
    make(server)
    assert [revoke(server).json()["revoked"] for _ in range(2)] == [revoke(server).json()["revoked"]] * 2
    entries = server.operator("GET", "/audit").json()["entries"]
    (entry,) = [one for one in entries if one["action"] == "enrolment-token-revoked"]
    assert entry["subject"] == "line-1"


def test_a_used_token_is_not_taken_back(server: Server) -> None:
    device, token = FakeDevice(server, "dev-1"), make(server)
    device.enrol(token=token)
    answer = revoke(server)
    assert code_of(answer) == "conflict"
    assert "dev-1" in answer.json()["error"]["hint"]
    assert states(server) == {"line-1": "used"}
    assert device.enrol(token=token).status_code == 200


def test_only_tokens_that_exist_are_taken_back(server: Server) -> None:
    assert code_of(revoke(server, "line-9")) == "not-found"
    make(server)
    server.clock.advance(DAY_S + 1)
    assert states(server) == {"line-1": "ended"}
    assert revoke(server).json()["state"] == "revoked"


def test_a_token_taken_back_counts_no_more(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "TOKENS_MAX", 1)
    make(server)
    revoke(server)
    make(server, "line-2")


@pytest.mark.parametrize("body", [{"name": "../x", "lifetime_s": DAY_S}, {"name": "x", "lifetime_s": 1}])
def test_tokens_that_are_not_made(server: Server, body: dict[str, object]) -> None:
    answer = server.operator("POST", "/enrolment-tokens", json=body)
    assert answer.status_code == 400
    assert listed(server) == []


class TestWhereNewDevicesNeedOne:
    @pytest.fixture
    def server(self, server: Server) -> Server:
        server.stop()
        server.settings = msgspec.structs.replace(server.settings, enrolment_needs_token=True)
        server.start()
        return server

    def test_a_stranger_waits_in_no_list(self, server: Server) -> None:
        answer = FakeDevice(server, "dev-1").enrol()
        assert (answer.status_code, code_of(answer)) == (401, "unauthorised")
        assert server.operator("GET", "/devices/dev-1").status_code == 404

    def test_with_a_token_it_waits(self, server: Server) -> None:
        device = FakeDevice(server, "dev-1")
        assert device.enrol(token=make(server)).json() == {"status": "pending"}
        assert device.enrol().json() == {"status": "pending"}

    def test_a_preauthorised_key_needs_none(self, server: Server) -> None:
        device = FakeDevice(server, "dev-1")
        fingerprint = DevicePublicKey(device.key.public_pem).fingerprint
        body = {"device_id": "dev-1", "fingerprint": fingerprint}
        assert server.operator("POST", "/devices/preauthorise", json=body).status_code == 200
        assert device.enrol().json() == {"status": "accepted"}
