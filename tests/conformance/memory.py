"""A client's store and fetch in memory, as faithful to the protocols as the real ones."""

from __future__ import annotations

from datetime import datetime

from tests.conformance.repository import NOW, Repository
from twinlock.core.errors import error
from twinlock.core.trust.client import Client
from twinlock.core.trust.verifier import Floors


class MemoryStore:
    """Files by role and the floors; `writes` names every change in order."""

    def __init__(self, root: bytes | None = None) -> None:
        self.files: dict[str, bytes] = {} if root is None else {"root": root}
        self.floors = Floors()
        self.writes: list[str] = []

    def load(self, role: str) -> bytes | None:
        return self.files.get(role)

    def save(self, role: str, data: bytes) -> None:
        self._write(f"save {role}")
        self.files[role] = data

    def delete(self, role: str) -> None:
        self._write(f"delete {role}")
        self.files.pop(role, None)

    def load_floors(self) -> Floors:
        return self.floors

    def save_floors(self, floors: Floors) -> None:
        self._write("floors")
        self.floors = floors

    def _write(self, what: str) -> None:
        self.writes.append(what)


class MemoryFetch:
    """Fetches from a repository in memory, bounded as the protocol says."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def __call__(self, path: str, size_bytes_max: int) -> bytes | None:
        data = self.repository.get(f"metadata/{path}")
        if data is not None and len(data) > size_bytes_max:
            raise error("transfer-oversized", f"{path} has more than {size_bytes_max} bytes")
        return data


def client(
    repository: Repository, store: MemoryStore, now: datetime = NOW, pinned: bytes | None = None
) -> Client:
    return Client(MemoryFetch(repository), store, now, pinned)
