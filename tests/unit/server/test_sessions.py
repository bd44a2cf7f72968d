"""Challenges and tokens: forged, altered, expired, borrowed and replayed ones are refused."""

from __future__ import annotations

import base64

import pytest

from tests.unit.server.rig import FakeDevice, Server, code_of
from twinlock.core.device_key import DeviceKey, generate
from twinlock.core.errors import TwinlockError
from twinlock.server.enrolment import sessions
from twinlock.server.seals import SEALED_LENGTH_MAX, seal, unseal

SECRET = bytes(range(32))
OTHER = bytes(32)
FINGERPRINT = "ab" * 32
NOW_US = 1_800_000_000_000_000
NOW_S = 1_800_000_000


def challenge(secret: bytes = SECRET, device_id: str = "dev-1", at_us: int = NOW_US) -> str:
    return sessions.make_challenge(secret, device_id, at_us, b"n" * sessions.NONCE_SIZE_BYTES)


def refused(code: str, text: str, device_id: str = "dev-1", now_us: int = NOW_US) -> bool:
    with pytest.raises(TwinlockError) as caught:
        sessions.read_challenge(SECRET, text, device_id, now_us)
    return caught.value.code == code


def test_a_challenge_comes_back_as_it_was_made() -> None:
    found = sessions.read_challenge(SECRET, challenge(), "dev-1", NOW_US + 1)
    assert (found.device_id, found.issued_us) == ("dev-1", NOW_US)


def test_a_challenge_of_another_server_device_kind_or_time_is_refused() -> None:
    late_us = NOW_US + sessions.CHALLENGE_S * 1_000_000 + 1
    token = sessions.make_token(SECRET, "dev-1", FINGERPRINT, NOW_S + 60, NOW_S)
    assert refused("unauthorised", challenge(OTHER))
    assert refused("unauthorised", challenge(device_id="dev-2"))
    assert refused("unauthorised", token)
    assert refused("session-expired", challenge(), now_us=late_us)
    assert refused("session-expired", challenge(at_us=NOW_US + 1))


@pytest.mark.parametrize("text", ["", ".", "c1", "c1.", "c1..", "c1.AA.AA", "\N{SNOWMAN}", "c1." + "A" * 600])
def test_no_text_of_a_stranger_is_a_challenge(text: str) -> None:
    assert refused("unauthorised", text)


def test_every_changed_character_of_a_token_is_noticed() -> None:
    token = sessions.make_token(SECRET, "dev-1", FINGERPRINT, NOW_S + 60, NOW_S)
    assert sessions.read_token(SECRET, token, NOW_S).device_id == "dev-1"
    for at, char in enumerate(token):
        changed = token[:at] + ("A" if char != "A" else "B") + token[at + 1 :]
        with pytest.raises(TwinlockError, match="not made by this server"):
            sessions.read_token(SECRET, changed, NOW_S)


def test_a_token_ends_at_its_second() -> None:
    token = sessions.make_token(SECRET, "dev-1", FINGERPRINT, NOW_S + 60, NOW_S)
    assert sessions.read_token(SECRET, token, NOW_S + 59.9).expires_s == NOW_S + 60
    with pytest.raises(TwinlockError) as caught:
        sessions.read_token(SECRET, token, NOW_S + 60)
    assert caught.value.code == "session-expired"


def test_a_sealed_text_has_one_encoding_only() -> None:
    """The last character of base64 has spare bits; a text that differs in those alone is another text."""
    sealed = seal(SECRET, "x1", "a")
    kind, payload, mac = sealed.split(".")
    assert unseal(SECRET, "x1", sealed) == ["a"]
    assert base64.urlsafe_b64decode("YQ==") == base64.urlsafe_b64decode("YR==")
    for other in (f"{kind}.{payload}=.{mac}", f"{kind}.YR.{mac}", f"{kind}.{payload}.{mac}="):
        with pytest.raises(ValueError, match="made by someone else"):
            unseal(SECRET, "x1", other)


def test_a_longer_text_than_any_sealed_one_is_not_looked_at() -> None:
    long = seal(SECRET, "x1", "a" * SEALED_LENGTH_MAX)
    with pytest.raises(ValueError, match="too long"):
        unseal(SECRET, "x1", long)


def test_each_challenge_is_answered_once(server: Server) -> None:
    device = server.device()
    challenge = device.challenge()
    assert device.open_session(challenge).status_code == 200
    again = device.open_session(challenge)
    assert (again.status_code, code_of(again)) == (401, "session-expired")


def test_an_older_challenge_cannot_be_answered_after_a_newer_one(server: Server) -> None:
    device = server.device()
    server.clock.advance(1)
    older = device.challenge()
    server.clock.advance(1)
    assert device.open_session(device.challenge()).status_code == 200
    assert code_of(device.open_session(older)) == "session-expired"


def test_a_challenge_is_remembered_as_answered_across_a_restart(server: Server) -> None:
    device = server.device()
    server.clock.advance(1)
    challenge = device.challenge()
    assert device.open_session(challenge).status_code == 200
    server.stop()
    server.start()
    assert code_of(device.open_session(challenge)) == "session-expired"


def test_another_devices_answer_opens_no_session(server: Server) -> None:
    device, thief = server.device("dev-1"), server.device("dev-2")
    server.clock.advance(1)
    answer = device.open_session(device.challenge(), key=thief.key)
    assert (answer.status_code, code_of(answer)) == (401, "unauthorised")


def test_a_server_whose_clock_was_set_back_lets_devices_in_again(server: Server) -> None:
    device = server.device()
    server.clock.advance(-3600)
    challenge = device.challenge()
    assert device.open_session(challenge).status_code == 200
    assert code_of(device.open_session(challenge)) == "session-expired"


def test_an_unknown_device_and_a_wrong_key_look_the_same(server: Server) -> None:
    known = server.device("dev-1")
    server.clock.advance(1)
    unknown = FakeDevice(server, "dev-9")
    stranger = DeviceKey(generate())
    one = known.open_session(known.challenge(), key=stranger).json()["error"]
    two = unknown.open_session(unknown.challenge(), key=stranger).json()["error"]
    assert one["what"].replace("dev-1", "dev-9") == two["what"]
    assert (one["code"], one["hint"]) == (two["code"], two["hint"])


@pytest.mark.parametrize("token", ["", "t1.x.y", "Bearer", "none", "null"])
def test_a_poll_without_a_session_is_refused(server: Server, token: str) -> None:
    device = server.device()
    device.token = token
    answer = device.poll()
    assert (answer.status_code, code_of(answer)) == (401, "unauthorised")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_session_ends_after_its_time(server: Server) -> None:
    device = server.device()
    server.clock.advance(server.settings.session_s - 1)
    assert device.poll().status_code == 200
    server.clock.advance(1)
    assert code_of(device.poll()) == "session-expired"


def test_an_operators_token_is_no_session_and_a_session_no_operators_token(server: Server) -> None:
    device = server.device()
    session, device.token = device.token, server.token
    assert code_of(device.poll()) == "unauthorised"
    answer = server.http("GET", "/api/v1/devices", headers={"Authorization": f"Bearer {session}"})
    assert (answer.status_code, code_of(answer)) == (401, "unauthorised")


def test_rejecting_a_device_ends_its_session_at_the_next_request(server: Server) -> None:
    device = server.device()
    assert server.operator("POST", "/devices/dev-1/reject").status_code == 200
    for answer in (device.poll(), device.send_reports(device.report("idle")), device.download("0" * 64)):
        assert (answer.status_code, code_of(answer)) == (403, "enrolment-rejected")


def test_a_new_key_ends_the_sessions_of_the_old_one(server: Server) -> None:
    device = server.device()
    renewed = FakeDevice(server, "dev-1")
    fingerprint = fingerprint_of(renewed)
    body = {"device_id": "dev-1", "fingerprint": fingerprint}
    assert server.operator("POST", "/devices/preauthorise", json=body).json()["status"] == "preauthorised"
    assert device.poll().status_code == 200
    assert renewed.enrol().json()["status"] == "accepted"
    assert code_of(device.poll()) == "unauthorised"
    renewed.log_in()
    assert renewed.poll().status_code == 200


def fingerprint_of(device: FakeDevice) -> str:
    from twinlock.core.device_key import DevicePublicKey

    return DevicePublicKey(device.key.public_pem).fingerprint
