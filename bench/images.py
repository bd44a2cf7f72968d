"""Real ext4 images of a wanted size, made from this machine's own files, kept between runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.harness import CACHE, BenchError, tool

MIB = 1024 * 1024
FILLED_SHARE = 0.7  # of the image; the rest stays free, as on a real device
# Programs, libraries and documents of the machine, in the order in which they fill an image.
SOURCES = (Path("/usr/bin"), Path("/usr/sbin"), Path("/usr/lib"), Path("/usr/share"), Path("/opt"))


def copy_files(folder: Path, bytes_max: int) -> int:
    """Copy regular files into `folder` until `bytes_max` is reached; returns the bytes copied."""
    copied = 0
    for source in SOURCES:
        for here, subfolders, names in os.walk(source):
            subfolders.sort()
            for name in sorted(names):
                path = Path(here) / name
                if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                    continue
                size = path.stat().st_size
                if copied + size > bytes_max:
                    continue
                goal = folder / path.relative_to("/")
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, goal)
                copied += size
                if copied >= bytes_max * 0.98:
                    return copied
    return copied


def real_image(size_mib: int) -> Path:
    """An ext4 image of exactly `size_mib`, some 70% full; BenchError when the machine holds too little."""
    image = CACHE / f"image-{size_mib}.ext4"
    if image.is_file() and image.stat().st_size == size_mib * MIB:
        return image
    CACHE.mkdir(parents=True, exist_ok=True)
    tree = CACHE / f"tree-{size_mib}"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    wanted = int(size_mib * MIB * FILLED_SHARE)
    copied = copy_files(tree, wanted)
    if copied < wanted * 0.5:
        raise BenchError(f"only {copied // MIB} MiB of files were found to fill a {size_mib} MiB image")
    fresh = image.with_suffix(".part")
    fresh.unlink(missing_ok=True)
    tool(["mke2fs", "-q", "-t", "ext4", "-d", tree, "-m", "0", fresh, f"{size_mib}M"])
    shutil.rmtree(tree)
    fresh.replace(image)
    return image
