"""An honest repository on a real socket, a client that trusts it, and what an attacker may not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conformance.driver import Driver, serve
from tests.conformance.repository import ALL, Repository

LISTED = ("targets", "snapshot", "timestamp")


class Scene:
    """The repository stands at version 2 of everything, and the client has refreshed."""

    def __init__(self, repository: Repository, client: Driver) -> None:
        self.repository = repository
        self.client = client
        repository.publish(*ALL)
        assert client.init() == 0
        assert client.refresh() == 0, client.stderr
        self.kept = client.files()

    def back(self, *roles: str, version: int = 1) -> None:
        """Publishes the roles in an older version."""
        for role in roles:
            self.repository.metadata[role].signed.version = version
            self.repository.publish(role, bump=False)

    def refused(self, code: str, *, but: tuple[str, ...] = ()) -> None:
        """The next refresh fails with this code and changes nothing but the files of these roles."""
        self.fails(self.client.refresh, code, but=but)

    def fails(self, command: Callable[[], int], code: str, *, but: tuple[str, ...] = ()) -> None:
        """As `refused`, of any command; the floors may only have risen with a role that may have changed."""
        before, floors = self.client.files(), self.client.floors()
        assert command() == 1, "the attack was not noticed"
        assert self.client.code == code, self.client.stderr
        after = self.client.files()
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        allowed = {f"{role}.json" for role in but} | ({"floors"} if but else set())
        assert changed <= allowed, changed
        now = self.client.floors()
        assert (now.root, now.timestamp, now.snapshot, now.targets) >= (
            (floors.root, floors.timestamp, floors.snapshot, floors.targets)
        )
        assert self.client.downloaded() == []


@contextmanager
def scene(folder: Path, repository: Repository | None = None) -> Iterator[Scene]:
    """A scene in `folder`, served until the end."""
    repository = repository or Repository()
    with serve(repository) as address:
        yield Scene(repository, Driver(repository, address, folder))
