"""Updates over links that break: the real agent, a real server, between them a proxy that cuts and flips."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.e2e import kill_world
from tests.e2e.kill_world import GOOD, World
from twinlock.core.errors import EXIT_CODES, Kind
from twinlock.core.limits import SEGMENT_SIZE_BYTES
from twinlock.lab.killrun import Run, Wanted
from twinlock.lab.proxy import Cut, FaultProxy, Flip, Stall, random_cuts
from twinlock.lab.virtual import REBOOT_WANTED, VirtualDevice

TRANSPORT = EXIT_CODES[Kind.TRANSPORT]
IMPATIENT = """connect_timeout_s = 5.0
answer_timeout_s = 20.0
backoff_s_min = 0.02
backoff_s_max = 0.05
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = kill_world.build(tmp_path_factory.mktemp("world"))
    with made.life:
        yield made


def made(world: World, name: str, proxy: FaultProxy, **tables: str) -> tuple[VirtualDevice, str]:
    """A device with an empty second slot behind the proxy, booted."""
    settings = {"network": IMPATIENT + "stall_timeout_s = 10.0", **tables}
    device, rollout = world.device(name, GOOD, server=proxy.url, both_slots=False, settings=settings)
    device.boot()
    return device, rollout


def finish(world: World, device: VirtualDevice, name: str, rollout: str) -> None:
    """The trial and its commit, as every update must end."""
    run = Run(device, world.known, world.folder / f"{name}.calls")
    run.go(random.Random(name))
    run.judge(world.operator, name, rollout, Wanted("b", GOOD, "succeeded"))
    assert run.judge_running(world.operator, name).violations == []


def size_of(world: World) -> int:
    return world.packed[GOOD].fetched_size_bytes


def test_a_link_that_is_cut_many_times(world: World, rng: random.Random) -> None:
    cuts = random_cuts(rng, 12, size_of(world))
    cuts = [Cut(cut.after_bytes, away=number % 4 == 3) for number, cut in enumerate(cuts)]
    with FaultProxy(world.server.url, cuts) as proxy:
        device, rollout = made(world, "cut", proxy)
        codes: list[int] = []
        while not codes or codes[-1] == TRANSPORT:
            proxy.down = False
            codes.append(device.run_agent().exit_code)
            assert len(codes) <= len(cuts) + 1
        assert codes == [TRANSPORT] * 3 + [REBOOT_WANTED]
        counts = proxy.counts()
        assert counts.cuts == len(cuts)
        again = counts.payload_bytes - size_of(world)
        assert 0 <= again <= len(cuts) * SEGMENT_SIZE_BYTES
        assert again == 0  # not even a part: what came of one is kept
        finish(world, device, "cut", rollout)
        assert world.operator.get(f"/rollouts/{rollout}")["assignments"][0]["bytes_again"] == 0


def test_links_that_are_reset(world: World, rng: random.Random) -> None:
    cuts = random_cuts(rng, 5, size_of(world), reset=True)
    with FaultProxy(world.server.url, cuts) as proxy:
        device, rollout = made(world, "reset", proxy)
        assert device.run_agent().exit_code == REBOOT_WANTED
        assert proxy.counts().cuts == 5
        finish(world, device, "reset", rollout)


def test_a_damaged_part_is_fetched_once_more(world: World) -> None:
    with FaultProxy(world.server.url, [Flip(size_of(world) // 2)]) as proxy:
        device, rollout = made(world, "flip", proxy)
        assert device.run_agent().exit_code == REBOOT_WANTED
        finish(world, device, "flip", rollout)
        found = world.operator.get(f"/rollouts/{rollout}")["assignments"][0]
        assert 0 < found["bytes_again"] <= SEGMENT_SIZE_BYTES
        assert found["bytes_fetched"] == size_of(world) + found["bytes_again"]


def test_a_link_that_falls_silent(world: World) -> None:
    with FaultProxy(world.server.url, [Stall(size_of(world) // 3)]) as proxy:
        device, rollout = made(world, "stall", proxy, network=IMPATIENT + "stall_timeout_s = 0.5")
        assert device.run_agent().exit_code == REBOOT_WANTED
        assert proxy.counts().payload_bytes == size_of(world)
        finish(world, device, "stall", rollout)


def test_a_link_that_drips_is_given_up(world: World) -> None:
    drip = "stall_timeout_s = 5.0\nrate_window_s = 0.5\nrate_bytes_s_min = 10000\nretries = 1"
    with FaultProxy(world.server.url, rate_bytes_s=400, drip=True) as proxy:
        device, _ = made(world, "drip", proxy, network=IMPATIENT + drip)
        done = device.run_agent()
        assert done.exit_code == TRANSPORT
        assert "error[transfer-stalled]" in done.stderr
        assert device.disk.record().default == "a"


def test_a_server_that_is_away_during_the_trial_condemns_nothing(world: World) -> None:
    """The health hooks decide, and the reports come later."""
    health = "timeout_s = 20.0\ndeadline_s = 2.0"
    with FaultProxy(world.server.url) as proxy:
        device, rollout = made(world, "away", proxy)
        health = f'required = ["{device.folder}/rootfs/etc/twinlock/health/required.d"]\n{health}'
        device.write_config(proxy.url, {"network": IMPATIENT + "stall_timeout_s = 5.0", "health": health})
        assert device.run_agent().exit_code == REBOOT_WANTED
        proxy.down = True
        assert device.boot().slot == "b"
        assert device.run_agent().exit_code == TRANSPORT
        assert (device.disk.record().default, device.disk.record().trying) == ("b", None)
        assert world.operator.get(f"/rollouts/{rollout}")["assignments"][0]["state"] == "armed"
        proxy.down = False
        finish(world, device, "away", rollout)
