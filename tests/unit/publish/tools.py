"""Images, releases and repositories for tests of the build side, and ways to make the machine fail."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from securesystemslib.signer import SSlibKey

from twinlock.core.limits import KIB, MIB
from twinlock.publish import keys, releases, roots
from twinlock.publish.ceremony import Ceremony
from twinlock.publish.folder import Release, read_release
from twinlock.publish.pack import PackRequest, pack
from twinlock.publish.repository import Repository, make_folders, open_repository
from twinlock.publish.signing import Lifetimes

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
NOBODY = 65534


def image_bytes(rng: random.Random, size_bytes: int) -> bytes:
    """Bytes like a file system's: text that compresses, noise that does not, and runs of zeros."""
    words = [rng.randbytes(rng.randrange(3, 12)).hex().encode() for _ in range(200)]
    out = bytearray()
    while len(out) < size_bytes:
        kind = rng.randrange(3)
        if kind == 0:
            out += b" ".join(rng.choices(words, k=2000))
        elif kind == 1:
            out += rng.randbytes(64 * KIB)
        else:
            out += bytes(rng.randrange(4 * KIB, 300 * KIB))
    return bytes(out[:size_bytes])


def write_image(path: Path, rng: random.Random, size_bytes: int = 3 * MIB + 4 * KIB) -> bytes:
    data = image_bytes(rng, size_bytes)
    path.write_bytes(data)
    return data


def request_for(image: Path, out: Path, version: str = "1.0", counter: int = 1) -> PackRequest:
    return PackRequest(
        image=image,
        product="demo",
        version=version,
        hardware=("demo-board",),
        out=out,
        counter=counter,
        level=1,
        jobs=2,
    )


def make_release(
    folder: Path, rng: random.Random, version: str = "1.0", counter: int = 1, size_bytes: int = 2 * MIB
) -> Release:
    """A packed release in `folder/demo-VERSION`."""
    image = folder / f"image-{version}"
    write_image(image, rng, size_bytes)
    pack(request_for(image, folder / f"demo-{version}", version, counter))
    return read_release(folder / f"demo-{version}")


def no_passphrase(path: Path) -> bytes | None:
    return None


@dataclass(frozen=True)
class Holders:
    """Key folders by holder; `everyone` has the public halves of all of them."""

    folder: Path

    def make(self, holder: str, *roles: str) -> None:
        for made in keys.create(self.folder / holder, roles, holder, "ed25519", None):
            (self.folder / "everyone").mkdir(exist_ok=True)
            (self.folder / "everyone" / made.public.name).write_bytes(made.public.read_bytes())

    def ring(self, *holders: str) -> keys.KeyRing:
        found = [key for holder in holders for key in keys.list_keys(self.folder / holder)]
        return keys.KeyRing(found, no_passphrase)

    def public(self) -> list[tuple[str, SSlibKey]]:
        return [(key.role, key.key) for key in keys.list_keys(self.folder / "everyone")]


@contextmanager
def ceremony(
    repo: Path, ring: keys.KeyRing, now: datetime = NOW, lifetimes: Lifetimes | None = None
) -> Iterator[Ceremony]:
    with open_repository(repo, write=True) as repository:
        yield Ceremony(repository, ring, now, lifetimes or Lifetimes())


def start(repo: Path, holders: Holders, thresholds: Mapping[str, int], *signing: str) -> None:
    """A new repository whose root names every key of `holders`, signed by those named."""
    make_folders(repo)
    with ceremony(repo, holders.ring(*signing)) as run:
        roots.start(run, holders.public(), thresholds)


def simple_repository(tmp_path: Path) -> tuple[Path, Holders]:
    """One holder with one key for each role."""
    holders = Holders(tmp_path / "keys")
    holders.make("main", *keys.ROLES)
    start(tmp_path / "repo", holders, {}, "main")
    return tmp_path / "repo", holders


def sign(
    repo: Path, holders: Holders, release: Release | None, *signing: str, now: datetime = NOW
) -> dict[str, int]:
    """Takes a release in, if one is given, and signs with the keys of these holders."""
    with ceremony(repo, holders.ring(*signing), now) as run:
        if release is not None:
            releases.take_in(run, release, allow_lower=False)
        return run.complete()


def state_of(repo: Path) -> tuple[list[str], Repository]:
    """The names of the published releases, and the repository, opened only for reading."""
    with open_repository(repo, write=False) as repository:
        published = repository.list_of("targets", pending=False)
        return sorted(published.targets if published else []), repository


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Every file of this process ends at `size_bytes`, as if the disk were full there (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, which may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class PowerCut(BaseException):
    """The machine stops here; nothing catches it."""


class Power:
    """Cuts the power before the n-th call that changes the disk; afterwards nothing changes it any more."""

    CALLS = ("write", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "ftruncate")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
        self.left = last
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, call: Callable[..., object]) -> Callable[..., object]:
        def cut_or_call(*args: object, **kwargs: object) -> object:
            if self.left <= 0:
                raise PowerCut
            self.left -= 1
            return call(*args, **kwargs)

        return cut_or_call
