"""All that differs between SQLite and PostgreSQL; no other file knows which of them it speaks to.

SQLite runs with a write-ahead log and `synchronous=FULL`: a commit that returned survives a power cut. A
transaction that will write begins with BEGIN IMMEDIATE, so that it waits for another writer instead of
failing half way. PostgreSQL's defaults are durable as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import QueuePool

from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Engine, Table

BUSY_WAIT_MS: Final = 10_000
POOL_SIZE: Final = 16
WRITES: Final = "twinlock_writes"

_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={BUSY_WAIT_MS}",
)
_AUDIT_LOCK: Final = 0x7477_6175  # any number that nobody else in the database uses
_SEALS: Final = {
    "sqlite": tuple(
        f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ),
    "postgresql": (
        "CREATE FUNCTION audit_append_only() RETURNS trigger AS $$ BEGIN "
        "RAISE EXCEPTION 'the audit log is append-only'; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit "
        "FOR EACH ROW EXECUTE FUNCTION audit_append_only()",
    ),
}


def make_engine(url: str) -> Engine:
    """The engine for a database URL. Raises InputError `input-invalid` for a URL that names no such one."""
    try:
        parsed = sqlalchemy.make_url(url)
    except ArgumentError as problem:
        raise error("input-invalid", "the setting database_url is no URL of a database") from problem
    backend = parsed.get_backend_name()
    if backend not in _SEALS:
        raise error("input-invalid", f"databases of the kind {backend!r} are not supported")
    options: dict[str, Any] = {"poolclass": QueuePool, "pool_size": POOL_SIZE, "max_overflow": POOL_SIZE}
    if backend == "sqlite":
        options["paramstyle"] = "named"
        options["connect_args"] = {"check_same_thread": False, "timeout": BUSY_WAIT_MS / 1000}
    else:
        options["pool_pre_ping"] = True
    try:
        engine = sqlalchemy.create_engine(parsed, **options)
    except (NoSuchModuleError, ModuleNotFoundError) as problem:
        raise error("package-missing", f"the driver for {parsed.drivername!r} is not installed") from problem
    if backend == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin and end only where SQLAlchemy says so
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def is_sqlite(connection: Connection | Engine) -> bool:
    """Whether lookups are quick enough to be made on the event loop: no network is between."""
    return connection.dialect.name == "sqlite"


def take_turns(connection: Connection) -> None:
    """Lets one transaction at a time append to the audit log; on SQLite every writer waits anyway."""
    if not is_sqlite(connection):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_AUDIT_LOCK})")


def seal_audit(connection: Connection) -> None:
    """Makes the table `audit` append-only in the database itself."""
    for statement in _SEALS[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def upsert(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, only_if_changed: bool = False
) -> None:
    """Inserts rows, or changes those whose primary key is there already; all rows have the same columns.

    With `only_if_changed` a row that holds the same values already is not written again.
    """
    if not rows:
        return
    keys = [column.name for column in table.primary_key.columns]
    names = [name for name in rows[0] if name not in keys]
    make = sqlite.insert if is_sqlite(connection) else postgresql.insert
    statement: Any = make(table)
    changed = sqlalchemy.or_(*(table.c[name].is_distinct_from(statement.excluded[name]) for name in names))
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=keys,
            set_={name: statement.excluded[name] for name in names},
            where=changed if only_if_changed else None,
        ),
        list(rows),
    )
