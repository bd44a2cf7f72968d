"""The build side and the server of a lab: keys, releases, and a real server as a process of its own.

Everything is the product's own: keys and repository as `twinlock keys` and `twinlock release` make them, the
server as `twinlock server run` starts it. The workshop only says which folder is whose.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from twinlock.core import limits
from twinlock.core.durable import os_errors, read_bounded, write_atomic
from twinlock.core.errors import error
from twinlock.core.payload import blocks as blocks_of
from twinlock.lab import process
from twinlock.lab.virtual import Release
from twinlock.publish import keys, releases, roots, upload
from twinlock.publish.ceremony import Ceremony
from twinlock.publish.folder import read_release
from twinlock.publish.pack import PackRequest, pack
from twinlock.publish.repository import make_folders, open_repository
from twinlock.publish.signing import Lifetimes
from twinlock.server.director.folder import ONLINE_ROLES as DIRECTOR_ROLES
from twinlock.server.director.folder import make_key, public_half
from twinlock.server.setup import initialise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from twinlock.publish.upload import Operator

HARDWARE: Final = "demo-board"
HOLDERS: Final = ("alice", "bob", "carol")
OFFLINE_ROLES: Final = ("root", "targets")
ONLINE_ROLES: Final = ("snapshot", "timestamp")
THRESHOLD: Final = 2
LEVEL: Final = 6  # zstd's; a lab packs often and keeps nothing
START_WAIT_S: Final = 60.0


def ignore(size_bytes: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A release folder, and what the lab will recognise its image by."""

    folder: Path
    release: Release
    payload_sha256: str
    payload_size_bytes: int
    segments: int
    zero_segments: int

    @property
    def fetched_size_bytes(self) -> int:
        """What a device fetches of the full payload when it wants all of it: no block hashes."""
        blocks = (self.segments - self.zero_segments) * blocks_of.block_count(limits.SEGMENT_SIZE_BYTES)
        return self.payload_size_bytes - blocks * blocks_of.HASH_SIZE_BYTES


@dataclass(frozen=True, slots=True)
class Director:
    """A director's root, which devices and server get, and its online key (PEM), which is the server's."""

    root: bytes
    key: bytes = field(repr=False)


class Workshop:
    """The build machine in `folder`: `keys/` and the repository `repo/`.

    Root and targets need two of three holders. The third one's private keys lie in `drawer/`, where nothing
    looks for them: two are enough.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self.keys: Final = folder / "keys"
        self.repo: Final = folder / "repo"

    @classmethod
    def make(cls, folder: Path) -> Self:
        """New keys and a repository that trusts them. Raises InputError when there is one already."""
        made = cls(folder)
        for holder in HOLDERS:
            keys.create(made.keys, OFFLINE_ROLES, holder, "ed25519", None)
        keys.create(made.keys, ONLINE_ROLES, "online", "ed25519", None)
        drawer = folder / "drawer"
        with os_errors(f"folder {drawer}"):
            drawer.mkdir(mode=0o700)
            for role in OFFLINE_ROLES:
                name = f"{role}-{HOLDERS[-1]}.pem"
                (made.keys / name).rename(drawer / name)
        make_folders(made.repo)
        found = [(one.role, one.key) for one in keys.list_keys(made.keys)]
        with open_repository(made.repo, write=True) as repository:
            run = Ceremony(repository, made._ring(), datetime.now(UTC), Lifetimes())
            roots.start(run, found, dict.fromkeys(OFFLINE_ROLES, THRESHOLD))
        return made

    def make_director(self) -> Director:
        """A director for a new server: its root is signed by the holders, with keys apart from the others."""
        folder, online = self.folder / "director", make_key()
        for holder in HOLDERS[:THRESHOLD]:
            keys.create(folder / "keys", ("root",), holder, "ed25519", None)
        for role in DIRECTOR_ROLES:
            path = folder / "keys" / f"{role}-director.pub"
            with os_errors(f"key {path}"):
                write_atomic(path, public_half(online))
        make_folders(folder / "repo")
        found = keys.list_keys(folder / "keys")
        with open_repository(folder / "repo", write=True) as repository:
            ring = keys.KeyRing(found, lambda _: None)
            run = Ceremony(repository, ring, datetime.now(UTC), Lifetimes())
            roots.start(run, [(one.role, one.key) for one in found], {"root": THRESHOLD})
        root = read_bounded(
            folder / "repo/metadata/1.root.json", limits.METADATA_SIZE_BYTES_MAX["root"], "root metadata"
        )
        return Director(root, online)

    def _ring(self) -> keys.KeyRing:
        return keys.KeyRing(keys.list_keys(self.keys), lambda _: None)

    @property
    def root(self) -> bytes:
        """The root of trust that servers and devices get."""
        path = self.repo / "metadata/1.root.json"
        return read_bounded(path, limits.METADATA_SIZE_BYTES_MAX["root"], "root metadata")

    def pack(
        self,
        image: Path,
        version: str,
        counter: int,
        *,
        product: str = "demo",
        hardware: Sequence[str] = (HARDWARE,),
        level: int = LEVEL,
        advance: Callable[[int], None] = ignore,
    ) -> Packed:
        """A release folder from an image; `advance` is told the image's bytes."""
        out = self.folder / f"{product}-{version}"
        request = PackRequest(image, product, version, tuple(hardware), out, counter=counter, level=level)
        packed = pack(request, advance)
        made = packed.manifest
        payload = packed.record.payloads[0]
        return Packed(
            folder=out,
            release=Release(product, version, counter, made.image_sha256.hex(), made.image_size_bytes),
            payload_sha256=payload.sha256,
            payload_size_bytes=payload.size_bytes,
            segments=made.segment_count,
            zero_segments=packed.zero_segments,
        )

    def sign(self, packed: Sequence[Packed]) -> list[tuple[str, str]]:
        """Takes releases into the repository and signs for all of them at once; (role, key id) of each
        signature."""
        with open_repository(self.repo, write=True) as repository:
            run = Ceremony(repository, self._ring(), datetime.now(UTC), Lifetimes())
            for one in packed:
                releases.take_in(run, read_release(one.folder), allow_lower=False)
            run.complete()
        return run.signed

    def publish(
        self, operator: Operator, packed: Sequence[Packed], advance: Callable[[int], None] = ignore
    ) -> None:
        """Brings signed releases to a server; `advance` is told each payload's bytes twice."""
        retry = upload.Retry(sleep=time.sleep)
        with open_repository(self.repo, write=False) as repository:
            wanted = [
                releases.find_release(repository, one.release.product, one.release.version) for one in packed
            ]
            upload.publish(repository, operator, wanted, datetime.now(UTC), retry, advance)


class ServerProcess:
    """`twinlock server run` on loopback, in `folder`; between `start` and `stop` it is at `url`."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder: Final = folder
        self.token: Final = token
        self.url = ""
        self.page = ""
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(
        cls, folder: Path, root: bytes, *, poll_wait_s: int = 5, director: Director | None = None
    ) -> Self:
        """A new server that trusts `root`; the status page is open to this machine."""
        own = None if director is None else (director.root, director.key)
        token = initialise(folder, root, poll_wait_s=poll_wait_s, page_open=True, director=own)
        return cls(folder, token)

    @property
    def log(self) -> Path:
        """What the process wrote to standard error."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, port: int = 0) -> None:
        """Starts it and waits until it serves. Raises InternalError `internal` with its last words if not."""
        argv = [sys.executable, "-m", "twinlock.cli.main", "server", "run", str(self.folder)]
        argv += ["--port", str(port), "--json"]
        with os_errors(f"log {self.log}"), self.log.open("ab") as log:
            self._process = process.start(argv, stdout=subprocess.PIPE, stderr=log)
        try:
            said = json.loads(self._first_line())
        except ValueError as problem:
            self.stop()
            words = self.log.read_text(encoding="utf-8", errors="replace")[-500:]
            raise error("internal", f"the server does not start: {words}") from problem
        except BaseException:  # interrupted while it starts: the caller has nothing to end yet
            self.stop()
            raise
        self.url, self.page = said["address"], said["page"]

    def _first_line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        until = time.monotonic() + START_WAIT_S
        line = b""
        while b"\n" not in line:
            ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
            piece = os.read(fd, 4096) if ready else b""
            if not piece:
                break
            line += piece
        return line

    def stop(self) -> None:
        """Asks it to end, and sees to it; once more is harmless."""
        if self._process is not None:
            process.stop(self._process)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
