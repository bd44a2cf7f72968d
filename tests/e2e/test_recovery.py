"""Both slots bad, with the real agent and a real server: the device comes back by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.e2e import kill_world
from tests.e2e.kill_world import GOOD, World
from twinlock.core.limits import MIB
from twinlock.lab.virtual import VirtualDevice


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = kill_world.build(tmp_path_factory.mktemp("world"))
    with made.life:
        yield made


def running(world: World, name: str) -> VirtualDevice:
    """A device that has taken the good release and runs it in slot b; slot a holds the one before."""
    device, _ = world.device(name, GOOD)
    assert device.settle().exit_code == 0
    assert device.disk.record().default == "b"
    return device


def ruin(device: VirtualDevice, slots: Sequence[str]) -> None:
    """What a worn flash leaves of a file system."""
    with device.disk.path.open("r+b") as file:
        for slot in slots:
            file.seek(device.disk.slots[slot].offset_bytes)
            file.write(b"\xff" * MIB)


def rollouts_of(world: World, device_id: str) -> list[tuple[str, str, str]]:
    """Who made each of the device's rollouts, of which version, and how it stands; oldest first."""
    found = []
    for one in world.operator.get("/rollouts")["rollouts"]:
        whole = world.operator.get(f"/rollouts/{one['rollout_id']}")
        states = [each["state"] for each in whole["assignments"] if each["device_id"] == device_id]
        found += [(one["created_by"], one["version"], state) for state in states]
    return found[::-1]


def test_a_device_with_two_bad_slots_gets_its_release_again(world: World) -> None:
    device = running(world, "both-bad")
    ruin(device, ["a", "b"])
    settled = device.settle()
    assert [boot.slot for boot in settled.boots] == ["recovery", "a"]
    assert settled.exit_code == 0
    assert device.disk.record().default == "a"
    again = device.release_in("a", world.known)
    assert again is not None
    assert again.version == GOOD
    assert rollouts_of(world, "both-bad")[-1] == ("recovery", GOOD, "succeeded")
    assert device.floor() == world.packed[GOOD].release.counter, "nothing older is left to fall back to"
    quiet = device.settle()
    assert (quiet.exit_code, [boot.slot for boot in quiet.boots]) == (0, ["a"])
    assert len(rollouts_of(world, "both-bad")) == 2, "once it is back nothing more is made for it"


def test_a_lost_boot_record_is_made_anew_without_a_download(world: World) -> None:
    device = running(world, "no-record")
    with device.disk.path.open("r+b") as file:
        for offset in device.disk.record_offsets_bytes:
            file.seek(offset)
            file.write(b"\xff" * 512)
    settled = device.settle()
    assert [boot.slot for boot in settled.boots] == ["recovery", "b"]
    record = device.disk.record()
    assert (record.default, record.failed) == ("b", frozenset())
    assert None not in device.disk.copies()
    assert [version for _, version, _ in rollouts_of(world, "no-record")] == [GOOD]
    told = world.operator.get("/devices/no-record")["reports"]
    assert "boot-record" in [report["code"] for report in told]


def test_a_lost_boot_record_and_one_bad_slot(world: World) -> None:
    device = running(world, "worse")
    ruin(device, ["b"])
    with device.disk.path.open("r+b") as file:
        for offset in device.disk.record_offsets_bytes:
            file.seek(offset)
            file.write(b"\xff" * 512)
    settled = device.settle()
    assert [boot.slot for boot in settled.boots] == ["recovery", "a"]
    assert device.disk.record().failed == frozenset("b")
