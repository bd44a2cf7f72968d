"""The first tables.

Made from the table definitions as they stand in the first published version; a later change comes as a
migration of its own, and a test holds that all migrations together make exactly `tables.metadata`.
"""

from alembic import op

from twinlock.server.store import dialect, tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    connection = op.get_bind()
    tables.metadata.create_all(connection)
    dialect.seal_audit(connection)
