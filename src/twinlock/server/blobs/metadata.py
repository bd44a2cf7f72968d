"""The signed repository in a folder: `metadata/NAME.json` and `targets/PRODUCT/SHA256.VERSION.manifest`.

Each write is durable when it returns (see `twinlock.core.durable`); in which order they must happen is the
publication's affair. Names come from checked parts only.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from twinlock.core import limits
from twinlock.core.durable import fsync_dir, os_errors, read_bounded, remove_durably, write_atomic
from twinlock.core.names import check_name, check_sha256_hex, check_version
from twinlock.server.releases.ports import METADATA_FILE, ROOT_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SIZE_BYTES_MAX: Final = max(limits.METADATA_SIZE_BYTES_MAX.values())


class MetadataFiles:
    """`MetadataFolder` on a folder that holds `metadata` and `targets`."""

    def __init__(self, folder: Path) -> None:
        self._metadata: Final = folder / "metadata"
        self._manifests: Final = folder / "targets"
        self._lock_path: Final = folder / ".lock"
        self._threads: Final = threading.Lock()

    @contextmanager
    def lock(self) -> Iterator[None]:
        with self._threads:
            with os_errors(str(self._lock_path)):
                fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)

    def read(self, name: str) -> bytes | None:
        return _read(self._metadata / _checked(name), "metadata")

    def roots(self) -> dict[int, bytes]:
        found = {}
        for path in self._metadata.iterdir():
            match = ROOT_FILE.fullmatch(path.name)
            if match is not None:
                found[int(match.group(1))] = read_bounded(path, _SIZE_BYTES_MAX, "metadata")
        return found

    def write(self, name: str, data: bytes) -> None:
        with os_errors(f"metadata {name}"):
            write_atomic(self._metadata / _checked(name), data)

    def remove_timestamp(self) -> None:
        with os_errors("metadata timestamp.json"):
            remove_durably(self._metadata / "timestamp.json")

    def read_manifest(self, product: str, sha256: str, version: str) -> bytes | None:
        return _read(self._manifest(product, sha256, version), "manifest")

    def write_manifest(self, product: str, sha256: str, version: str, data: bytes) -> None:
        path = self._manifest(product, sha256, version)
        with os_errors(f"manifest of {product} {version}"):
            path.parent.mkdir(exist_ok=True)
            fsync_dir(self._manifests)
            write_atomic(path, data)

    def _manifest(self, product: str, sha256: str, version: str) -> Path:
        name = f"{check_sha256_hex(sha256)}.{check_version(version)}.manifest"
        return self._manifests / check_name(product, "product") / name


def _checked(name: str) -> str:
    if not METADATA_FILE.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a metadata file")
    return name


def _read(path: Path, what: str) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_SIZE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
