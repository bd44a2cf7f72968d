"""The real server on a loopback socket, and all that an attacker of it may not change."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from tests.conformance.repository import Repository
from tests.unit.server.rig import Server, Site, code_of
from twinlock.server.store import tables

TIMEOUT_S = 60.0
# What a server notes of the calls themselves: not what they ask for.
_NOTES = frozenset({"indicators"})
State = dict[str, Any]


class ServerScene(Server):
    """`Server`, each of whose requests goes over a connection of its own."""

    def start(self) -> None:
        super().start()
        self._site = Site(self)
        self._http = httpx.Client(base_url=self._site.address, timeout=TIMEOUT_S)

    def stop(self) -> None:
        self._http.close()
        self._site.close()
        super().stop()

    def http(
        self,
        method: str,
        path: str,
        *,
        body: bytes | AsyncIterable[bytes] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        assert body is None or isinstance(body, bytes)
        return self._http.request(method, path, content=body, json=json, headers=headers)

    def state(self) -> State:
        """Every row but what is noted of attacks, and every file but the database's own and locks."""
        found: State = {}
        with self.database.read() as transaction:
            for table in tables.metadata.sorted_tables:
                if table.name not in _NOTES:
                    rows = transaction.connection.execute(select(table)).all()
                    found[table.name] = sorted(repr(tuple(row)) for row in rows)
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith(("twinlock.db", ".lock")):
                name = str(path.relative_to(self.folder))
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def noted(self, device_id: str) -> set[str]:
        """The kinds of attack that were noted of a device."""
        found = self.operator("GET", f"/devices/{device_id}").json()
        return {one["kind"] for one in found["attack_indicators"]}


def refused(answer: httpx.Response, status: int, code: str) -> None:
    """The answer is this refusal."""
    assert (answer.status_code, code_of(answer)) == (status, code), answer.text


@contextmanager
def server_scene(folder: Path, repository: Repository | None = None, **changes: Any) -> Iterator[ServerScene]:
    """A server in `folder`; `changes` are settings."""
    server = ServerScene(folder, repository, **changes)
    try:
        yield server
    finally:
        server.close()
