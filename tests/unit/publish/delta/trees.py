"""Two file trees with what updates bring, and the images that the real tools make of them."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

from tests.unit.publish.delta.elves import Build
from twinlock.core.payload.libraries import lz4_pack

EPOCH = 1_767_225_600
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
GROWN = frozenset({5, 60, 61, 130})
MODULES = 6


def text(rng: random.Random, size_bytes: int) -> bytes:
    words = [rng.randbytes(rng.randrange(2, 7)).hex().encode() for _ in range(300)]
    return b" ".join(rng.choices(words, k=size_bytes // 6))[:size_bytes]


def edited(data: bytes, rng: random.Random) -> bytes:
    """A few places changed, a piece put in near the front, so that all behind it moves."""
    out = bytearray(data)
    for _ in range(5):
        at = rng.randrange(len(out))
        out[at : at + 8] = rng.randbytes(8)
    out[100:100] = rng.randbytes(333)
    return bytes(out)


def make_trees(folder: Path, seed: int = 1) -> tuple[Path, Path]:
    """`folder`/old and `folder`/new."""
    rng = random.Random(seed)
    old, new = folder / "old", folder / "new"
    shared = {
        "etc/hostname": b"device\n",
        "usr/share/words": text(rng, 300_000),
        "usr/share/empty": b"",
        "usr/share/noise.bin": rng.randbytes(200_000),
        "usr/share/tail": text(rng, 4096 * 3 + 17),
    }
    for name, data in shared.items():
        for tree in (old, new):
            _write(tree / name, data)
    page = text(rng, 400_000)
    _write(old / "usr/share/page", page)
    _write(new / "usr/share/page", edited(page, rng))
    _write(old / "usr/bin/tool", Build(seed=3).elf())
    _write(new / "usr/bin/tool", Build(seed=3, grown=GROWN).elf())
    for number in range(MODULES):
        module = text(rng, 60_000)
        _write(old / f"usr/lib/modules/6.1.0-50/drivers/m{number}.ko", module)
        _write(new / f"usr/lib/modules/6.1.0-56/drivers/m{number}.ko", edited(module, rng))
    library = text(rng, 150_000)
    _write(old / "usr/lib/libdemo.so.1.2", library)
    _write(new / "usr/lib/libdemo.so.1.3", edited(library, rng))
    (new / "usr/lib/libdemo.so.1").symlink_to("libdemo.so.1.3")
    sparse = bytearray(900_000)
    sparse[500_000:500_100] = rng.randbytes(100)
    _write(new / "usr/share/sparse", bytes(sparse))
    _write(new / "usr/share/added", text(rng, 50_000))
    for tree in (old, new):
        for path in (tree, *tree.rglob("*")):
            os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    return old, new


def make_kernels(folder: Path) -> tuple[Path, Path]:
    """Two trees with kernels in the form of Debian's cloud ones: a boot header, and an LZ4 block."""
    old, new = folder / "old", folder / "new"
    before = Build(seed=4, kernel=True).elf()
    after = Build(seed=4, kernel=True, grown=GROWN).elf()
    rng = random.Random(8)
    rest = rng.randbytes(1_100_000)
    for tree, version, elf in ((old, "6.1.0-50", before), (new, "6.1.0-56", after)):
        _write(tree / f"boot/vmlinuz-{version}", bzimage(elf + rest))
    return old, new


def bzimage(plain: bytes) -> bytes:
    packed = lz4_pack(bytearray(plain), 0, 0, len(plain), 9)
    assert packed is not None
    payload = b"\x02\x21\x4c\x18" + struct.pack("<I", len(packed)) + packed + struct.pack("<I", len(plain))
    head = bytearray(5 * 512)
    head[0x1F1] = 4
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload + gzip.compress(b"trailer", mtime=0)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def build(tree: Path, image: Path, form: str) -> None:
    """The image of a tree: ext4, erofs, squashfs-gzip or squashfs-zstd."""
    if form == "ext4":
        uuid = "6a9b1c52-7f37-4f3e-9d7e-2c5d1e0f8a11"
        argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", uuid, "-d", str(tree)]
        argv += ["-E", f"hash_seed={uuid},root_owner=0:0", "-O", "^has_journal", str(image), "16M"]
    elif form == "erofs":
        argv = ["mkfs.erofs", "-U", "6a9b1c52-7f37-4f3e-9d7e-2c5d1e0f8a11", f"-T{EPOCH}", "--quiet"]
        argv += [str(image), str(tree)]
    else:
        argv = ["mksquashfs", str(tree), str(image), "-comp", form.partition("-")[2], "-b", "128K"]
        argv += ["-noappend", "-quiet", "-no-progress", "-processors", "1", "-all-time", str(EPOCH)]
    image.unlink(missing_ok=True)
    done = subprocess.run(
        argv,
        env={"PATH": PATH, "E2FSPROGS_FAKE_TIME": str(EPOCH), "SOURCE_DATE_EPOCH": str(EPOCH)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode and form.startswith("squashfs"):
        argv = argv[: argv.index("-all-time")]
        done = subprocess.run(argv, env={"PATH": PATH, "SOURCE_DATE_EPOCH": str(EPOCH)}, capture_output=True)
    assert done.returncode == 0, (argv, done.stderr[-500:], shutil.which(argv[0], path=PATH))
