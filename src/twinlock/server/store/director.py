"""The director's answers by device, and what the image repository signed of each release."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from twinlock.server.director.answers import Kept
from twinlock.server.store import dialect
from twinlock.server.store.tables import director_answers, release_entries

if TYPE_CHECKING:
    from sqlalchemy import Connection


class SqlDirector:
    """`DirectorStore` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def kept(self, device_id: str) -> Kept | None:
        columns = director_answers.c
        row = self._connection.execute(
            select(columns.version, columns.basis, columns.expires_ms, columns.answer).where(
                columns.device_id == device_id
            )
        ).first()
        return None if row is None else Kept(*row)

    def keep(self, device_id: str, kept: Kept) -> None:
        row = {
            "device_id": device_id,
            "version": kept.version,
            "basis": kept.basis,
            "expires_ms": kept.expires_ms,
            "answer": kept.answer,
        }
        dialect.upsert(self._connection, director_answers, [row])

    def entry(self, release_id: int) -> str | None:
        return self._connection.execute(
            select(release_entries.c.entry).where(release_entries.c.release_id == release_id)
        ).scalar()

    def keep_entry(self, release_id: int, entry: str) -> None:
        digest = hashlib.sha256(entry.encode("utf-8")).hexdigest()
        row = {"release_id": release_id, "entry": entry, "entry_sha256": digest}
        dialect.upsert(self._connection, release_entries, [row], only_if_changed=True)
