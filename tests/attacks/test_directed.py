"""Attacks on a device with a director, cases 20, 22, 23 and 24: the real agent polls the real server.

Whoever holds the server, or the line to it, changes what a poll is answered. The signing keys are not theirs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from tests.attacks.director_scene import (
    DirectorScene,
    director_repository,
    director_scene,
    name_key,
    versions,
)
from tests.conformance.repository import NOW
from tests.unit.server.rig import FakeDevice
from twinlock.agent import director, memory
from twinlock.agent.check import Check
from twinlock.agent.plan import CheckRequest, Running
from twinlock.core.protocol import ABILITY_DIRECTOR, DirectorAnswer, PollAnswer, decode_answer
from twinlock.core.trust.director import OnlineKey, online_key, sign_answer

DAY_S = 24 * 3600
KEPT = (memory.TIME_FILE,)


def other_device(scene: DirectorScene, version: str = "") -> DirectorAnswer:
    """What the director says to another device, of this release if one is given."""
    device = scene.server.device("other-device", hardware="board")
    if version:
        scene.server.roll_out(version, ["other-device"])
    return polled(device)


def polled(device: FakeDevice) -> DirectorAnswer:
    answer = decode_answer(device.poll(abilities=("full", ABILITY_DIRECTOR)).content, PollAnswer)
    assert answer.director is not None
    return answer.director


def test_a_device_takes_what_both_repositories_name(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        scene.offer()
        assert scene.run() == ""
        assert scene.armed()


def test_a_quiet_poll_writes_nothing(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        first, before = scene.directed(), scene.state()
        assert scene.run() == ""
        assert scene.directed() == first
        assert scene.state() == before


def test_a_device_without_a_director_goes_on_as_ever(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        scene.ports.store.remove(director.PINNED)
        scene.offer()
        assert scene.run() == ""
        assert scene.armed()
        assert scene.server.between.last is not None
        assert scene.server.between.last.director is None


def test_case_20_the_director_names_another_release(tmp_path: Path) -> None:
    """Both releases are genuine; the server assigns one and has the director's word for the other."""
    with director_scene(tmp_path) as scene:
        scene.publish("1.2", 4)
        scene.offer("1.1")

        def swap(said: PollAnswer) -> PollAnswer:
            assert said.assignment is not None
            return msgspec.structs.replace(
                said, assignment=msgspec.structs.replace(said.assignment, version="1.2")
            )

        scene.tamper(swap)
        scene.refused("metadata-mismatch", but=(*KEPT, *scene.trust()))


def test_case_20_the_director_names_no_release(tmp_path: Path) -> None:
    """An assignment from the server alone, beside the director's genuine word that there is nothing."""
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        empty = scene.directed()
        scene.offer()
        scene.say(empty)
        scene.refused("metadata-mismatch", but=KEPT)


def test_case_22_the_answer_for_another_device(tmp_path: Path) -> None:
    """Signed by the director, of the very release, and newer than this device's own: it raises no floor."""
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        scene.offer()
        scene.say(other_device(scene, "1.1"))
        scene.refused("metadata-device")


def test_case_22_an_older_answer_for_this_device(tmp_path: Path) -> None:
    """The word from before the release, played again to hold the device back."""
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        old = scene.directed()
        scene.later(4 * DAY_S)
        assert scene.run() == ""
        assert versions(scene.directed()) > versions(old)
        scene.say(old)
        scene.refused("metadata-rollback")


def test_case_23_the_empty_answer_for_another_device(tmp_path: Path) -> None:
    """There is nothing for the other device, and so nothing for this one either?"""
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        empty = other_device(scene)
        scene.offer()
        scene.tamper(lambda said: PollAnswer(wait_s=said.wait_s, director=empty))
        scene.refused("metadata-device")


def test_case_24_a_poll_without_the_directors_word(tmp_path: Path) -> None:
    """Left out by a server that never had a director's key, or lost it."""
    with director_scene(tmp_path) as scene:
        scene.offer()
        scene.say(None)
        scene.refused("director-missing")


def test_case_24_without_the_directors_word_in_recovery(tmp_path: Path) -> None:
    """A device that has nothing left to lose still takes nothing from the server alone."""
    with director_scene(tmp_path) as scene:
        scene.offer()
        booted = msgspec.json.encode({"slot": "recovery", "boot_id": "1"})
        (scene.folder / "booted.json").write_bytes(booted)
        scene.say(None)
        scene.refused("director-missing")


def test_case_24_the_state_with_its_root_is_lost(tmp_path: Path) -> None:
    """A director that the image names does not go with the data partition."""
    with director_scene(tmp_path, in_image=True) as scene:
        assert scene.ports.store.read(director.PINNED, 1 << 20) is None
        scene.offer()
        scene.say(None)
        scene.refused("director-missing")


def test_case_24_an_answer_past_its_time(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        scene.say(scene.directed())
        scene.later(7 * DAY_S + 1)
        scene.refused("metadata-expired")


def test_case_24_an_answer_by_a_stranger(tmp_path: Path) -> None:
    """All of it is as the director would sign it, but for the key."""
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        made = scene.publish()
        own = online_key(scene.online.signers["targets"][0].private_bytes)
        stranger = online_key(scene.online.new_key().private_bytes)
        entry = scene.server.repository.targets.targets[made.manifest.name]
        scene.server.roll_out("1.1", [scene.device_id])
        forged = OnlineKey(own.keyid, stranger.sign)
        scene.say(sign_answer(forged, scene.device_id, entry, version=1 << 30, now=NOW))
        scene.refused("metadata-signature")


def test_case_24_a_directors_key_that_was_taken_away(tmp_path: Path) -> None:
    """The thief of the online key is out as soon as the device has seen the root that replaces it."""
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        stolen = online_key(scene.online.signers["targets"][0].private_bytes)
        name_key(scene.online, scene.online.new_key())
        scene.online.publish("root")
        scene.restart()
        assert scene.run() == ""
        made = scene.publish()
        scene.server.roll_out("1.1", [scene.device_id])
        entry = scene.server.repository.targets.targets[made.manifest.name]
        forged = sign_answer(stolen, scene.device_id, entry, version=1 << 30, now=NOW)
        scene.say(msgspec.structs.replace(forged, root_version=1))
        scene.refused("metadata-signature")


def test_what_was_refused_stands_on_the_devices_page(tmp_path: Path) -> None:
    """The device counts, its signed report tells, the operator sees; a report sent twice counts once."""
    with director_scene(tmp_path) as scene:
        assert scene.run() == ""
        scene.say(None)
        assert [scene.run() for _ in range(3)] == ["director-missing"] * 3
        scene.tamper(None)
        scene.offer()
        assert scene.run() == ""
        found = scene.server.operator("GET", f"/devices/{scene.device_id}").json()["attack_indicators"]
        noted = {one["key"]: one["count"] for one in found if one["kind"] == "refused-by-device"}
        assert noted == {"director-missing": 3}


def gate(scene: DirectorScene, running: Running = Running()) -> str:  # noqa: B008  frozen
    """The code that the gate of a system on trial ends with."""
    request = CheckRequest(mode="gate", slot="b", running=running, phase="trial")
    return Check(scene.ports, scene.settings, request).answer().code


def test_the_gate_asks_the_director(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        scene.offer()
        assert gate(scene, Running(product="demo", version="1.1", counter=3)) == ""
        assert scene.trust()["director/targets.json"] is not None


def test_the_gate_fails_without_the_servers_director(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        scene.offer()
        scene.ports.network.done(keep=False)  # type: ignore[attr-defined]
        scene.server.stop()
        shutil.rmtree(scene.server.folder / "director")
        scene.server.start()
        scene.connect(scene.server.address)
        assert gate(scene) == "director-missing"


def test_the_gate_fails_in_an_image_with_a_wrong_root(tmp_path: Path) -> None:
    """Such a release would be the last that the device takes."""
    with director_scene(tmp_path, in_image=True) as scene:
        scene.offer()
        assert scene.run() == ""
        stranger = director_repository()
        name_key(stranger, stranger.new_key())
        stranger.publish("root", bump=False)
        (scene.folder / "director.json").write_bytes(stranger.served("root"))
        assert gate(scene) == "metadata-signature"


def test_the_gate_fails_in_an_image_that_lost_the_root(tmp_path: Path) -> None:
    with director_scene(tmp_path, in_image=True) as scene:
        scene.offer()
        assert gate(scene) == ""
        (scene.folder / "director.json").unlink()
        assert gate(scene) == "metadata-missing"
