"""Releases that the signed metadata names no more."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("releases", sa.Column("unlisted_ms", sa.BigInteger(), nullable=True))
