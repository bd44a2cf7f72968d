"""Deltas of real images beside xdelta3, zstd --patch-from, OSTree, casync, zchunk and RAUC's way, in one run.

The pairs are Debian systems before and after security updates, and with another version of one application,
as ext4, erofs and squashfs images (`bench.pairs`). Making one takes minutes: pairs and results are kept
outside the tree (`TWINLOCK_CACHE`, else ~/.cache/twinlock), under the images' hashes and each tool's version,
so a run that was cut goes on where it was. `FRESH=1` measures anew; rows with a figure of an earlier run have
a star. CPU seconds are compared only with those of the same run: with our own encoder xdelta3
is always measured too, and with our decoder `zstd -d` of the full image, three times each in turns.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.deltas import kinds, peers
from bench.deltas.remembered import Outcome, outcome, remembered, remembered_outcome, sha256_of
from bench.deltas.together import measure_together
from bench.harness import ROOT, BenchError, Context, Measured, Row, clean_environment, measure
from bench.pairs.build import Pair, pair
from bench.pairs.tools import MissingError, cache
from twinlock.core.limits import SEGMENT_SIZE_BYTES
from twinlock.publish.delta.files.detect import map_files
from twinlock.publish.delta.images import Image

TITLE = "delta: bytes, CPU and memory of deltas of real images, beside their peers"
PAIRS = (
    ("security", "ext4"),
    ("application", "ext4"),
    ("security", "erofs"),
    ("security", "squashfs-zstd"),
    ("security", "squashfs-gzip"),
)
# Bounds on our bytes over a peer's, by pair; `best` is the smallest image-level peer.
BYTES_MAX = {
    ("security-ext4", peers.XDELTA3.name): 0.43,
    ("security-ext4", peers.RAUC.name): 0.26,
    ("security-ext4", peers.OSTREE.name): 0.75,
    ("application-ext4", peers.XDELTA3.name): 0.28,
    ("application-ext4", peers.OSTREE.name): 0.95,
    ("security-erofs", "best"): 0.60,
    ("security-squashfs-zstd", "best"): 0.40,
    ("security-squashfs-gzip", "best"): 0.40,
}
CREATE_CPU_MAX, APPLY_CPU_MAX = 3.0, 3.0
# Squashfs blocks are packed again, which takes what packing takes: shown, not bounded by unpacking.
APPLY_CPU_BOUND = ("ext4", "erofs")
DECODER_MIB_MAX, KERNEL_DECODER_MIB_MAX = 16.0, 24.0
ENCODER_MIB_MAX = 2048.0
_ROUNDS = 3  # of applying: a second or two each, and a machine is never quiet
OURS = ROOT / "bench/deltas/ours.py"
_TIMEOUT_S = peers.TIMEOUT_S
_SOURCES = ("core/payload", "core/zstd.py", "publish/delta")


@dataclass(frozen=True, slots=True)
class Result:
    """One pair: ours, where its bytes are, and the peers by name."""

    pair: Pair
    ours: Outcome
    kinds: dict[str, float]
    peers: dict[str, Outcome]


def _sources() -> str:
    """A hash of the code that makes and applies deltas: results of other code are not ours."""
    digest = hashlib.sha256(sys.version.encode())
    for name in _SOURCES:
        path = ROOT / "src/twinlock" / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _kernel_segments(image_path: Path) -> list[int]:
    """Segments that hold a kernel, which may be rebuilt from its unpacked bytes."""
    with Image(image_path) as image:
        _, files = map_files(image)
        found = set()
        for number in range(-(-len(image) // SEGMENT_SIZE_BYTES)):
            start = number * SEGMENT_SIZE_BYTES
            end = min(start + SEGMENT_SIZE_BYTES, len(image))
            named = [piece.file for piece in files.pieces(start, end) if piece.file]
            if any(file.path.startswith("boot/vmlinuz") for file in named):
                found.add(number)
    return sorted(found)


def ours(one: Pair, workdir: Path) -> tuple[Outcome, dict[str, float]]:
    """What our encoder and decoder make of a pair, beside the yardsticks; the image is compared."""
    key: list[object] = [_sources(), sha256_of(one.old), sha256_of(one.new)]
    kept = cache() / "pairs/deltas"
    kept.mkdir(parents=True, exist_ok=True)
    delta = kept / f"{one.name}.payload"

    def make() -> Outcome:
        env = _environment()
        argv: list[str | Path] = [sys.executable, OURS, "encode", one.old, one.new, delta]
        created, together_mib = measure_together(argv, env=env, timeout_s=_TIMEOUT_S)
        xdelta3 = peers.run(peers.XDELTA3, one, workdir, fresh=True)
        applied, more = _applied(one, delta, workdir, env)
        more["create_together_mib"] = together_mib
        more["xdelta3_create_cpu_s"] = xdelta3.create_cpu_s
        more["load"] = os.getloadavg()[1]
        return outcome(delta.stat().st_size, created, applied, **more)

    found = remembered_outcome(f"ours-{one.name}", key, make)
    where = remembered(
        f"kinds-{one.name}", [*key, found.size_bytes], lambda: dict(kinds.remaining(delta, one.old, one.new))
    )
    return found, {name: float(str(size)) for name, size in where.items()}


def _environment() -> dict[str, str]:
    """Modules are compiled once and kept, as they are on a device; not in the tree."""
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(cache() / "compiled")}
    env = clean_environment() | compiled | {"PYTHONPATH": str(ROOT / "src")}
    measure([sys.executable, OURS, "idle"], env=env)
    return env


def _applied(one: Pair, delta: Path, workdir: Path, env: dict[str, str]) -> tuple[Measured, dict[str, float]]:
    """Our decoder and `zstd -d` of the full image in turns, each the median of its runs by CPU."""
    peers.pack_full(one, workdir)
    ours_runs, full_runs = [], []
    for _ in range(_ROUNDS):
        ours_runs.append(_apply(one, delta, workdir / "made", env))
        full_runs.append(peers.unpack_full(one, workdir).cpu_s)
    (workdir / "packed").unlink()
    applied, more = sorted(ours_runs, key=lambda run: run[0].cpu_s)[_ROUNDS // 2]
    more["full_apply_cpu_s"] = sorted(full_runs)[_ROUNDS // 2]
    return applied, more


def _apply(one: Pair, delta: Path, made: Path, env: dict[str, str]) -> tuple[Measured, dict[str, float]]:
    """Our decoder, and what is known of it beyond CPU and memory of the whole."""
    env = env | {"LATER": ",".join(map(str, _kernel_segments(one.new)))}
    applied = measure([sys.executable, OURS, "apply", one.old, delta, made], env=env, timeout_s=_TIMEOUT_S)
    if not filecmp.cmp(one.new, made, shallow=False):
        raise BenchError(f"{delta} does not give {one.new}")
    made.unlink()
    early_kib, late_kib, early_cpu_s, late_cpu_s, packing_cpu_s = map(float, applied.stdout.split()[-5:])
    bare = measure([sys.executable, OURS, "idle"], env=env).peak_rss_mib
    return applied, {
        "decoder_mib": early_kib / 1024 - bare,
        "kernel_decoder_mib": late_kib / 1024 - bare,
        "userland_cpu_s": early_cpu_s,
        "kernel_cpu_s": late_cpu_s,
        "packing_cpu_s": packing_cpu_s,
    }


def run(ctx: Context) -> list[Row]:
    try:
        return [row for kind, form in PAIRS for row in _rows(_one(ctx, pair(kind, form)))]
    except MissingError as problem:
        raise BenchError(str(problem)) from problem


def _one(ctx: Context, one: Pair) -> Result:
    found, where = ours(one, ctx.workdir)
    ctx.note(f"{one.name} ours: {found.size_bytes:,} bytes ({found.measured_at})")
    others = {}
    for peer in (*peers.IMAGES, *((peers.OSTREE,) if one.name.endswith("ext4") else ())):
        # FRESH=1 has just measured it
        fresh = False if peer is peers.XDELTA3 and not found.kept else None
        others[peer.name] = made = peers.run(peer, one, ctx.workdir, fresh=fresh)
        ctx.note(f"{one.name} {peer.name}: {made.size_bytes:,} bytes ({made.measured_at})")
    return Result(one, found, where, others)


def _rows(result: Result) -> list[Row]:
    return [*_bytes_rows(result), *_kinds_rows(result), *_cpu_rows(result), *_memory_rows(result)]


def _bytes_rows(result: Result) -> list[Row]:
    name, own = result.pair.name, result.ours
    rows = []
    for peer, made in result.peers.items():
        bound = BYTES_MAX.get((name, peer))
        kept = own.kept or made.kept
        rows.append(Row(f"{name}: bytes", "B", own.size_bytes, peer, made.size_bytes, bound, kept=kept))
    images = {peer: made for peer, made in result.peers.items() if peer != peers.OSTREE.name}
    best = min(images, key=lambda peer: images[peer].size_bytes)
    if (name, "best") in BYTES_MAX:
        bound, made = BYTES_MAX[name, "best"], images[best]
        peer = f"the best: {best}"
        kept = own.kept or made.kept
        rows.append(Row(f"{name}: bytes", "B", own.size_bytes, peer, made.size_bytes, bound, kept=kept))
    return rows


def _kinds_rows(result: Result) -> list[Row]:
    name, kept = result.pair.name, result.ours.kept
    kernel = sum(size for kind, size in result.kinds.items() if kind in kinds.KERNEL_KINDS)
    rest = result.ours.size_bytes - kernel
    rows = [
        Row(f"{name}: kernel and its modules", "B", kernel, kept=kept),
        Row(f"{name}: userland, tables, index", "B", rest, kept=kept),
    ]
    found = result.kinds.items()
    return rows + [Row(f"{name}: remaining in {kind}", "B", size, kept=kept) for kind, size in found]


def _cpu_rows(result: Result) -> list[Row]:
    """Bounds on figures of one run alone; those of other runs are only shown."""
    name, own = result.pair.name, result.ours
    create, apply = f"{name}: CPU to create", f"{name}: CPU to apply"
    full = "zstd -d of the full image"
    bound = APPLY_CPU_MAX if name.partition("-")[2] in APPLY_CPU_BOUND else None
    beside = own.more["xdelta3_create_cpu_s"], own.more["full_apply_cpu_s"]
    kept, xdelta3 = own.kept, peers.XDELTA3.name
    rows = [
        Row(create, "s", own.create_cpu_s, f"{xdelta3}, same run", beside[0], CREATE_CPU_MAX, kept=kept),
        Row(apply, "s", own.apply_cpu_s, f"{full}, same run", beside[1], bound, kept=kept),
        Row(
            f"{apply}: segments without a kernel", "s", own.more["userland_cpu_s"], full, beside[1], kept=kept
        ),
        Row(f"{apply}: segments of the kernel", "s", own.more["kernel_cpu_s"], full, beside[1], kept=kept),
        Row(f"{apply}: of both, packing again", "s", own.more["packing_cpu_s"], full, beside[1], kept=kept),
    ]
    if "load" in own.more:
        load = own.more["load"]
        rows.append(Row(f"{name}: load of the machine meanwhile", "processes", load, kept=own.kept))
    for peer, made in result.peers.items():
        kept = own.kept or made.kept
        rows.append(Row(create, "s", own.create_cpu_s, peer, made.create_cpu_s, kept=kept))
        if made.apply_cpu_s is not None:
            rows.append(Row(apply, "s", own.apply_cpu_s, peer, made.apply_cpu_s, kept=kept))
    return rows


def _memory_rows(result: Result) -> list[Row]:
    name, own = result.pair.name, result.ours
    rows = []
    for peer, made in result.peers.items():
        kept = own.kept or made.kept
        rows.append(Row(f"{name}: memory to create", "MiB", own.create_mib, peer, made.create_mib, kept=kept))
        if made.apply_mib is not None:
            rows.append(
                Row(f"{name}: memory to apply", "MiB", own.apply_mib, peer, made.apply_mib, kept=kept)
            )
    kept, more = own.kept, own.more
    figure, together_mib = f"{name}: memory to create, all processes", more["create_together_mib"]
    rows.append(Row(figure, "MiB", together_mib, bound=ENCODER_MIB_MAX, kept=kept))
    decoder, rebuilding = more["decoder_mib"], more["kernel_decoder_mib"]
    figure = f"{name}: decoder beyond the interpreter"
    rows.append(Row(figure, "MiB", decoder, bound=DECODER_MIB_MAX, kept=kept))
    if name.endswith("ext4"):
        figure, bound = f"{name}: decoder with the kernel rebuilt", KERNEL_DECODER_MIB_MAX
        rows.append(Row(figure, "MiB", rebuilding, bound=bound, kept=kept))
    return rows
