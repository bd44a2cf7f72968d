"""Deltas of real images beside xdelta3, zstd --patch-from, OSTree, casync, zchunk and RAUC's way, in one run.

The pairs are Debian systems before and after security updates, and with another version of one application,
as ext4, erofs and squashfs images (`bench.pairs`). Making one takes minutes: pairs and results are kept
outside the tree (`TWINLOCK_CACHE`, else ~/.cache/twinlock), under the images' hashes and each tool's version.
`FRESH=1` measures anew; what is said on the way names the time that a figure is from.
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
from bench.harness import ROOT, BenchError, Context, Row, measure
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
DECODER_MIB_MAX, KERNEL_DECODER_MIB_MAX = 16.0, 24.0
ENCODER_MIB_MAX = 2048.0
OURS = ROOT / "bench/deltas/ours.py"
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
    """What our encoder and decoder make of a pair; the image is compared."""
    key: list[object] = [_sources(), sha256_of(one.old), sha256_of(one.new)]
    kept = cache() / "pairs/deltas"
    kept.mkdir(parents=True, exist_ok=True)
    delta = kept / f"{one.name}.payload"

    def make() -> Outcome:
        made = workdir / "made"
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        created = measure([sys.executable, OURS, "encode", one.old, one.new, delta], env=env)
        env["LATER"] = ",".join(map(str, _kernel_segments(one.new)))
        applied = measure([sys.executable, OURS, "apply", one.old, delta, made], env=env)
        if not filecmp.cmp(one.new, made, shallow=False):
            raise BenchError(f"{delta} does not give {one.new}")
        made.unlink()
        early, late = (int(word) / 1024 for word in applied.stdout.split()[-2:])
        bare = measure([sys.executable, OURS, "idle"], env=env).peak_rss_mib
        return outcome(
            delta.stat().st_size, created, applied, decoder_mib=early - bare, kernel_decoder_mib=late - bare
        )

    found = remembered_outcome(f"ours-{one.name}", key, make)
    where = remembered(
        f"kinds-{one.name}", [*key, found.size_bytes], lambda: dict(kinds.remaining(delta, one.old, one.new))
    )
    return found, {name: float(str(size)) for name, size in where.items()}


def run(ctx: Context) -> list[Row]:
    try:
        results = [_one(ctx, pair(kind, form)) for kind, form in PAIRS]
        full = peers.run(peers.FULL, results[0].pair, ctx.workdir)
    except MissingError as problem:
        raise BenchError(str(problem)) from problem
    rows = [row for result in results for row in _rows(result)]
    rows.append(
        Row(
            "security-ext4: CPU to apply",
            "s",
            results[0].ours.apply_cpu_s,
            "zstd -d of the full image",
            full.apply_cpu_s,
            APPLY_CPU_MAX,
        )
    )
    return rows


def _one(ctx: Context, one: Pair) -> Result:
    found, where = ours(one, ctx.workdir)
    ctx.note(f"{one.name} ours: {found.size_bytes:,} bytes ({found.measured_at})")
    others = {}
    for peer in (*peers.IMAGES, *((peers.OSTREE,) if one.name.endswith("ext4") else ())):
        others[peer.name] = made = peers.run(peer, one, ctx.workdir)
        ctx.note(f"{one.name} {peer.name}: {made.size_bytes:,} bytes ({made.measured_at})")
    return Result(one, found, where, others)


def _rows(result: Result) -> list[Row]:
    name, own = result.pair.name, result.ours
    rows = []
    for peer, made in result.peers.items():
        bound = BYTES_MAX.get((name, peer))
        rows.append(Row(f"{name}: bytes", "B", own.size_bytes, peer, made.size_bytes, bound))
    images = {peer: made for peer, made in result.peers.items() if peer != peers.OSTREE.name}
    best = min(images, key=lambda peer: images[peer].size_bytes)
    if (name, "best") in BYTES_MAX:
        bound = BYTES_MAX[name, "best"]
        size = images[best].size_bytes
        rows.append(Row(f"{name}: bytes", "B", own.size_bytes, f"the best: {best}", size, bound))
    kernel = sum(size for kind, size in result.kinds.items() if kind in kinds.KERNEL_KINDS)
    rows.append(Row(f"{name}: kernel and its modules", "B", kernel))
    rows.append(Row(f"{name}: userland, tables, index", "B", own.size_bytes - kernel))
    rows += [Row(f"{name}: remaining in {kind}", "B", size) for kind, size in result.kinds.items()]
    for peer, made in result.peers.items():
        bound = CREATE_CPU_MAX if peer == peers.XDELTA3.name else None
        rows.append(Row(f"{name}: CPU to create", "s", own.create_cpu_s, peer, made.create_cpu_s, bound))
        rows.append(Row(f"{name}: memory to create", "MiB", own.create_mib, peer, made.create_mib))
        if made.apply_cpu_s is not None:
            rows.append(Row(f"{name}: CPU to apply", "s", own.apply_cpu_s, peer, made.apply_cpu_s))
            rows.append(Row(f"{name}: memory to apply", "MiB", own.apply_mib, peer, made.apply_mib))
    rows.append(Row(f"{name}: memory to create", "MiB", own.create_mib, bound=ENCODER_MIB_MAX))
    more = own.more
    decoder, rebuilding = more["decoder_mib"], more["kernel_decoder_mib"]
    rows.append(Row(f"{name}: decoder beyond the interpreter", "MiB", decoder, bound=DECODER_MIB_MAX))
    if name.endswith("ext4"):
        bound = KERNEL_DECODER_MIB_MAX
        rows.append(Row(f"{name}: decoder with the kernel rebuilt", "MiB", rebuilding, bound=bound))
    return rows
