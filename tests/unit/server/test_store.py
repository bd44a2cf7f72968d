"""The database: migrations make exactly the tables, groups commit together, the audit log only grows."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tests.unit.server.rig import Server
from twinlock.core.errors import TwinlockError
from twinlock.server.audit.chain import Entry, append, first_break
from twinlock.server.devices.model import CheckIn, Device, Facts, Status
from twinlock.server.store import database as database_module
from twinlock.server.store import dialect, migrate, writer
from twinlock.server.store.database import SqlDatabase, SqlTransaction
from twinlock.server.store.tables import metadata
from twinlock.server.store.writer import Writer


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqlDatabase]:
    made = SqlDatabase(f"sqlite:///{tmp_path / 'test.db'}")
    made.open()
    yield made
    made.close()


def add_device(transaction: SqlTransaction, device_id: str) -> None:
    transaction.devices.add(Device(device_id, "board", "pem", "0" * 64, Status.ACCEPTED, 1))


def test_the_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    engine = dialect.make_engine(f"sqlite:///{tmp_path / 'test.db'}")
    migrate.migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        found = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_master WHERE name = 'assignments'"
        ).scalar()
    assert "FOREIGN KEY" in str(found)
    engine.dispose()


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    engine = dialect.make_engine(f"sqlite:///{tmp_path / 'test.db'}")
    migrate.migrate(engine)
    with engine.connect() as connection:
        before = connection.exec_driver_sql("SELECT * FROM sqlite_master").all()
    migrate.migrate(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM sqlite_master").all() == before
    engine.dispose()


def test_a_database_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    database = SqlDatabase(f"sqlite:///{path}")
    database.open()
    database.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(TwinlockError, match="version 9999") as caught:
        SqlDatabase(f"sqlite:///{path}").open()
    assert caught.value.code == "input-invalid"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(TwinlockError) as caught:
        SqlDatabase(f"sqlite:///{path}").open()
    assert caught.value.code == "io-error"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("nonsense", "input-invalid"),
        ("mysql://x/y", "input-invalid"),
        ("postgresql+nodriver://x/y", "package-missing"),
    ],
)
def test_a_url_of_no_known_database_is_refused(url: str, code: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        dialect.make_engine(url)
    assert caught.value.code == code


def test_sqlite_is_durable_and_checks_its_references(database: SqlDatabase) -> None:
    with database.read() as transaction:
        pragma = {
            name: transaction.connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": dialect.BUSY_WAIT_MS,
    }
    with pytest.raises(sqlalchemy.exc.IntegrityError), database.write() as transaction:
        transaction.devices.check_in([CheckIn("nobody", 1, Facts())])


def test_every_lookup_compiles_for_postgresql() -> None:
    dialect_ = sqlalchemy.make_url("postgresql+psycopg://").get_dialect()()
    for statement in (database_module._POLL, database_module._OFFERS, database_module._PUBLISHED):
        assert "SELECT" in str(statement.compile(dialect=dialect_))
    for table in metadata.sorted_tables:
        created = sqlalchemy.schema.CreateTable(table).compile(dialect=dialect_)
        assert table.name in str(created)


def test_no_statement_names_a_database_outside_the_dialect() -> None:
    folder = Path(dialect.__file__).parent
    for path in folder.glob("*.py"):
        if path.name != "dialect.py":
            text = path.read_text(encoding="utf-8")
            for word in ("PRAGMA", "sqlite3", "dialects.", "exec_driver_sql", "text("):
                assert word not in text, f"{path.name}: {word}"


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"])
def test_the_audit_log_only_grows(database: SqlDatabase, statement: str) -> None:
    with database.write() as transaction:
        append(transaction.audit, 1, "me", "did", "it")
    with pytest.raises(sqlalchemy.exc.IntegrityError, match="append-only"), database.write() as transaction:
        transaction.connection.exec_driver_sql(statement)


def entries(database: SqlDatabase, count: int = 4) -> list[Entry]:
    with database.write() as transaction:
        for number in range(count):
            append(transaction.audit, number, "me", "did", f"thing {number}", "x" * number)
    with database.read() as transaction:
        return transaction.audit.entries(0, 100)


def test_the_chain_shows_what_was_changed_taken_out_or_put_in(database: SqlDatabase) -> None:
    from dataclasses import replace

    log = entries(database)
    assert first_break(log) is None
    assert first_break([log[0], log[1], replace(log[2], detail="other"), log[3]]) == 3
    assert first_break([log[0], log[2], log[3]]) == 2
    assert first_break([log[0], log[0], *log[1:]]) == 2
    assert first_break([*log[:2], replace(log[2], hash=log[1].hash), log[3]]) == 3
    assert first_break(log[2:], previous=log[1].hash, number=2) is None


def test_appends_at_once_stay_one_chain(database: SqlDatabase) -> None:
    def work() -> None:
        for _ in range(10):
            with database.write() as transaction:
                append(transaction.audit, 1, "me", "did", threading.current_thread().name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as transaction:
        log = transaction.audit.entries(0, 100)
    assert (len(log), first_break(log)) == (40, None)


def test_a_transaction_that_raises_leaves_nothing(database: SqlDatabase) -> None:
    def fail() -> None:
        with database.write() as transaction:
            add_device(transaction, "dev-1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as transaction:
        assert transaction.devices.get("dev-1") is None


class Groups:
    """A stand-in for transactions: counts them, and fails when told to."""

    def __init__(self, database: SqlDatabase) -> None:
        self.database = database
        self.opened = 0
        self.broken: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    @contextmanager
    def __call__(self) -> Iterator[SqlTransaction]:
        self.gate.wait(10)
        self.opened += 1
        with self.database._group() as transaction:
            yield transaction
            if self.broken is not None:
                raise self.broken


@pytest.fixture
def groups(database: SqlDatabase) -> Groups:
    return Groups(database)


def test_work_that_waits_shares_a_commit(groups: Groups) -> None:
    made = Writer(groups)
    made.start()
    groups.gate.clear()
    futures = [made.submit(partial(add_device, device_id=f"dev-{number}")) for number in range(20)]
    groups.gate.set()
    for future in futures:
        future.result(10)
    made.stop()
    assert groups.opened <= 2
    with groups.database.read() as transaction:
        assert transaction.devices.count(Status.ACCEPTED) == 20


def test_work_that_fails_undoes_itself_alone(groups: Groups) -> None:
    made = Writer(groups)

    def fail(transaction: SqlTransaction) -> None:
        add_device(transaction, "bad")
        raise ValueError("mine")

    futures = [
        made.submit(lambda t: add_device(t, "dev-1")),
        made.submit(fail),
        made.submit(lambda t: add_device(t, "dev-1")),
        made.submit(lambda t: add_device(t, "dev-2")),
    ]
    made.start()
    made.stop()
    assert isinstance(futures[1].exception(1), ValueError)
    assert isinstance(futures[2].exception(1), sqlalchemy.exc.IntegrityError)
    assert futures[0].exception(1) is futures[3].exception(1) is None
    with groups.database.read() as transaction:
        assert [row.device.device_id for row in transaction.devices.rows(None, "", 9)] == ["dev-1", "dev-2"]


def test_nothing_is_acknowledged_when_the_commit_fails(groups: Groups) -> None:
    made = Writer(groups)
    groups.broken = OSError("the disk is gone")
    future = made.submit(lambda t: add_device(t, "dev-1"))
    made.start()
    assert isinstance(future.exception(10), OSError)
    groups.broken = None
    assert made.submit(lambda t: add_device(t, "dev-1")).result(10) is None
    made.stop()


def test_check_ins_are_kept_when_writing_them_failed(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHECK_IN_WAIT_S", 0.01)
    with groups.database.write() as transaction:
        add_device(transaction, "dev-1")
        add_device(transaction, "dev-2")
    made = Writer(groups)
    groups.broken = OSError("full")
    made.start()
    made.check_in(CheckIn("dev-1", 1, Facts(version="1")))
    made.check_in(CheckIn("dev-2", 1, Facts()))
    deadline = threading.Event()
    while groups.opened < 3:
        assert not deadline.wait(0.005)
    made.check_in(CheckIn("dev-1", 2, Facts(version="2")))
    groups.broken = None
    made.stop()
    with groups.database.read() as transaction:
        rows = transaction.devices.rows(None, "", 9)
    assert [(row.seen_ms, row.facts and row.facts.version) for row in rows] == [(2, "2"), (1, "")]


def test_facts_that_did_not_change_are_not_written_again(database: SqlDatabase) -> None:
    def changes(transaction: SqlTransaction) -> int:
        return int(transaction.connection.exec_driver_sql("SELECT total_changes()").scalar_one())

    with database.write() as transaction:
        add_device(transaction, "dev-1")
        transaction.devices.check_in([CheckIn("dev-1", 1, Facts(version="1"))])
        before = changes(transaction)
        transaction.devices.check_in([CheckIn("dev-1", 2, Facts(version="1"))])
        assert changes(transaction) - before == 1
        transaction.devices.check_in([CheckIn("dev-1", 3, Facts(version="2"))])
        assert changes(transaction) - before == 3


def test_too_much_work_is_refused(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAITING_MAX", 2)
    made = Writer(groups)
    for _ in range(2):
        made.submit(lambda t: None)
    with pytest.raises(TwinlockError) as caught:
        made.submit(lambda t: None)
    assert caught.value.code == "server-busy"
    made.start()
    made.stop()
    with pytest.raises(TwinlockError, match="stopping"):
        made.submit(lambda t: None)


@pytest.mark.parametrize(
    ("reason", "code", "status"),
    [
        ("database or disk is full", "disk-full", 507),
        ("database is locked", "server-busy", 503),
    ],
)
def test_a_database_that_refuses_is_told_with_its_code(
    server: Server, monkeypatch: pytest.MonkeyPatch, reason: str, code: str, status: int
) -> None:
    from tests.unit.server.rig import code_of

    device = server.device()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError(reason))

    monkeypatch.setattr("twinlock.server.store.reports.SqlReports.add", refuse)
    answer = device.send_reports(device.report("idle"))
    assert (answer.status_code, code_of(answer)) == (status, code)


def test_a_poll_is_one_statement_and_uses_indexes(database: SqlDatabase) -> None:
    engine = database._engine
    compiled = database_module._POLL.compile(dialect=engine.dialect)
    with database.read() as transaction:
        plan = transaction.connection.exec_driver_sql(
            f"EXPLAIN QUERY PLAN {compiled}", {**compiled.params, "device_id": "dev-1"}
        ).all()
    steps = [str(step[3]) for step in plan]
    assert [step for step in steps if step.startswith("SCAN") and "CONSTANT" not in step] == []
    assert sum(step.startswith("SEARCH") for step in steps) == 7
