"""Reports of devices, bodies and signatures as they came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, insert, select, update

from twinlock.server.rollouts.model import StoredReport
from twinlock.server.store.tables import devices, reports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from twinlock.server.rollouts.model import CheckedReport

_STORED: Final = tuple(reports.c[name] for name in StoredReport.__slots__)


class SqlReports:
    """`ReportStore` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def floor(self, device_id: str) -> int:
        found = self._connection.execute(
            select(devices.c.report_floor).where(devices.c.device_id == device_id)
        ).scalar_one()
        return int(found)

    def body_sha256(self, device_id: str, seq: int) -> str | None:
        return self._connection.execute(
            select(reports.c.body_sha256).where(reports.c.device_id == device_id, reports.c.seq == seq)
        ).scalar()

    def add(self, report: CheckedReport, now_ms: int) -> None:
        said = report.report
        self._connection.execute(
            insert(reports).values(
                device_id=said.device_id,
                seq=said.seq,
                assignment_id=said.assignment_id,
                state=said.state,
                code=said.code,
                detail=said.detail,
                product=said.product,
                version=said.version,
                slot=said.slot,
                bytes_fetched=said.bytes_fetched,
                bytes_again=said.bytes_again,
                duration_s=said.duration_s,
                time_s=said.time_s,
                received_ms=now_ms,
                body=report.body,
                signature=report.signature,
                body_sha256=report.body_sha256,
            )
        )

    def prune(self, device_id: str, keep: int) -> None:
        first_dropped = self._connection.execute(
            select(reports.c.seq)
            .where(reports.c.device_id == device_id)
            .order_by(reports.c.seq.desc())
            .offset(keep)
            .limit(1)
        ).scalar()
        if first_dropped is None:
            return
        self._connection.execute(
            delete(reports).where(reports.c.device_id == device_id, reports.c.seq <= first_dropped)
        )
        self._connection.execute(
            update(devices).where(devices.c.device_id == device_id).values(report_floor=first_dropped)
        )

    def of_device(self, device_id: str, limit: int) -> Sequence[StoredReport]:
        rows = self._connection.execute(
            select(*_STORED)
            .where(reports.c.device_id == device_id)
            .order_by(reports.c.seq.desc())
            .limit(limit)
        )
        return [StoredReport(*row) for row in rows]
