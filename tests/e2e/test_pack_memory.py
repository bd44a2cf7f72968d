"""Packing needs the same memory for a small image and for a large one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from twinlock.core.limits import GIB, MIB

SMALL, LARGE = 64 * MIB, GIB
GROWTH_MAX = 1.10

SCRIPT = """
import resource, sys
from twinlock.cli.main import main
code = main(sys.argv[1:])
sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
sys.exit(code)
"""


def write_image(path: Path, size_bytes: int) -> None:
    """Text and noise in turns, each segment another; no holes and no zero segments."""
    text = b"two slots, one lock; " * (MIB // 2 // 21)
    with path.open("wb") as file:
        for number in range(size_bytes // MIB):
            noise = hashlib.shake_128(number.to_bytes(4, "little")).digest(MIB // 8)
            file.write((noise + text).ljust(MIB, b"%d" % (number % 10)))


def peak_kib(folder: Path, size_bytes: int) -> int:
    write_image(folder / "image", size_bytes)
    command = ["release", "pack", str(folder / "image"), "--product", "demo", "--version", "1.0"]
    command += ["--hardware", "board", "--level", "1", "--jobs", "2", "--out", str(folder / "out"), "--json"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image_size_bytes"] == size_bytes
    return int(done.stderr)


def test_peak_memory_is_flat(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    peaks = {size: peak_kib(folder, size) for folder, size in ((small, SMALL), (large, LARGE))}
    print(f"peak memory: {peaks[SMALL]} KiB for 64 MiB, {peaks[LARGE]} KiB for 1 GiB")
    assert peaks[LARGE] <= peaks[SMALL] * GROWTH_MAX
    (large / "image").unlink()
