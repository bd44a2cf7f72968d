"""Polls: one lookup, an assignment while there is one, and the fleet's state kept soon after."""

from __future__ import annotations

from tests.unit.server.rig import Server, code_of, make_release


def test_a_poll_without_a_rollout_says_when_to_ask_again(server: Server) -> None:
    device = server.device()
    answer = device.poll()
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
