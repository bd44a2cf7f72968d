"""Preauthorised keys and operators' tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select

from twinlock.server.store import dialect
from twinlock.server.store.tables import operator_tokens, preauthorised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection


class SqlEnrolment:
    """`EnrolmentStore` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def preauthorised(self, device_id: str) -> str | None:
        return self._connection.execute(
            select(preauthorised.c.fingerprint).where(preauthorised.c.device_id == device_id)
        ).scalar()

    def preauthorise(self, device_id: str, fingerprint: str, now_ms: int) -> None:
        row = {"device_id": device_id, "fingerprint": fingerprint, "created_ms": now_ms}
        dialect.upsert(self._connection, preauthorised, [row])

    def use_preauthorisation(self, device_id: str) -> None:
        self._connection.execute(delete(preauthorised).where(preauthorised.c.device_id == device_id))


class SqlOperators:
    """`Operators` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def all(self) -> Sequence[tuple[str, str]]:
        rows = self._connection.execute(select(operator_tokens.c.name, operator_tokens.c.token_sha256))
        return [(name, token_sha256) for name, token_sha256 in rows]

    def add(self, name: str, token_sha256: str, now_ms: int) -> None:
        row = {"name": name, "token_sha256": token_sha256, "created_ms": now_ms}
        dialect.upsert(self._connection, operator_tokens, [row])
