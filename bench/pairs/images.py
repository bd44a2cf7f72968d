"""Images of a file tree, bit for bit the same however often they are built."""

from __future__ import annotations

from pathlib import Path

from bench.pairs.tools import EPOCH, need, run

UUID = "6a9b1c52-7f37-4f3e-9d7e-2c5d1e0f8a11"
EXT4_SIZE_MIB = 512


def build_ext4(tree: Path, image: Path, size_mib: int = EXT4_SIZE_MIB) -> None:
    """ext4 of `size_mib` with 4 KiB blocks."""
    need("mke2fs")
    partial = image.with_name(image.name + ".partial")
    partial.unlink(missing_ok=True)
    options = f"hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    argv: list[str | Path] = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", UUID, "-E", options]
    run([*argv, "-d", tree, partial, f"{size_mib}M"], env={"E2FSPROGS_FAKE_TIME": str(EPOCH)})
    partial.rename(image)


def build_squashfs(tree: Path, image: Path, compressor: str) -> None:
    """squashfs with 128 KiB blocks, compressed by `compressor` (zstd or gzip)."""
    need("mksquashfs")
    partial = image.with_name(image.name + ".partial")
    partial.unlink(missing_ok=True)
    argv: list[str | Path] = ["mksquashfs", tree, partial, "-comp", compressor, "-b", "128K", "-noappend"]
    run([*argv, "-quiet", "-no-progress", "-processors", "1"])
    partial.rename(image)


def build_erofs(tree: Path, image: Path) -> None:
    """erofs, uncompressed."""
    need("mkfs.erofs")
    partial = image.with_name(image.name + ".partial")
    partial.unlink(missing_ok=True)
    run(["mkfs.erofs", "-U", UUID, f"-T{EPOCH}", "--quiet", partial, tree])
    partial.rename(image)
