"""The audit log's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import insert, select

from twinlock.server.audit.chain import Entry
from twinlock.server.store import dialect
from twinlock.server.store.tables import audit

if TYPE_CHECKING:
    from sqlalchemy import Connection


class SqlAudit:
    """`AuditStore` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def last(self) -> Entry | None:
        dialect.take_turns(self._connection)
        row = self._connection.execute(select(audit).order_by(audit.c.number.desc()).limit(1)).first()
        return None if row is None else Entry(*row)

    def add(self, entry: Entry) -> None:
        self._connection.execute(
            insert(audit).values(
                number=entry.number,
                at_ms=entry.at_ms,
                actor=entry.actor,
                action=entry.action,
                subject=entry.subject,
                detail=entry.detail,
                previous=entry.previous,
                hash=entry.hash,
            )
        )

    def entries(self, after: int, limit: int) -> list[Entry]:
        rows = self._connection.execute(
            select(audit).where(audit.c.number > after).order_by(audit.c.number).limit(limit)
        )
        return [Entry(*row) for row in rows]
