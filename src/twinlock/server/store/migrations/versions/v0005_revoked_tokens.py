"""Enrolment tokens that were taken back."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("enrolment_tokens", sa.Column("revoked_ms", sa.BigInteger(), nullable=True))
