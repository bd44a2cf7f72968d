"""The director: its answers by device, and what the image repository signed of each release."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "release_entries",
        sa.Column("release_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("entry_sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["release_id"], ["releases.release_id"], name=op.f("fk_release_entries_release_id")
        ),
        sa.PrimaryKeyConstraint("release_id", name=op.f("pk_release_entries")),
    )
    op.create_table(
        "director_answers",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("basis", sa.String(length=192), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.device_id"], name=op.f("fk_director_answers_device_id")
        ),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_director_answers")),
    )
