"""One release, four ways: by delta, out of the current slot, in full, and by a delta on a damaged base.

The delta is the one that `twinlock release publish` makes by itself, since a device said what it runs.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import kill_world
from tests.e2e.kill_world import GOOD, IMAGE_SIZE, World
from tests.e2e.processes import wait_until
from twinlock.core.errors import EXIT_CODES, Kind
from twinlock.core.limits import MIB
from twinlock.core.payload.blocks import BLOCK_SIZE_BYTES, HASH_SIZE_BYTES
from twinlock.lab import images, virtual
from twinlock.lab.killrun import Run, Wanted
from twinlock.lab.proxy import Cut, FaultProxy, random_cuts
from twinlock.lab.virtual import REBOOT_WANTED, VirtualDevice

TRANSPORT = EXIT_CODES[Kind.TRANSPORT]
CUTS = 20


@dataclass
class Published:
    """The world, and what `release publish` said and left."""

    world: World
    said: dict[str, Any]
    full: dict[str, Any]
    delta: dict[str, Any]


def twinlock(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "twinlock.cli.main", *words, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("ways")
    world = kill_world.build(folder)
    with world.life:
        scout, _ = world.device("scout", "1.0")  # it runs 1.0 already, and says so
        scout.boot()
        assert scout.run_agent().exit_code == 0
        # the server writes it down in batches
        wait_until(lambda: world.operator.get("/devices/scout")["running"], "the fleet to run 1.0")
        (folder / "token").write_text(world.server.token)
        where = ["--repo", str(folder / "build/repo"), "--server", world.server.url]
        said = twinlock("release", "publish", f"demo/{GOOD}", *where, "--token-file", str(folder / "token"))
        payloads = world.operator.get(f"/releases/demo/{GOOD}")["payloads"]
        (full,) = (one for one in payloads if one["kind"] == "full")
        (delta,) = (one for one in payloads if one["kind"] == "delta")
        yield Published(world, said, full, delta)


def go(world: World, name: str, ways: str, server: str = "") -> tuple[VirtualDevice, str]:
    """A booted device on 1.0 with an empty second slot, which may use these ways."""
    settings = {"network": f"{virtual.NETWORK}\nways = {ways}"}
    device, rollout = world.device(name, GOOD, server=server, both_slots=False, settings=settings)
    device.boot()
    return device, rollout


def finish(world: World, device: VirtualDevice, name: str, rollout: str) -> dict[str, Any]:
    """The trial and its commit; what the server knows of it in the end."""
    run = Run(device, world.known, world.folder / f"{name}.calls")
    run.go(random.Random(name))
    run.judge(world.operator, name, rollout, Wanted("b", GOOD, "succeeded"))
    assert run.judge_running(world.operator, name).violations == []
    found: dict[str, Any] = world.operator.get(f"/rollouts/{rollout}")["assignments"][0]
    return found


def fetched(published: Published, name: str, ways: str, damage: int | None = None) -> tuple[int, str]:
    """Bytes that a device fetched to get there, and what its agent said."""
    world = published.world
    device, rollout = go(world, name, ways)
    if damage is not None:
        images.flip_bit(device.disk.path, device.disk.slots["a"].offset_bytes + damage)
    done = device.run_agent()
    assert done.exit_code == REBOOT_WANTED, done.stderr
    if damage is not None:  # a slot that may boot has to be whole in the end
        images.flip_bit(device.disk.path, device.disk.slots["a"].offset_bytes + damage)
    found = finish(world, device, name, rollout)
    assert found["bytes_again"] == 0
    return int(found["bytes_fetched"]), done.stderr


def test_the_delta_was_made_from_what_the_fleet_runs(published: Published) -> None:
    world, delta = published.world, published.delta
    assert delta["base_sha256"] == world.packed["1.0"].release.sha256
    assert delta["size_bytes"] < published.full["size_bytes"] / 4
    (sent,) = published.said["releases"]
    assert (sent["sent_bytes"], sent["spared_bytes"]) == (delta["size_bytes"], published.full["size_bytes"])
    before = json.loads((world.folder / f"build/demo-{GOOD}/release.json").read_text())
    assert before["manifest_sha256"] == world.operator.get(f"/releases/demo/{GOOD}")["manifest_sha256"]


def test_a_device_updates_by_delta(published: Published) -> None:
    size, _ = fetched(published, "by-delta", '["delta", "adaptive", "full"]')
    assert size == published.delta["size_bytes"]


def test_a_device_updates_by_what_its_slot_holds(published: Published) -> None:
    size, _ = fetched(published, "by-reuse", '["adaptive", "full"]')
    assert published.delta["size_bytes"] < size < 0.9 * published.full["size_bytes"]


def test_a_device_updates_by_the_full_payload(published: Published) -> None:
    size, _ = fetched(published, "in-full", '["full"]')
    hashes = IMAGE_SIZE // BLOCK_SIZE_BYTES * HASH_SIZE_BYTES  # not fetched
    assert size == published.full["size_bytes"] - hashes


def test_a_damaged_base_costs_the_damaged_segments(published: Published) -> None:
    """A bit of a file that both releases have, in the slot that runs."""
    image = published.world.factory_image.read_bytes()
    place = next(at for at in range(3 * MIB + 4096, len(image), 4096) if any(image[at : at + 4096]))
    size, said = fetched(published, "damaged", '["delta", "adaptive", "full"]', place + 2000)
    assert published.delta["size_bytes"] < size
    assert size < published.delta["size_bytes"] + published.full["size_bytes"] / 2
    assert "comes from the full payload" in said


def test_a_delta_over_a_link_that_is_cut_twenty_times(published: Published, rng: random.Random) -> None:
    """Every fourth time the link stays away, the run ends, and the power goes before the next."""
    world, size = published.world, published.delta["size_bytes"]
    cuts = random_cuts(rng, CUTS, size)
    cuts = [Cut(cut.after_bytes, away=number % 4 == 3) for number, cut in enumerate(cuts)]
    with FaultProxy(world.server.url, cuts) as proxy:
        device, rollout = go(world, "cut", '["delta", "adaptive", "full"]', proxy.url)
        codes: list[int] = []
        while not codes or codes[-1] == TRANSPORT:
            proxy.down = False
            codes.append(device.run_agent().exit_code)
            if codes[-1] == TRANSPORT:
                device.boot()
            assert len(codes) <= CUTS + 1
        assert codes[-1] == REBOOT_WANTED
        counts = proxy.counts()
        assert counts.cuts == CUTS
        assert counts.payload_bytes == size  # not a byte twice
        finish(world, device, "cut", rollout)


def test_a_delta_is_made_by_hand_too(published: Published, tmp_path: Path) -> None:
    """From release folders, into a release folder; a second time there is nothing to do."""
    folders = [str(published.world.folder / f"build/demo-{version}") for version in ("1.0", "1.2")]
    for new in (True, False):
        made = twinlock("release", "delta", "--from", folders[0], "--to", folders[1])
        assert (made["new"], made["kept"]) == (new, True)
    listed = json.loads(Path(folders[1], "release.json").read_text())["payloads"]
    assert [one["kind"] for one in listed] == ["full", "delta"]
    assert Path(folders[1], f"{made['payload_sha256']}.payload").stat().st_size == made["payload_size_bytes"]
