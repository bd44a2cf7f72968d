"""Rollouts and assignments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import and_, case, func, insert, or_, select, update

from twinlock.server.devices.model import Status
from twinlock.server.rollouts.model import AssignmentRow, Progress, Rollout, RolloutStatus
from twinlock.server.rollouts.policy import Candidate, Past
from twinlock.server.rollouts.state import OPEN_STATES, Summary, with_mark
from twinlock.server.store.tables import assignments, device_facts, devices, releases, reports, rollouts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Select

    from twinlock.server.rollouts.state import Mark

_ROLLOUT: Final = (
    rollouts.c.number,
    rollouts.c.release_id,
    releases.c.product,
    releases.c.version,
    rollouts.c.everyone,
    rollouts.c.status,
    rollouts.c.created_ms,
    rollouts.c.created_by,
    rollouts.c.halted_ms,
)
_SUMMARY: Final = (
    assignments.c.progress,
    assignments.c.first_seq,
    assignments.c.first_outcome,
    assignments.c.rolled_back_seq,
    assignments.c.mark,
)


def _rollout_of(row: Sequence[Any]) -> Rollout:
    number, release_id, product, version, everyone, status, created_ms, created_by, halted_ms = row
    return Rollout(
        number,
        release_id,
        product,
        version,
        everyone,
        RolloutStatus(status),
        created_ms,
        created_by,
        halted_ms,
    )


def _assignment_of(row: Sequence[Any]) -> AssignmentRow:
    assignment_id, number, device_id = row[:3]
    code, detail, bytes_fetched, bytes_again, duration_s, updated_ms = row[8:]
    return AssignmentRow(
        assignment_id,
        number,
        device_id,
        Summary(*row[3:8]),
        code,
        detail,
        bytes_fetched,
        bytes_again,
        duration_s,
        updated_ms,
    )


def _select_rollouts() -> Select[Any]:
    return select(*_ROLLOUT).join_from(rollouts, releases, releases.c.release_id == rollouts.c.release_id)


class SqlRollouts:
    """`RolloutStore` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def add(self, release_id: int, everyone: bool, now_ms: int, actor: str) -> Rollout:
        done = self._connection.execute(
            insert(rollouts).values(
                release_id=release_id,
                everyone=everyone,
                status=RolloutStatus.ACTIVE.value,
                created_ms=now_ms,
                created_by=actor,
            )
        )
        key = done.inserted_primary_key
        assert key is not None
        made = self.get(int(key[0]))
        assert made is not None
        return made

    def get(self, number: int, *, lock: bool = False) -> Rollout | None:
        statement = _select_rollouts().where(rollouts.c.number == number)
        if lock:
            statement = statement.with_for_update(of=rollouts)
        row = self._connection.execute(statement).first()
        return None if row is None else _rollout_of(row)

    def halt(self, number: int, now_ms: int) -> None:
        self._connection.execute(
            update(rollouts)
            .where(rollouts.c.number == number)
            .values(status=RolloutStatus.HALTED.value, halted_ms=now_ms)
        )
        self._mark(assignments.c.number == number, "halted", now_ms)

    def progress(self, number: int) -> Progress | None:
        rollout = self.get(number)
        return None if rollout is None else self._counted([rollout])[0]

    def newest(self, limit: int) -> Sequence[Progress]:
        rows = self._connection.execute(_select_rollouts().order_by(rollouts.c.number.desc()).limit(limit))
        return self._counted([_rollout_of(row) for row in rows])

    def _counted(self, found: list[Rollout]) -> list[Progress]:
        rows = self._connection.execute(
            select(assignments.c.number, assignments.c.state, func.count())
            .where(assignments.c.number.in_([one.number for one in found]))
            .group_by(assignments.c.number, assignments.c.state)
        )
        counts: dict[int, dict[Any, int]] = {one.number: {} for one in found}
        for number, state, count in rows:
            counts[number][state] = count
        return [self._progress(one, counts[one.number]) for one in found]

    def _progress(self, rollout: Rollout, counts: Mapping[Any, int]) -> Progress:
        if not rollout.everyone or rollout.status != RolloutStatus.ACTIVE:
            return Progress(rollout, counts, 0)
        hardware = self._hardware(rollout.release_id)
        outdone = any(
            one.product == rollout.product and set(hardware) <= set(one.hardware)
            for one in self.open_to_all(rollout.number)
        )
        return Progress(rollout, counts, 0 if outdone else self._waiting(rollout, hardware), outdone)

    def _waiting(self, rollout: Rollout, hardware: Sequence[str]) -> int:
        """Accepted devices that a rollout to all fits and that have not polled since it was made."""
        product = func.coalesce(device_facts.c.product, "")
        found = self._connection.execute(
            select(func.count())
            .select_from(devices.outerjoin(device_facts, device_facts.c.device_id == devices.c.device_id))
            .where(
                devices.c.status == Status.ACCEPTED.value,
                devices.c.hardware.in_(hardware),
                devices.c.considered < rollout.number,
                or_(product == "", product == rollout.product),
            )
        ).scalar_one()
        return int(found)

    def _hardware(self, release_id: int) -> tuple[str, ...]:
        text = self._connection.execute(
            select(releases.c.hardware).where(releases.c.release_id == release_id)
        ).scalar_one()
        return msgspec.json.decode(text, type=tuple[str, ...])

    def assignments(self, number: int, after: str, limit: int) -> Sequence[AssignmentRow]:
        fell_back = and_(
            assignments.c.first_outcome == "succeeded", assignments.c.rolled_back_seq.is_not(None)
        )
        seq = case((fell_back, assignments.c.rolled_back_seq), else_=assignments.c.first_seq)
        rows = self._connection.execute(
            select(
                assignments.c.assignment_id,
                assignments.c.number,
                assignments.c.device_id,
                *_SUMMARY,
                func.coalesce(reports.c.code, ""),
                func.coalesce(reports.c.detail, ""),
                func.coalesce(reports.c.bytes_fetched, 0),
                func.coalesce(reports.c.bytes_again, 0),
                func.coalesce(reports.c.duration_s, 0.0),
                assignments.c.updated_ms,
            )
            .select_from(
                assignments.outerjoin(
                    reports, and_(reports.c.device_id == assignments.c.device_id, reports.c.seq == seq)
                )
            )
            .where(assignments.c.number == number, assignments.c.device_id > after)
            .order_by(assignments.c.device_id)
            .limit(limit)
        )
        return [_assignment_of(row) for row in rows]

    def open_to_all(self, above: int) -> Sequence[Candidate]:
        rows = self._connection.execute(
            select(rollouts.c.number, releases.c.product, releases.c.hardware)
            .join_from(rollouts, releases, releases.c.release_id == rollouts.c.release_id)
            .where(
                rollouts.c.everyone,
                rollouts.c.status == RolloutStatus.ACTIVE.value,
                rollouts.c.number > above,
            )
        )
        return [
            Candidate(number, product, msgspec.json.decode(hardware, type=tuple[str, ...]))
            for number, product, hardware in rows
        ]

    def assign(self, number: int, device_id: str, now_ms: int) -> None:
        assignment_id = f"r{number}-{device_id}"
        self._mark(assignments.c.device_id == device_id, "superseded", now_ms)
        self._connection.execute(
            insert(assignments).values(
                assignment_id=assignment_id,
                number=number,
                device_id=device_id,
                updated_ms=now_ms,
                **_summary_values(Summary()),
            )
        )
        self._connection.execute(
            update(devices).where(devices.c.device_id == device_id).values(assignment_id=assignment_id)
        )

    def history(self, device_id: str, limit: int) -> Sequence[Past]:
        rows = self._connection.execute(
            select(rollouts.c.release_id, assignments.c.state, releases.c.unlisted_ms.is_(None))
            .join_from(assignments, rollouts, rollouts.c.number == assignments.c.number)
            .join(releases, releases.c.release_id == rollouts.c.release_id)
            .where(assignments.c.device_id == device_id)
            .order_by(assignments.c.number.desc())
            .limit(limit)
        )
        return [Past(release_id, state, bool(listed)) for release_id, state, listed in rows]

    def current_number(self, device_id: str) -> int:
        self._connection.execute(
            select(devices.c.device_id).where(devices.c.device_id == device_id).with_for_update()
        )
        found = self._connection.execute(
            select(assignments.c.number)
            .join_from(devices, assignments, assignments.c.assignment_id == devices.c.assignment_id)
            .where(devices.c.device_id == device_id)
        ).scalar()
        return found or 0

    def considered(self, device_id: str, number: int) -> None:
        self._connection.execute(
            update(devices)
            .where(devices.c.device_id == device_id, devices.c.considered < number)
            .values(considered=number)
        )

    def summary(self, assignment_id: str) -> tuple[str, Summary] | None:
        row = self._connection.execute(
            select(assignments.c.device_id, *_SUMMARY)
            .where(assignments.c.assignment_id == assignment_id)
            .with_for_update()
        ).first()
        return None if row is None else (row[0], Summary(*row[1:]))

    def save(self, assignment_id: str, summary: Summary, now_ms: int) -> None:
        self._connection.execute(
            update(assignments)
            .where(assignments.c.assignment_id == assignment_id)
            .values(updated_ms=now_ms, **_summary_values(summary))
        )

    def _mark(self, which: Any, mark: Mark, now_ms: int) -> None:
        """Marks every open assignment among `which`; open is a state, so its new state is the mark itself."""
        marked = with_mark(Summary(), mark)
        self._connection.execute(
            update(assignments)
            .where(which, assignments.c.state.in_(sorted(OPEN_STATES)))
            .values(mark=mark, state=marked.state, updated_ms=now_ms)
        )


def _summary_values(summary: Summary) -> Mapping[str, Any]:
    return {
        "progress": summary.progress,
        "first_seq": summary.first_seq,
        "first_outcome": summary.first_outcome,
        "rolled_back_seq": summary.rolled_back_seq,
        "mark": summary.mark,
        "state": summary.state,
    }
