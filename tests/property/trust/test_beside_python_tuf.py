"""The client beside python-tuf's own, on the same repository through the same random history.

Both refresh after each step; they must agree on whether it succeeds and on what they trust then. A repository
here is often broken or hostile: keys that stop signing, versions that go back, files that disappear.

Where ours is stricter, by the specification or by its floors, the histories do not go; tests of its own show
each: one of the two online roles rotated alone (5.3.11 forgets both), a threshold raised above what the
stored files carry (the floors still remember them), one version number with two contents and listed hashes
(5.5.2 asks for the listed one).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient import FetcherInterface, Updater

from tests.conformance.memory import MemoryFetch, MemoryStore
from tests.conformance.repository import ALL, Repository
from twinlock.core.errors import TwinlockError
from twinlock.core.trust.client import Client

ROLES = ("targets", "snapshot", "timestamp")
STEPS = 30


class _Fetcher(FetcherInterface):
    """Gives python-tuf's client the same files."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._repository.get(url.removeprefix("http://x/"))
        if data is None:
            raise DownloadHTTPError("not found", 404)
        yield data


class Pair:
    """Both clients, each with its own files."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository = repository
        self.store = MemoryStore(repository.files["metadata/1.root.json"])
        self.folder = folder
        (folder / "root.json").write_bytes(repository.files["metadata/1.root.json"])

    def ours(self) -> tuple[bool, dict[str, bytes]]:
        client = Client(MemoryFetch(self.repository), self.store, datetime.now(UTC))
        try:
            client.refresh()
        except TwinlockError as problem:
            self.problem: TwinlockError | None = problem
            return False, dict(self.store.files)
        self.problem = None
        return True, dict(self.store.files)

    def theirs(self) -> tuple[bool, dict[str, bytes]]:
        self.reason: Exception | None = None
        try:
            Updater(
                str(self.folder), "http://x/metadata/", fetcher=_Fetcher(self.repository), bootstrap=None
            ).refresh()
        except (RepositoryError, DownloadError) as problem:
            self.reason = problem
        files = {path.name.removesuffix(".json"): path.read_bytes() for path in self.folder.glob("*.json")}
        return self.reason is None, files


def _publish(repository: Repository, rng: random.Random) -> None:
    repository.publish(*(role for role in ALL if rng.random() < 0.7))


def _publish_all(repository: Repository, rng: random.Random) -> None:
    repository.publish(*ALL)


def _go_back(repository: Repository, rng: random.Random) -> None:
    role = rng.choice(ROLES)
    signed = repository.metadata[role].signed
    signed.version = max(1, signed.version - rng.randint(1, 3))
    repository.publish(role, bump=False)


def _rotate(repository: Repository, rng: random.Random) -> None:
    for role in rng.choice((("timestamp", "snapshot"), ("targets",))):
        repository.rotate(role)
    repository.publish("root")


def _rotate_root(repository: Repository, rng: random.Random) -> None:
    old = list(repository.signers["root"])
    repository.rotate("root")
    new = list(repository.signers["root"])
    repository.signers["root"] = new + (old if rng.random() < 0.8 else [])
    repository.publish("root")
    repository.signers["root"] = new


def _more_keys(repository: Repository, rng: random.Random) -> None:
    role = rng.choice(ALL)
    repository.add_key(role)
    if role in ("root", "targets"):
        repository.root.roles[role].threshold = rng.randint(1, len(repository.root.roles[role].keyids))
    repository.publish("root")


def _lose_a_signer(repository: Repository, rng: random.Random) -> None:
    role = rng.choice(ROLES)
    signers = repository.signers[role]
    gone = signers.pop(rng.randrange(len(signers)))
    repository.publish(role)
    signers.append(gone)


def _expire(repository: Repository, rng: random.Random) -> None:
    role = rng.choice(ALL)
    signed = repository.metadata[role].signed
    signed.expires = datetime.now(UTC) - timedelta(days=1)
    repository.publish(role)
    signed.expires = repository.expires


def _hide(repository: Repository, rng: random.Random) -> None:
    repository.files.pop(repository.path(rng.choice(ROLES)), None)


def _unlist(repository: Repository, rng: random.Random) -> None:
    repository.snapshot.meta.pop(rng.choice(("other.json", "targets.json")), None)


def _list_another(repository: Repository, rng: random.Random) -> None:
    meta = repository.snapshot.meta.get("targets.json")
    if meta is not None:
        repository.snapshot.meta["other.json"] = meta


def _consistent(repository: Repository, rng: random.Random) -> None:
    repository.root.consistent_snapshot = not repository.root.consistent_snapshot
    repository.publish(*ALL)


CHANGES: list[Callable[[Repository, random.Random], None]] = [
    _publish,
    _publish,
    _publish_all,
    _publish_all,
    _rotate,
    _rotate_root,
    _more_keys,
    _lose_a_signer,
    _expire,
    _hide,
    _unlist,
    _list_another,
    _consistent,
]


@pytest.mark.parametrize("number", range(12))
def test_both_clients_agree(number: int, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    pair = Pair(Repository(datetime.now(UTC)), tmp_path)
    pair.repository.list_hashes = bool(number % 2)
    changes = CHANGES if pair.repository.list_hashes else [*CHANGES, _go_back, _go_back]
    history = []
    for _ in range(STEPS):
        change = rng.choice(changes)
        history.append(change.__name__)
        change(pair.repository, rng)
        (ours, kept), (theirs, left) = pair.ours(), pair.theirs()
        told = f"seed {seed}: {history}: {pair.problem!r} beside {pair.reason!r}"
        assert ours == theirs, told
        # Section 5.3.11: after a rotation these are deleted; python-tuf leaves them and does not trust them.
        gone = left.keys() - kept.keys()
        assert gone <= {"timestamp", "snapshot"}, told
        assert not (ours and gone), told
        assert kept == {role: left[role] for role in kept}, told
