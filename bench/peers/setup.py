"""What the peers share: slots on loop devices and a throwaway certificate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.harness import BenchError, tool


@contextmanager
def loop_slot(path: Path, size_bytes: int) -> Iterator[Path]:
    """A loop device over a fresh sparse file of this size; root only."""
    if os.geteuid() != 0:
        raise BenchError("the peers install to loop devices, which needs root")
    with path.open("wb") as file:
        file.truncate(size_bytes)
    device = Path(tool(["losetup", "--find", "--show", path]).strip())
    try:
        yield device
    finally:
        tool(["losetup", "--detach", device])


@contextmanager
def loop_slots(workdir: Path, size_bytes: int, count: int) -> Iterator[list[Path]]:
    with ExitStack() as stack:
        yield [stack.enter_context(loop_slot(workdir / f"slot{n}.bin", size_bytes)) for n in range(count)]


def certificate(folder: Path, name: str = "signer") -> tuple[Path, Path]:
    """(key, self-signed certificate) for signing, with the usage that SWUpdate asks for (emailProtection)."""
    folder.mkdir(parents=True, exist_ok=True)
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"
    argv: list[str | Path] = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
    argv += ["-keyout", key, "-out", cert, "-subj", f"/O=bench/CN={name}"]
    argv += ["-addext", "extendedKeyUsage=emailProtection", "-addext", "basicConstraints=critical,CA:TRUE"]
    tool(argv)
    return key, cert


def drop_caches(path: Path) -> None:
    """Let the page cache forget a file, so that every round reads it anew. Also writes what is pending."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
