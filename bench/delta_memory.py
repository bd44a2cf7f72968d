"""What encoding a delta of a 4 GiB pair holds in memory, all processes together.

Two ext4 images of 4 GiB, each with eight copies of the security pair's tree (`bench.pairs`); in the newer one
`CHANGED` of them have the updates. Nothing of it is kept: it takes up to 12 GB of the disk while it runs, and
some minutes.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bench.deltas.together import measure_together
from bench.harness import ROOT, BenchError, Context, Row, clean_environment
from bench.pairs import build, images
from bench.pairs.tools import MissingError

TITLE = "delta_memory: memory of encoding a delta of a 4 GiB pair, all processes together"
COPIES, CHANGED = 8, 2
SIZE_MIB = 4096
ENCODER_MIB_MAX = 2048.0
_TIMEOUT_S = 4 * 3600.0


def run(ctx: Context) -> list[Row]:
    old, new = ctx.workdir / "old", ctx.workdir / "new"
    try:
        _image(ctx, ["old"] * COPIES, old)
        _image(ctx, ["old"] * (COPIES - CHANGED) + ["new"] * CHANGED, new)
    except MissingError as problem:
        raise BenchError(str(problem)) from problem
    delta = ctx.workdir / "delta"
    argv: list[str | Path] = [sys.executable, ROOT / "bench/deltas/ours.py", "encode", old, new, delta]
    env = clean_environment() | {"PYTHONPATH": str(ROOT / "src")}
    made, together_mib = measure_together(argv, env=env, timeout_s=_TIMEOUT_S)
    ctx.note(f"{delta.stat().st_size:,} bytes in {made.wall_s:.0f} s")
    return [
        Row("4 GiB pair: memory to create, all processes", "MiB", together_mib, bound=ENCODER_MIB_MAX),
        Row("4 GiB pair: memory to create, the largest process", "MiB", made.peak_rss_mib),
        Row("4 GiB pair: CPU to create", "s", made.cpu_s),
        Row("4 GiB pair: bytes", "B", delta.stat().st_size),
    ]


def _image(ctx: Context, trees: list[str], image: Path) -> None:
    """An image of copies of the trees, each in a folder of its own; the copies are removed again."""
    whole = ctx.workdir / "tree"
    for number, name in enumerate(trees):
        shutil.copytree(build.tree(name), whole / f"system{number}", symlinks=True)
    images.build_ext4(whole, image, SIZE_MIB)
    shutil.rmtree(whole)
    ctx.note(f"{image.name}: {image.stat().st_size:,} bytes")
