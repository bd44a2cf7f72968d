"""Rollouts: to named devices and to all, superseded and halted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.server.rig import Server, code_of, make_release, offered
from twinlock.server.rollouts import service


@pytest.fixture
def stocked(server: Server) -> Server:
    """A server with two releases for demo-board and one for other-board."""
    server.publish(make_release("1.1", 1))
    server.publish(make_release("1.2", 2))
    server.publish(make_release("2.0", 1, product="other", hardware=("other-board",)))
    return server


def shown(server: Server, rollout_id: str) -> Any:
    return server.operator("GET", f"/rollouts/{rollout_id}").json()


def create(server: Server, **changes: Any) -> Any:
    body = {"product": "demo", "version": "1.1", "devices": "all"} | changes
    return server.operator("POST", "/rollouts", json=body)


def test_a_rollout_to_all_reaches_devices_of_its_hardware_as_they_poll(stocked: Server) -> None:
    first = stocked.device("dev-1")
    stocked.device("dev-2", hardware="other-board")
    stocked.device("dev-3", accepted=False)
    rollout = stocked.roll_out("1.1")
    assert (shown(stocked, rollout)["counts"], shown(stocked, rollout)["waiting"]) == ({}, 1)
    assert first.assignment() is not None
    assert (shown(stocked, rollout)["counts"], shown(stocked, rollout)["waiting"]) == ({"assigned": 1}, 0)


def test_a_rollout_to_all_reaches_devices_that_are_accepted_later(stocked: Server) -> None:
    rollout = stocked.roll_out("1.1")
    late = stocked.device("late")
    offer = late.assignment()
    assert offer is not None
    assert offer.id == f"{rollout}-late"


def test_a_device_of_another_product_is_not_asked(stocked: Server) -> None:
    device = stocked.device()
    rollout = stocked.roll_out("1.1")
    assert device.assignment(product="elsewhere") is None
    assert stocked.states(rollout) == {}


def test_a_device_that_does_not_say_its_product_is_matched_by_hardware(stocked: Server) -> None:
    device = stocked.device()
    stocked.roll_out("1.1")
    assert device.assignment(product="") is not None


def test_of_several_rollouts_to_all_the_newest_wins(stocked: Server) -> None:
    device = stocked.device()
    older, newer = stocked.roll_out("1.1"), stocked.roll_out("1.2")
    offer = device.assignment()
    assert offer is not None
    assert offer.version == "1.2"
    assert (stocked.states(older), stocked.states(newer)) == ({}, {"dev-1": "assigned"})


def test_a_rollout_says_whether_anything_is_left_of_it(stocked: Server) -> None:
    device = stocked.device()

    def status(rollout_id: str) -> tuple[str, int]:
        found = shown(stocked, rollout_id)
        return found["status"], found["waiting"]

    older = stocked.roll_out("1.1")
    assert status(older) == ("active", 1)
    newer = stocked.roll_out("1.2")
    assert (status(older), status(newer)) == (("superseded", 0), ("active", 1))
    stocked.operator("POST", f"/rollouts/{newer}/halt")
    assert (status(older), status(newer)) == (("active", 1), ("halted", 0))
    named = stocked.roll_out("1.2", ["dev-1"])
    assert status(named) == ("active", 0)
    device.tell("failed", f"{named}-dev-1")
    assert status(named) == ("finished", 0)


def test_a_newer_rollout_supersedes_an_unfinished_assignment(stocked: Server) -> None:
    device = stocked.device()
    older = stocked.roll_out("1.1", ["dev-1"])
    first = device.assignment()
    assert first is not None
    device.tell("downloading", first.id)
    newer = stocked.roll_out("1.2", ["dev-1"])
    second = device.assignment()
    assert second is not None
    assert (first.version, second.version) == ("1.1", "1.2")
    assert (stocked.states(older), stocked.states(newer)) == ({"dev-1": "superseded"}, {"dev-1": "assigned"})


def test_what_a_superseded_device_did_in_the_end_is_still_known(stocked: Server) -> None:
    device = stocked.device()
    older = stocked.roll_out("1.1", ["dev-1"])
    first = device.assignment()
    assert first is not None
    newer = stocked.roll_out("1.2", ["dev-1"])
    device.tell("succeeded", first.id)
    assert (stocked.states(older), stocked.states(newer)) == ({"dev-1": "succeeded"}, {"dev-1": "assigned"})


def test_an_older_rollout_to_all_does_not_undo_a_newer_named_one(stocked: Server) -> None:
    device = stocked.device()
    stocked.roll_out("1.1")
    stocked.roll_out("1.2", ["dev-1"])
    offer = device.assignment()
    assert offer is not None
    assert offer.version == "1.2"


def test_a_halted_rollout_is_offered_to_nobody(stocked: Server) -> None:
    idle, busy, armed, done = (stocked.device(f"dev-{number}") for number in range(4))
    rollout = stocked.roll_out("1.1")
    offers = [device.assignment() for device in (idle, busy, armed, done)]
    for device, offer, state in zip(
        (busy, armed, done), offers[1:], ("downloading", "armed", "succeeded"), strict=True
    ):
        assert offer is not None
        device.tell(state, offer.id)
    halted = stocked.operator("POST", f"/rollouts/{rollout}/halt").json()
    assert (halted["status"], halted["counts"]) == ("halted", {"halted": 3, "succeeded": 1})
    assert all(device.assignment() is None for device in (idle, busy, armed, done))
    late = stocked.device("late")
    assert late.assignment() is None


def test_a_device_past_stopping_still_gives_its_outcome_to_a_halted_rollout(stocked: Server) -> None:
    device = stocked.device()
    rollout = stocked.roll_out("1.1")
    offer = device.assignment()
    assert offer is not None
    stocked.operator("POST", f"/rollouts/{rollout}/halt")
    device.tell("trial", offer.id)
    assert stocked.states(rollout) == {"dev-1": "halted"}
    device.tell("rolled_back", offer.id, code="health-failed", detail="no network")
    (one,) = shown(stocked, rollout)["assignments"]
    assert (one["state"], one["code"], one["detail"]) == ("rolled_back", "health-failed", "no network")


def test_halting_twice_changes_nothing(stocked: Server) -> None:
    rollout = stocked.roll_out("1.1")
    first = stocked.operator("POST", f"/rollouts/{rollout}/halt").json()
    stocked.clock.advance(60)
    assert stocked.operator("POST", f"/rollouts/{rollout}/halt").json() == first


def test_after_a_halt_an_older_rollout_does_not_come_back(stocked: Server) -> None:
    device = stocked.device()
    stocked.roll_out("1.1")
    newer = stocked.roll_out("1.2")
    assert device.assignment() is not None
    stocked.operator("POST", f"/rollouts/{newer}/halt")
    assert device.assignment() is None


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"version": "9.9"}, 404, "not-found"),
        ({"product": "none"}, 404, "not-found"),
        ({"devices": ["nobody"]}, 404, "not-found"),
        ({"devices": ["dev-1", "pending"]}, 403, "enrolment-pending"),
        ({"devices": ["rejected"]}, 403, "enrolment-rejected"),
        ({"devices": ["foreign"]}, 409, "hardware-mismatch"),
        ({"devices": []}, 400, "request-malformed"),
        ({"devices": "some"}, 400, "request-malformed"),
        ({"devices": None}, 400, "request-malformed"),
        ({"devices": ["../x"]}, 400, "input-invalid"),
        ({"version": 1.1}, 400, "request-malformed"),
        ({"extra": 1}, 400, "request-malformed"),
    ],
)
def test_a_rollout_that_cannot_be_is_refused_and_nothing_made(
    stocked: Server, changes: dict[str, Any], status: int, code: str
) -> None:
    stocked.device("dev-1")
    stocked.device("pending", accepted=False)
    stocked.device("rejected")
    stocked.operator("POST", "/devices/rejected/reject")
    stocked.device("foreign", hardware="other-board")
    answer = create(stocked, **changes)
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert stocked.operator("GET", "/rollouts").json() == {"rollouts": []}


def test_a_rollout_names_a_bounded_number_of_devices(
    stocked: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stocked.device("dev-1")
    stocked.device("dev-2")
    monkeypatch.setattr(service, "DEVICES_PER_ROLLOUT_MAX", 1)
    assert code_of(create(stocked, devices=["dev-1", "dev-2"])) == "input-invalid"
    assert create(stocked, devices=["dev-1", "dev-1"]).status_code == 201


@pytest.mark.parametrize("rollout_id", ["r9", "9", "r0", "r-1", "rx", "r" + "9" * 40, "R1"])
def test_an_unknown_rollout_is_not_found(stocked: Server, rollout_id: str) -> None:
    for method, path in (("GET", ""), ("POST", "/halt")):
        answer = stocked.operator(method, f"/rollouts/{rollout_id}{path}")
        assert (answer.status_code, code_of(answer)) == (404, "not-found")


def test_assignments_come_in_pages(stocked: Server) -> None:
    names = [f"dev-{number}" for number in range(5)]
    for name in names:
        stocked.device(name)
    rollout = stocked.roll_out("1.1", names)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = stocked.operator("GET", f"/rollouts/{rollout}?limit=2&after={after}").json()
        seen += [one["device_id"] for one in page["assignments"]]
        after = page["next"]
    assert seen == names


def test_rollouts_are_listed_newest_first_and_in_the_audit_log(stocked: Server) -> None:
    stocked.device("dev-1")
    first, second = stocked.roll_out("1.1", ["dev-1"]), stocked.roll_out("1.2")
    stocked.operator("POST", f"/rollouts/{second}/halt")
    listed = stocked.operator("GET", "/rollouts").json()["rollouts"]
    assert [(one["rollout_id"], one["devices"], one["status"]) for one in listed] == [
        (second, "all", "halted"),
        (first, "named", "active"),
    ]
    entries = stocked.operator("GET", "/audit?limit=1000").json()["entries"]
    assert [(one["action"], one["subject"]) for one in entries[-3:]] == [
        ("rollout-created", first),
        ("rollout-created", second),
        ("rollout-halted", second),
    ]


# --- recovery


def test_a_device_in_recovery_gets_the_release_that_it_last_committed_again(stocked: Server) -> None:
    device = stocked.device()
    for version in ("1.1", "1.2"):
        first = stocked.roll_out(version)
        assert device.assignment() is not None
        device.tell("succeeded", f"{first}-dev-1")
    assert device.assignment(slot="b") is None
    offer = device.assignment(slot="recovery", version="1.1")
    assert offer is not None
    assert (offer.version, offer.id) == ("1.2", "r3-dev-1")
    assert shown(stocked, "r3")["created_by"] == "recovery"
    again = device.assignment(slot="recovery", version="1.1")
    assert again is not None
    assert again.id == offer.id, "one rollout, however often it asks"
    audit = stocked.operator("GET", "/audit").json()
    assert "again to dev-1" in str(audit)


def test_a_device_that_never_took_a_rollout_gets_what_it_says_it_should_run(stocked: Server) -> None:
    device = stocked.device()
    assert device.assignment(slot="recovery") is None
    assert device.assignment(slot="recovery", version="7.7") is None
    assert device.assignment(slot="recovery", product="other", version="2.0") is None, "other hardware"
    offer = device.assignment(slot="recovery", version="1.1")
    assert offer is not None
    assert (offer.version, offer.id) == ("1.1", "r1-dev-1")


def test_a_release_that_fails_from_recovery_is_not_offered_for_ever(stocked: Server) -> None:
    device = stocked.device()
    for version in ("1.1", "1.2"):
        first = stocked.roll_out(version)
        device.assignment()
        device.tell("succeeded", f"{first}-dev-1")
    for expected in ("1.2", "1.1"):
        offer = device.assignment(slot="recovery", version="1.2")
        assert offer is not None
        assert offer.version == expected
        device.tell("failed", offer.id)
    assert device.assignment(slot="recovery", version="1.2") is None
    rollout = stocked.roll_out("1.2")
    offer = device.assignment(slot="recovery", version="1.2")
    assert offer is not None
    assert offer.id == f"{rollout}-dev-1", "an operator's rollout always counts"


def test_a_release_that_is_not_signed_any_more_is_passed_over_in_recovery(stocked: Server) -> None:
    """The device would refuse it, and stay in recovery."""
    device = stocked.device()
    for version in ("1.1", "1.2"):
        first = stocked.roll_out(version, ["dev-1"])
        device.assignment()
        device.tell("succeeded", f"{first}-dev-1")
    other = stocked.device("dev-2")
    stocked.repository.targets.targets.pop("demo/1.2.manifest")
    stocked.repository.publish("targets", "snapshot", "timestamp")
    assert stocked.operator("POST", "/metadata", json=offered(stocked.repository)).status_code == 200
    offer = device.assignment(slot="recovery", version="1.2")
    assert offer is not None
    assert offer.version == "1.1"
    assert other.assignment(slot="recovery", version="1.2") is None


def test_an_open_assignment_is_kept_in_recovery(stocked: Server) -> None:
    device = stocked.device()
    rollout = stocked.roll_out("1.1")
    offer = device.assignment(slot="recovery", version="1.2")
    assert offer is not None
    assert offer.id == f"{rollout}-dev-1"


def test_a_halted_rollout_does_not_keep_a_device_in_recovery(stocked: Server) -> None:
    device = stocked.device()
    first = stocked.roll_out("1.1")
    device.assignment()
    device.tell("succeeded", f"{first}-dev-1")
    second = stocked.roll_out("1.2")
    device.assignment()
    stocked.operator("POST", f"/rollouts/{second}/halt")
    offer = device.assignment(slot="recovery", version="1.1")
    assert offer is not None
    assert offer.version == "1.1"
