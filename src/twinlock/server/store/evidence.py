"""Evidence of devices, bodies and signatures as they came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, insert, select

from twinlock.server.devices.evidence import StoredEvidence
from twinlock.server.store.tables import evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from twinlock.server.devices.evidence import CheckedEvidence

_STORED: Final = tuple(evidence.c[name] for name in StoredEvidence.__slots__)


class SqlEvidence:
    """`EvidenceStore` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def add(self, piece: CheckedEvidence, now_ms: int) -> None:
        said = piece.said
        if self.body(said.device_id, piece.name) is not None:
            return
        self._connection.execute(
            insert(evidence).values(
                device_id=said.device_id,
                name=piece.name,
                kind=said.kind,
                assignment_id=said.assignment_id,
                product=said.product,
                version=said.version,
                slot=said.slot,
                time_s=said.time_s,
                received_ms=now_ms,
                body=piece.body,
                signature=piece.signature,
            )
        )

    def prune(self, device_id: str, keep: int) -> None:
        names = self._connection.execute(
            select(evidence.c.name)
            .where(evidence.c.device_id == device_id)
            .order_by(evidence.c.received_ms.desc(), evidence.c.time_s.desc(), evidence.c.name)
            .offset(keep)
        ).scalars()
        for name in names.all():
            self._connection.execute(
                delete(evidence).where(evidence.c.device_id == device_id, evidence.c.name == name)
            )

    def of_device(self, device_id: str) -> Sequence[StoredEvidence]:
        rows = self._connection.execute(
            select(*_STORED)
            .where(evidence.c.device_id == device_id)
            .order_by(evidence.c.received_ms.desc(), evidence.c.time_s.desc(), evidence.c.name)
        )
        return [StoredEvidence(*row) for row in rows]

    def body(self, device_id: str, name: str) -> bytes | None:
        return self._connection.execute(
            select(evidence.c.body).where(evidence.c.device_id == device_id, evidence.c.name == name)
        ).scalar()
