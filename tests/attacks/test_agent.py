"""Attacks that reach for the device through what is signed for it, cases 25 and 27: by the whole agent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from tests.attacks.agent_scene import AgentScene, agent_scene, release
from tests.attacks.scene import LISTED
from tests.conformance.repository import NOW
from twinlock.agent import memory

DAY_S = 24 * 3600


def raise_floor(device: AgentScene, counter: int) -> None:
    """As a commit of a release with this counter leaves it."""
    device.ports.store.write(memory.FLOOR_FILE, msgspec.json.encode({"counter": counter}))


def test_case_25_a_counter_below_the_floor(tmp_path: Path) -> None:
    """A release of old, good signatures and all, with holes that are closed since."""
    with agent_scene(tmp_path) as device:
        raise_floor(device, 4)
        device.refused("release-older", but=(memory.TIME_FILE,))


def test_case_25_a_counter_in_the_manifest_alone(tmp_path: Path) -> None:
    """The metadata claims a counter that the manifest does not have."""
    with agent_scene(tmp_path) as device:
        raise_floor(device, 4)
        made = release("1.1", 3, b"image" * 1024)
        device.signed(made).unrecognized_fields["custom"]["twinlock"]["counter"] = 5
        device.repository.publish(*LISTED)
        device.refused("metadata-mismatch", but=(memory.TIME_FILE,))


def test_case_27_a_clock_of_1970(tmp_path: Path) -> None:
    """Expiry counts by what is known of the time: what had expired when the device last saw one stays so."""
    with agent_scene(tmp_path) as device:
        memory.note_time(device.ports.store, device.repository.expires.timestamp() + 1)
        device.clock.wall_s = 0.0
        device.refused("metadata-expired")


def test_case_27_a_clock_of_1970_on_a_new_device(tmp_path: Path) -> None:
    """Nothing is known but when the agent was built: what had expired by then stays expired."""
    with agent_scene(tmp_path) as device:
        device.repository.timestamp.expires = datetime.fromtimestamp(memory.BUILD_TIME_S - DAY_S, UTC)
        device.repository.publish("timestamp")
        device.clock.wall_s = 0.0
        device.refused("metadata-expired")


def test_case_27_a_clock_of_2038(tmp_path: Path) -> None:
    """It holds updates up while it lasts, and locks nobody out when it is right again."""
    with agent_scene(tmp_path) as device:
        raise_floor(device, 4)
        device.clock.wall_s = datetime(2038, 1, 19, tzinfo=UTC).timestamp()
        device.refused("metadata-expired")
        device.clock.wall_s = NOW.timestamp() + 60
        device.refused("release-older", but=(memory.TIME_FILE,))


def test_case_27_a_clock_that_runs_backwards(tmp_path: Path) -> None:
    """Metadata that was withheld until it expired is not fresh for a clock that was set back."""
    with agent_scene(tmp_path) as device:
        raise_floor(device, 4)
        device.clock.wall_s = (NOW + timedelta(days=29)).timestamp()
        device.refused("release-older", but=(memory.TIME_FILE,))
        device.repository.timestamp.expires = NOW + timedelta(days=20)
        device.assign(release("1.1", 3, b"image" * 1024), "r2")
        device.clock.wall_s = (NOW - timedelta(hours=1)).timestamp()
        device.refused("metadata-expired")
