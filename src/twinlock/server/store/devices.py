"""Devices, their facts and check-ins, and what was noted of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import case, func, insert, or_, select, update

from twinlock.core.protocol import FINAL_STATES
from twinlock.server.devices.model import (
    INDICATORS_PER_DEVICE_MAX,
    Device,
    Facts,
    Indicator,
    InUse,
    Status,
)
from twinlock.server.devices.ports import DeviceRow
from twinlock.server.store import dialect
from twinlock.server.store.tables import check_ins, device_facts, devices, indicators, reports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection, Select

    from twinlock.server.devices.model import CheckIn

COUNT_MAX: Final = 1_000_000_000
_DEVICE: Final = (
    devices.c.device_id,
    devices.c.hardware,
    devices.c.public_key,
    devices.c.fingerprint,
    devices.c.status,
    devices.c.enrolled_ms,
    devices.c.decided_ms,
)
_FACTS: Final = tuple(column for column in device_facts.columns if column.name != "device_id")


def _device_of(row: Sequence[Any]) -> Device:
    device_id, hardware, public_key, fingerprint, status, enrolled_ms, decided_ms = row
    return Device(device_id, hardware, public_key, fingerprint, Status(status), enrolled_ms, decided_ms)


class SqlDevices:
    """`DeviceStore` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def get(self, device_id: str, *, lock: bool = False) -> Device | None:
        statement = select(*_DEVICE).where(devices.c.device_id == device_id)
        row = self._connection.execute(statement.with_for_update() if lock else statement).first()
        return None if row is None else _device_of(row)

    def add(self, device: Device) -> None:
        self._connection.execute(insert(devices).values(**_values(device), device_id=device.device_id))

    def replace(self, device: Device) -> None:
        self._connection.execute(
            update(devices).where(devices.c.device_id == device.device_id).values(**_values(device))
        )

    def raise_session_floor(self, device_id: str, issued_us: int, now_us: int) -> bool:
        done = self._connection.execute(
            update(devices)
            .where(devices.c.device_id == device_id)
            .where(or_(devices.c.session_floor_us < issued_us, devices.c.session_floor_us > now_us))
            .values(session_floor_us=issued_us)
        )
        return done.rowcount == 1

    def count(self, status: Status) -> int:
        found = self._connection.execute(
            select(func.count()).select_from(devices).where(devices.c.status == status.value)
        ).scalar_one()
        return int(found)

    def rows(self, status: Status | None, after: str, limit: int) -> Sequence[DeviceRow]:
        statement = _rows().where(devices.c.device_id > after)
        if status is not None:
            statement = statement.where(devices.c.status == status.value)
        found = self._connection.execute(statement.order_by(devices.c.device_id).limit(limit))
        return [_row_of(row) for row in found]

    def in_use(self, product: str, limit: int) -> Sequence[InUse]:
        number = func.count().label("number")
        facts = device_facts.c
        found = self._connection.execute(
            select(facts.version, facts.image_sha256, number)
            .select_from(device_facts.join(devices, devices.c.device_id == facts.device_id))
            .where(facts.product == product, facts.image_sha256 != "")
            .where(devices.c.status == Status.ACCEPTED.value)
            .group_by(facts.version, facts.image_sha256)
            .order_by(number.desc(), facts.version, facts.image_sha256)
            .limit(limit)
        )
        return [InUse(*row) for row in found]

    def row(self, device_id: str) -> DeviceRow | None:
        found = self._connection.execute(_rows().where(devices.c.device_id == device_id)).first()
        return None if found is None else _row_of(found)

    def note(self, device_id: str, kind: str, key: str, detail: str, now_ms: int, times: int = 1) -> None:
        done = self._connection.execute(
            update(indicators)
            .where(indicators.c.device_id == device_id, indicators.c.kind == kind, indicators.c.key == key)
            .values(last_ms=now_ms, count=_bounded(indicators.c["count"] + times))
        )
        if done.rowcount:
            return
        kept = self._connection.execute(
            select(func.count()).select_from(indicators).where(indicators.c.device_id == device_id)
        ).scalar_one()
        if kept < INDICATORS_PER_DEVICE_MAX:
            self._connection.execute(
                insert(indicators).values(
                    device_id=device_id,
                    kind=kind,
                    key=key,
                    detail=detail,
                    first_ms=now_ms,
                    last_ms=now_ms,
                    count=times,
                )
            )

    def indicators(self, device_id: str) -> Sequence[Indicator]:
        found = self._connection.execute(
            select(
                indicators.c.device_id,
                indicators.c.kind,
                indicators.c.key,
                indicators.c.detail,
                indicators.c.first_ms,
                indicators.c.last_ms,
                indicators.c["count"],
            )
            .where(indicators.c.device_id == device_id)
            .order_by(indicators.c.last_ms.desc())
        )
        return [Indicator(*row) for row in found]

    def check_in(self, check_ins_: Sequence[CheckIn]) -> None:
        seen = [{"device_id": one.device_id, "seen_ms": one.seen_ms} for one in check_ins_]
        said = [{"device_id": one.device_id, **_facts_values(one.facts)} for one in check_ins_]
        dialect.upsert(self._connection, check_ins, seen)
        dialect.upsert(self._connection, device_facts, said, only_if_changed=True)


def _bounded(count: ColumnElement[int]) -> ColumnElement[int]:
    """A count that ends at what its column holds."""
    return case((count > COUNT_MAX, COUNT_MAX), else_=count)


def _values(device: Device) -> dict[str, Any]:
    return {
        "hardware": device.hardware,
        "public_key": device.public_key,
        "fingerprint": device.fingerprint,
        "status": device.status.value,
        "enrolled_ms": device.enrolled_ms,
        "decided_ms": device.decided_ms,
    }


def _facts_values(facts: Facts) -> dict[str, Any]:
    return {
        "product": facts.product,
        "version": facts.version,
        "counter": facts.counter,
        "image_sha256": facts.image_sha256,
        "slot": facts.slot,
        "floor": facts.floor,
        "agent": facts.agent,
        "state": facts.state,
        "abilities": ",".join(facts.abilities),
    }


def _rows() -> Select[Any]:
    """Devices with facts, last check-in, last final report (highest `seq`) and number of indicators."""
    last_seq = (
        select(func.max(reports.c.seq))
        .where(reports.c.device_id == devices.c.device_id, reports.c.state.in_(sorted(FINAL_STATES)))
        .correlate(devices)
        .scalar_subquery()
    )
    noted = (
        select(func.count())
        .select_from(indicators)
        .where(indicators.c.device_id == devices.c.device_id)
        .correlate(devices)
        .scalar_subquery()
    )
    last = (reports.c.device_id == devices.c.device_id) & (reports.c.seq == last_seq)
    joined = (
        devices.outerjoin(check_ins, check_ins.c.device_id == devices.c.device_id)
        .outerjoin(device_facts, device_facts.c.device_id == devices.c.device_id)
        .outerjoin(reports, last)
    )
    return select(
        *_DEVICE,
        check_ins.c.seen_ms,
        noted,
        reports.c.state,
        reports.c.code,
        reports.c.detail,
        reports.c.version,
        reports.c.received_ms,
        *_FACTS,
    ).select_from(joined)


def _row_of(row: Sequence[Any]) -> DeviceRow:
    size = len(_DEVICE)
    seen_ms, noted, state, code, detail, version, received_ms = row[size : size + 7]
    facts = row[size + 7 :]
    return DeviceRow(
        device=_device_of(row[:size]),
        seen_ms=seen_ms,
        facts=None if facts[0] is None else _facts_of(facts),
        last_outcome=state or "",
        last_code=code or "",
        last_detail=detail or "",
        last_version=version or "",
        last_ms=received_ms,
        indicators=noted,
    )


def _facts_of(row: Sequence[Any]) -> Facts:
    *fields, abilities = row
    values = dict(zip(Facts.__struct_fields__, fields, strict=False))
    return Facts(**values | {"abilities": tuple(filter(None, abilities.split(",")))})
