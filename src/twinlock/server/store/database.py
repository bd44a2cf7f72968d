"""Transactions, and the lookups that the event loop makes by itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import bindparam, func, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from twinlock.core.errors import error
from twinlock.core.protocol import PayloadOffer
from twinlock.server.devices.model import CheckIn, Status
from twinlock.server.director.answers import Kept
from twinlock.server.ports import PollView
from twinlock.server.store import dialect
from twinlock.server.store.audit import SqlAudit
from twinlock.server.store.devices import SqlDevices
from twinlock.server.store.director import SqlDirector
from twinlock.server.store.enrolment import SqlEnrolment, SqlOperators
from twinlock.server.store.evidence import SqlEvidence
from twinlock.server.store.migrate import migrate
from twinlock.server.store.releases import SqlReleases, offer_of
from twinlock.server.store.reports import SqlReports
from twinlock.server.store.rollouts import SqlRollouts
from twinlock.server.store.tables import (
    assignments,
    devices,
    director_answers,
    release_entries,
    release_payloads,
    releases,
    rollouts,
)
from twinlock.server.store.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, Engine, Select

T = TypeVar("T")

# What a release offers is asked for at every poll of a rollout. Another process may add payloads to it, which
# is seen after this time; what this process writes, at once.
_OFFERS_KEPT_S: Final = 1.0
_OFFERS_KEPT_MAX: Final = 1024

_open_to_all: Final = (
    select(func.coalesce(func.max(rollouts.c.number), 0))
    .where(rollouts.c.everyone, rollouts.c.status == "active")
    .scalar_subquery()
)
_POLL: Final = (
    select(
        devices.c.status,
        devices.c.hardware,
        devices.c.fingerprint,
        devices.c.considered,
        _open_to_all.label("newest_to_all"),
        assignments.c.assignment_id,
        assignments.c.state,
        rollouts.c.status.label("rollout_status"),
        releases.c.release_id,
        releases.c.product,
        releases.c.version,
        releases.c.image_sha256,
        devices.c.session_floor_us,
        release_entries.c.entry_sha256,
        director_answers.c.version.label("directed_version"),
        director_answers.c.basis,
        director_answers.c.expires_ms,
        director_answers.c.answer,
    )
    .select_from(
        devices.outerjoin(assignments, assignments.c.assignment_id == devices.c.assignment_id)
        .outerjoin(rollouts, rollouts.c.number == assignments.c.number)
        .outerjoin(releases, releases.c.release_id == rollouts.c.release_id)
        .outerjoin(release_entries, release_entries.c.release_id == rollouts.c.release_id)
        .outerjoin(director_answers, director_answers.c.device_id == devices.c.device_id)
    )
    .where(devices.c.device_id == bindparam("device_id"))
)
_OFFERS: Final = select(release_payloads).where(release_payloads.c.release_id == bindparam("release"))
_KEY: Final = select(devices.c.public_key).where(devices.c.device_id == bindparam("device_id"))
_PUBLISHED: Final = (
    select(release_payloads.c.release_id).where(release_payloads.c.sha256 == bindparam("payload")).limit(1)
)


class SqlTransaction:
    """Every store on one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection: Final = connection
        self.devices: Final = SqlDevices(connection)
        self.enrolment: Final = SqlEnrolment(connection)
        self.releases: Final = SqlReleases(connection)
        self.rollouts: Final = SqlRollouts(connection)
        self.reports: Final = SqlReports(connection)
        self.evidence: Final = SqlEvidence(connection)
        self.director: Final = SqlDirector(connection)
        self.audit: Final = SqlAudit(connection)
        self.operators: Final = SqlOperators(connection)


class SqlDatabase:
    """The database of one server. `open` migrates it; `close` flushes what waits.

    Lookups for the event loop: on SQLite they run on the loop's thread over one connection and a statement
    that was compiled once (tens of microseconds); over a network they go to a thread.
    """

    def __init__(self, url: str) -> None:
        self._engine: Final[Engine] = dialect.make_engine(url)
        self._writes: Final = self._engine.execution_options(**{dialect.WRITES: True})
        self._writer: Final = Writer(self._group)
        self._lookups: dict[Select[Any], tuple[str, dict[str, Any]]] = {}
        self._offers: dict[int, tuple[float, tuple[PayloadOffer, ...]]] = {}
        self._direct: Any = None
        self._is_open = False

    def open(self) -> None:
        """Migrates the database and starts the writer, once. Raises what `migrate` raises."""
        if self._is_open:
            return
        self._is_open = True
        migrate(self._engine)
        self._writer.start()

    def close(self) -> None:
        """Writes everything that waits, then closes every connection."""
        self._writer.stop()
        if self._direct is not None:
            self._direct.close()
            self._direct = None
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[SqlTransaction]:
        with _translated(), self._engine.connect() as connection:
            yield SqlTransaction(connection)

    @contextmanager
    def write(self) -> Iterator[SqlTransaction]:
        with _translated(), self._writes.begin() as connection:
            yield SqlTransaction(connection)
        self._offers.clear()

    @contextmanager
    def _group(self) -> Iterator[SqlTransaction]:
        with self._writes.begin() as connection:
            yield SqlTransaction(connection)

    async def submit(self, work: Callable[[SqlTransaction], T]) -> T:
        with _translated():
            return await asyncio.wrap_future(self._writer.submit(work))

    def check_in(self, check_in: CheckIn) -> None:
        self._writer.check_in(check_in)

    async def poll_view(self, device_id: str) -> PollView | None:
        rows = await self._look_up(_POLL, {"device_id": device_id})
        if not rows:
            return None
        status, hardware, fingerprint, considered, newest, assignment_id, state, rollout, *rest = rows[0]
        release_id, product, version, image_sha256, session_floor_us, entry_sha256, *directed = rest
        return PollView(
            status=Status(status),
            hardware=hardware,
            fingerprint=fingerprint,
            considered=considered,
            newest_to_all=newest,
            assignment_id=assignment_id,
            state=state or "",
            rollout_open=rollout == "active",
            release_id=release_id or 0,
            product=product or "",
            version=version or "",
            image_sha256=image_sha256 or "",
            session_floor_us=session_floor_us,
            entry_sha256=entry_sha256 or "",
            directed=None if directed[0] is None else Kept(*directed),
        )

    async def offers(self, release_id: int) -> tuple[PayloadOffer, ...]:
        known = self._offers.get(release_id)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        rows = await self._look_up(_OFFERS, {"release": release_id})
        names = [column.name for column in release_payloads.columns]
        found = [offer_of(dict(zip(names, row, strict=True))) for row in rows]
        offers = tuple(sorted(found, key=_full_first))
        if len(self._offers) >= _OFFERS_KEPT_MAX:
            self._offers.clear()
        self._offers[release_id] = time.monotonic() + _OFFERS_KEPT_S, offers
        return offers

    async def public_key(self, device_id: str) -> str | None:
        rows = await self._look_up(_KEY, {"device_id": device_id})
        return rows[0][0] if rows else None

    async def is_published(self, payload_sha256: str) -> bool:
        return bool(await self._look_up(_PUBLISHED, {"payload": payload_sha256}))

    async def _look_up(self, statement: Select[Any], values: dict[str, Any]) -> Sequence[Any]:
        with _translated():
            if not dialect.is_sqlite(self._engine):
                return await asyncio.to_thread(self._look_up_pooled, statement, values)
            found = self._lookups.get(statement)
            if found is None:
                compiled = statement.compile(dialect=self._engine.dialect)
                found = self._lookups[statement] = str(compiled), dict(compiled.params)
            text, constants = found
            if self._direct is None:
                self._direct = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            cursor = self._direct.connection.cursor()
            try:
                cursor.execute(text, {**constants, **values})
                rows: Sequence[Any] = cursor.fetchall()
            finally:
                cursor.close()
            return rows

    def _look_up_pooled(self, statement: Select[Any], values: dict[str, Any]) -> Sequence[Any]:
        with self._engine.connect() as connection:
            return connection.execute(statement, values).all()


def _full_first(offer: PayloadOffer) -> tuple[bool, int]:
    return offer.kind != "full", offer.size_bytes


@contextmanager
def _translated() -> Iterator[None]:
    """Turns the database's own failures into codes: locked or gone is `server-busy`, full is `disk-full`."""
    try:
        yield
    except SQLAlchemyError as problem:
        reason = str(getattr(problem, "orig", None) or problem)
        if "disk is full" in reason or "No space left" in reason:
            raise error("disk-full", f"the database cannot grow: {reason}") from problem
        if isinstance(problem, OperationalError):
            raise error("server-busy", f"the database does not answer: {reason}") from problem
        raise
