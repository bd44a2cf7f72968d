"""Polls: one lookup, an assignment while there is one, and the fleet's state kept soon after."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.server.rig import Server, code_of, make_release
from twinlock.core.protocol import PollAnswer, decode_answer


def shown(server: Server, device_id: str = "dev-1") -> Any:
    return server.operator("GET", f"/devices/{device_id}").json()


def test_a_poll_without_a_rollout_says_when_to_ask_again(server: Server) -> None:
    answer = server.device().poll()
    assert (answer.status_code, answer.json()) == (200, {"wait_s": server.settings.poll_wait_s})


def test_a_named_device_is_offered_the_release_with_its_payloads(server: Server) -> None:
    release = make_release("1.1")
    server.publish(release)
    device, other = server.device("dev-1"), server.device("dev-2")
    rollout = server.roll_out("1.1", ["dev-1"])
    offer = device.assignment()
    assert offer is not None
    assert (offer.product, offer.version, offer.id) == ("demo", "1.1", f"{rollout}-dev-1")
    (payload,) = offer.payloads
    assert (payload.kind, payload.sha256.hex(), payload.size_bytes, payload.index_size_bytes) == (
        "full",
        release.sha256,
        len(release.payload),
        release.index_size_bytes,
    )
    assert other.assignment() is None


def test_what_a_device_says_is_kept_when_the_server_stops(server: Server) -> None:
    device = server.device()
    facts = {"version": "1.0", "counter": 3, "slot": "b", "floor": 2, "agent": "0.1", "state": "idle"}
    device.poll(**facts, image_sha256=bytes(32), abilities=("delta", "range"))
    server.stop()
    server.start()
    running = shown(server)["running"]
    assert running == {
        "product": "demo",
        "image_sha256": "00" * 32,
        "abilities": ["delta", "range"],
        **facts,
    }
    assert shown(server)["last_seen"] == "2026-11-21T12:00:00Z"


def test_the_newest_of_several_polls_is_kept(server: Server) -> None:
    device = server.device()
    for version in ("1.0", "1.1", "1.2"):
        server.clock.advance(10)
        device.poll(version=version)
    server.stop()
    server.start()
    assert shown(server)["running"]["version"] == "1.2"
    assert shown(server)["last_seen"] == "2026-11-21T12:00:30Z"


def test_a_poll_as_other_hardware_is_refused(server: Server) -> None:
    answer = server.device().poll(hardware="other-board")
    assert (answer.status_code, code_of(answer)) == (409, "hardware-mismatch")


@pytest.mark.parametrize(
    "facts",
    [
        {"slot": "c"},
        {"counter": -1},
        {"floor": 1 << 31},
        {"image_sha256": b"short"},
        {"version": "x" * 65},
        {"version": "<b>"},
        {"product": "../x"},
        {"agent": "x" * 65},
        {"state": "a\nb"},
        {"abilities": ("a,b",)},
        {"abilities": ("a",) * 33},
    ],
)
def test_facts_out_of_bounds_are_refused_and_not_kept(server: Server, facts: dict[str, Any]) -> None:
    answer = server.device().poll(**facts)
    assert (answer.status_code, code_of(answer)) == (400, "input-invalid")
    server.stop()
    server.start()
    assert shown(server)["running"] is None


def test_an_assignment_is_offered_until_its_outcome_is_known(server: Server) -> None:
    server.publish(make_release("1.1"))
    device = server.device()
    server.roll_out("1.1", ["dev-1"])
    offer = device.assignment()
    assert offer is not None
    for state in ("downloading", "armed", "trial"):
        device.tell(state, offer.id)
        assert device.assignment() == offer
    device.tell("succeeded", offer.id)
    assert device.assignment() is None


def test_a_device_that_runs_the_image_already_is_not_asked_to_install_it(server: Server) -> None:
    release = make_release("1.1")
    server.publish(release)
    device = server.device()
    rollout = server.roll_out("1.1")
    assert device.assignment(version="1.1", image_sha256=release.manifest.image_sha256) is None
    assert server.states(rollout) == {"dev-1": "succeeded"}


def test_the_answer_has_no_field_that_the_protocol_lacks(server: Server) -> None:
    server.publish(make_release("1.1"))
    device = server.device()
    server.roll_out("1.1")
    answer = decode_answer(device.poll().content, PollAnswer)
    assert answer.assignment is not None
