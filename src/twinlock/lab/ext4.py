"""Making and reading ext4 images with Debian's e2fsprogs: no root, nothing mounted.

Images are reproducible: fixed UUID, directory hash seed and times, every table written out, and owner and
change time of each inode set afterwards, since `mke2fs -d` copies those from the host's files.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import uuid
from pathlib import Path
from typing import Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error

SYSTEM_PATH: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # often missing from a user's PATH
EPOCH_S: Final = 1_767_225_600  # 2026-01-01: the time of everything in an image
TOOL_TIMEOUT_S: Final = 120
_UUID: Final = uuid.UUID("7b1d0b5e-2d5f-4b5e-9a39-74776c6f636b")
_HASH_SEED: Final = uuid.UUID("0d9a6c5e-9a0b-4f0e-8f5d-74776c6f636b")

_SUPERBLOCK_OFFSET_BYTES: Final = 1024
_SUPERBLOCK_SIZE_BYTES: Final = 1024
_MAGIC_OFFSET_BYTES: Final = 56
_MAGIC: Final = 0xEF53


def find_tool(name: str) -> str:
    """Where `mke2fs`, `debugfs` or `e2fsck` is. Raises DeviceError `package-missing`."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_PATH])
    found = shutil.which(name, path=path)
    if found is None:
        raise error("package-missing", f"{name} is not installed", hint="install the package e2fsprogs")
    return found


def _run(argv: list[str], what: str, *, stdin: bytes = b"") -> bytes:
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(EPOCH_S), "LC_ALL": "C", "MKE2FS_SYNC": "0"}
    with os_errors(what):
        done = subprocess.run(argv, input=stdin, env=environment, capture_output=True, timeout=TOOL_TIMEOUT_S)
    if done.returncode:
        words = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise error("io-error", f"{what}: {words[-1] if words else f'exit code {done.returncode}'}")
    return done.stdout


def make(tree: Path, image: Path, size_bytes: int) -> None:
    """Writes an ext4 image of `size_bytes` (a multiple of 4096) that holds `tree`, owned by root.

    The same tree gives the same bytes, whoever runs it and whenever. Raises InputError
    `input-invalid`, or DeviceError `io-error` with mke2fs's words, for a tree that does not fit too.
    """
    image.unlink(missing_ok=True)
    try:
        _run(
            [
                find_tool("mke2fs"),
                *("-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0"),
                *("-O", "^has_journal,^resize_inode,^metadata_csum_seed", "-U", str(_UUID)),
                *("-E", f"hash_seed={_HASH_SEED},lazy_itable_init=0,root_owner=0:0,nodiscard"),
                *("-d", str(tree), str(image), f"{size_bytes // 1024}k"),
            ],
            f"making {image}",
        )
    except Exception:
        image.unlink(missing_ok=True)
        raise
    _settle_inodes(tree, image)


def _settle_inodes(tree: Path, image: Path) -> None:
    lines = []
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if '"' in name or "\n" in name:
            raise error("input-invalid", f"a file name in an image must not have quotes: {name!r}")
        for field, value in (("uid", 0), ("gid", 0), ("atime", f"@{EPOCH_S}"), ("ctime", f"@{EPOCH_S}")):
            lines.append(f'set_inode_field "/{name}" {field} {value}\n')
    _run(
        [find_tool("debugfs"), "-w", "-f", "-", str(image)],
        f"settling the times of {image}",
        stdin="".join(lines).encode(),
    )


def is_ext4(data: bytes) -> bool:
    """Whether `data`, the first 2 KiB or more of a slot, begins an ext2, ext3 or ext4 file system."""
    end = _SUPERBLOCK_OFFSET_BYTES + _SUPERBLOCK_SIZE_BYTES
    if len(data) < end:
        return False
    (magic,) = struct.unpack_from("<H", data, _SUPERBLOCK_OFFSET_BYTES + _MAGIC_OFFSET_BYTES)
    return bool(magic == _MAGIC)


def extract(image: Path, inside: str, folder: Path, *, offset_bytes: int = 0) -> bool:
    """Copies the file or folder `inside` (absolute, within the image) to `folder`, which exists.

    Reads the file system at `offset_bytes` of `image`; ownership is not copied. Returns whether anything
    was there. `debugfs` reports a missing name only in words, so what it left on the disk is the answer.
    """
    result = folder / Path(inside).name
    where = f"{image}?offset={offset_bytes}" if offset_bytes else str(image)
    _run(
        [find_tool("debugfs"), "-R", f'rdump "{inside}" "{folder}"', where],
        f"reading {inside} out of {image}",
    )
    return result.exists()
