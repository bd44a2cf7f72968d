"""Brings a database to this program's version, in one transaction, when a server starts.

A power cut during it leaves the database at the version before. A database of a later version is refused: a
program that does not know its tables would damage it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from twinlock.core.errors import error
from twinlock.server.store import dialect

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_SCRIPTS: Final = "twinlock.server.store:migrations"


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def migrate(engine: Engine) -> None:
    """Runs every migration that the database lacks.

    Raises InputError `input-invalid` when the database is of a later version, DeviceError `io-error` when it
    cannot be opened or written.
    """
    try:
        with engine.execution_options(**{dialect.WRITES: True}).begin() as connection:
            config = _config(connection)
            present = MigrationContext.configure(connection).get_current_revision()
            scripts = ScriptDirectory.from_config(config)
            if present is not None and present not in {one.revision for one in scripts.walk_revisions()}:
                raise error(
                    "input-invalid",
                    f"the database has version {present}, which this program does not know",
                    hint="start the version of Twinlock that wrote it, or a later one",
                )
            if present != scripts.get_current_head():
                command.upgrade(config, "head")
    except SQLAlchemyError as problem:
        raise error(
            "io-error",
            f"the database cannot be opened or written: {getattr(problem, 'orig', None) or problem}",
            hint="check that the folder and its files belong to the user that runs the server",
        ) from problem
