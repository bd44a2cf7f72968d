"""The agent beside SWUpdate and RAUC, in one run: start-up, installing and packing, by size of the image.

The peers install from a local file to a loop device. Ours does its whole job: poll and metadata over HTTP
from a real server on loopback, parts by range, the slot read back, the boot record armed. Images are real
file systems, the same for all. RAUC's figure is its service and its client; SWUpdate's one process. All
compress with zstd at level 3; that packing's memory stays flat at our default level is shown on the two
smaller images.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bench import fleet
from bench.harness import CACHE, Context, Measured, Row, interleave, measure, median
from bench.peers import rauc, swupdate
from bench.peers.setup import drop_caches, loop_slots
from twinlock.core.limits import MIB
from twinlock.lab import images

TITLE = "agent: start-up, memory and CPU by image size, beside SWUpdate and RAUC"
SIZES_MIB = (64, 256, 1024)
FLAT_RATIO_MAX = 1.10  # peak memory at the largest size over that at the smallest
START_ROUNDS = 9
PACK_LEVEL = 3  # as the peers' bundles
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Figure:
    """One column of a measurement: its name, unit, and how to read it."""

    name: str
    unit: str
    read: Callable[[Measured], float]


CPU = Figure("CPU", "s", lambda used: used.cpu_s)
PEAK = Figure("peak memory", "MiB", lambda used: used.peak_rss_mib)
OWN_PEAK = Figure("peak memory", "MiB", lambda used: used.own_peak_rss_mib)

Results = dict[str, list[Measured]]


def beside(
    what: str, figure: Figure, ours: list[Measured], peers: Results, peer_figure: Figure | None = None
) -> list[Row]:
    """One row for each peer; one without a peer when there is none."""
    read = (peer_figure or figure).read
    name, own = f"{what}: {figure.name}", [figure.read(used) for used in ours]
    value = median(ours, figure.read)
    rows = []
    for peer, results in peers.items():
        raw = {"ours": own, "peer": [read(used) for used in results]}
        rows.append(Row(name, figure.unit, value, peer, median(results, read), raw=raw))
    return rows or [Row(name, figure.unit, value, raw={"ours": own})]


def flat(what: str, figure: Figure, by_size: dict[int, list[Measured]]) -> Row:
    """The bound on memory: the largest image against the smallest."""
    small, large = min(by_size), max(by_size)
    ratio = median(by_size[large], figure.read) / median(by_size[small], figure.read)
    return Row(f"{what}: {figure.name}, {large} MiB / {small} MiB", "ratio", ratio, bound=FLAT_RATIO_MAX)


def start_up() -> list[Row]:
    commands: dict[str, list[str | Path]] = {
        "twinlock-agent --version": [BIN / "twinlock-agent", "--version"],
        "twinlock-agent --help": [BIN / "twinlock-agent", "--help"],
        swupdate.NAME: ["swupdate", "--version"],
        rauc.NAME: ["rauc", "--version"],
    }

    def job(name: str) -> Callable[[], Measured]:
        return lambda: measure(commands[name])

    results = interleave({name: job(name) for name in commands}, START_ROUNDS, lambda line: None)
    peers = {swupdate.version(): results[swupdate.NAME], rauc.version(): results[rauc.NAME]}
    rows = []
    for name in ("twinlock-agent --version", "twinlock-agent --help"):
        rows += beside(name, CPU, results[name], peers) + beside(name, PEAK, results[name], peers)
    return rows


@dataclass(frozen=True, slots=True)
class Sized:
    """What one size of image gave: installs, a poll without work, packing, and the peers."""

    ours: list[Measured]
    polls: list[Measured]
    packed: list[Measured]
    peers: Results
    peers_packed: Results


def spoil(slot: Path) -> None:
    """Leave no segment of an image in a slot, and nothing of it in the page cache."""
    with slot.open("r+b") as file:
        for offset in range(0, file.seek(0, os.SEEK_END), MIB):
            os.pwrite(file.fileno(), b"\xff" * 4096, offset)
    drop_caches(slot)


def image_of(size_mib: int) -> tuple[str, Path]:
    """(version, image) of this size; built once and kept."""
    recipe = images.Recipe(f"1.{size_mib}", 0, product=fleet.PRODUCT, size_bytes=size_mib * MIB)
    return recipe.version, images.build(recipe, CACHE)


def pack_default(own: fleet.Fleet, size_mib: int) -> Measured:
    """Packing as a user does it who names no level."""
    version, image = image_of(size_mib)
    return own.pack(image, f"{version}-default")[1]


def one_size(ctx: Context, own: fleet.Fleet, size_mib: int) -> Sized:
    """Every installer on one image, in turns, each to a slot that holds nothing of it; and the packers."""
    version, image = image_of(size_mib)
    folder = ctx.workdir / str(size_mib)
    folder.mkdir()
    with loop_slots(folder, size_mib * MIB, 2) as slots:
        release, packed = own.pack(image, version, PACK_LEVEL)
        own.publish(release)
        swu = swupdate.prepare(folder / "swupdate", image, slots[1])
        bundle = rauc.prepare(folder / "rauc", image, slots)
        devices = count()
        polls: list[Measured] = []

        def ours() -> Measured:
            device, device_id = own.device(folder / f"device{next(devices)}", slots)
            polls.append(device.poll())
            own.assign(version, device_id)
            spoil(slots[1])
            return device.install()

        def swupdates() -> Measured:
            spoil(slots[1])
            return swupdate.install(swu)

        def raucs() -> Measured:
            spoil(slots[1])
            return rauc.install(bundle)

        jobs = {"ours": ours, swupdate.version(): swupdates, rauc.version(): raucs}
        results = interleave(jobs, ctx.rounds, lambda line: ctx.note(f"{size_mib} MiB, {line}"))
    return Sized(results.pop("ours"), polls, [packed], results, {rauc.version(): [bundle.packed]})


def run(ctx: Context) -> list[Row]:
    rows = start_up()
    sized: dict[int, Sized] = {}
    with fleet.fleet(ctx.workdir / "fleet") as own:
        for size_mib in SIZES_MIB:
            sized[size_mib] = one_size(ctx, own, size_mib)
        default_level = {size: [pack_default(own, size)] for size in SIZES_MIB[:2]}
    polls = [poll for got in sized.values() for poll in got.polls]
    rows += beside("poll without work", CPU, polls, {}) + beside("poll without work", PEAK, polls, {})
    for size_mib, got in sized.items():
        what, pack = f"install {size_mib} MiB", f"pack {size_mib} MiB at level {PACK_LEVEL}"
        rows += beside(f"{what}, process that writes", OWN_PEAK, got.ours, got.peers, PEAK)
        rows += beside(f"{what}, largest process", PEAK, got.ours, got.peers)
        rows += beside(f"{what}, all processes", CPU, got.ours, got.peers)
        rows += beside(pack, PEAK, got.packed, got.peers_packed)
        rows += beside(pack, CPU, got.packed, got.peers_packed)
    installs = {size: got.ours for size, got in sized.items()}
    rows.append(flat("install, process that writes", OWN_PEAK, installs))
    rows.append(flat("install, largest process", PEAK, installs))
    rows.append(flat(f"pack at level {PACK_LEVEL}", PEAK, {size: got.packed for size, got in sized.items()}))
    rows.append(flat("pack at the default level", PEAK, default_level))
    return rows
