"""The first tables: operators, devices, releases, rollouts, reports, and the audit log."""

import sqlalchemy as sa
from alembic import op

from twinlock.server.store import dialect

revision = "0001"
down_revision = None


def upgrade() -> None:
    _operators()
    _devices()
    _releases()
    _rollouts()
    dialect.seal_audit(op.get_bind())


def _operators() -> None:
    op.create_table(
        "operator_tokens",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_operator_tokens")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_operator_tokens_token_sha256")),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=96), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
    )


def _devices() -> None:
    op.create_table(
        "devices",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("hardware", sa.String(length=64), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("enrolled_ms", sa.BigInteger(), nullable=False),
        sa.Column("decided_ms", sa.BigInteger(), nullable=True),
        sa.Column("session_floor_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("report_floor", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("assignment_id", sa.String(length=88), nullable=True),
        sa.Column("considered", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_devices")),
    )
    op.create_index("ix_devices_status", "devices", ["status", "device_id"], unique=False)
    op.create_table(
        "preauthorised",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_preauthorised")),
    )
    op.create_table(
        "indicators",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=96), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("first_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_ms", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "kind", "key", name=op.f("pk_indicators")),
    )
    op.create_table(
        "check_ins",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.device_id"], name=op.f("fk_check_ins_device_id")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_check_ins")),
    )
    op.create_table(
        "device_facts",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("product", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("image_sha256", sa.String(length=64), nullable=False),
        sa.Column("slot", sa.String(length=16), nullable=False),
        sa.Column("floor", sa.BigInteger(), nullable=False),
        sa.Column("agent", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=64), nullable=False),
        sa.Column("abilities", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.device_id"], name=op.f("fk_device_facts_device_id")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_device_facts")),
    )


def _releases() -> None:
    op.create_table(
        "releases",
        sa.Column("release_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("product", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("image_sha256", sa.String(length=64), nullable=False),
        sa.Column("image_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("published_ms", sa.BigInteger(), nullable=False),
        sa.Column("published_by", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("release_id", name=op.f("pk_releases")),
        sa.UniqueConstraint("product", "version", name=op.f("uq_releases_product")),
    )
    op.create_table(
        "release_payloads",
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("index_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("base_sha256", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["release_id"], ["releases.release_id"], name=op.f("fk_release_payloads_release_id")
        ),
        sa.PrimaryKeyConstraint("release_id", "sha256", name=op.f("pk_release_payloads")),
    )
    op.create_index("ix_release_payloads_sha256", "release_payloads", ["sha256"], unique=False)


def _rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("everyone", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("halted_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["release_id"], ["releases.release_id"], name=op.f("fk_rollouts_release_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_rollouts")),
    )
    op.create_index("ix_rollouts_open", "rollouts", ["everyone", "status", "number"], unique=False)
    op.create_table(
        "assignments",
        sa.Column("assignment_id", sa.String(length=88), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("progress", sa.String(length=16), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=True),
        sa.Column("first_outcome", sa.String(length=16), nullable=False),
        sa.Column("rolled_back_seq", sa.BigInteger(), nullable=True),
        sa.Column("mark", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.device_id"], name=op.f("fk_assignments_device_id")),
        sa.ForeignKeyConstraint(["number"], ["rollouts.number"], name=op.f("fk_assignments_number")),
        sa.PrimaryKeyConstraint("assignment_id", name=op.f("pk_assignments")),
        sa.UniqueConstraint("number", "device_id", name=op.f("uq_assignments_number")),
    )
    op.create_index("ix_assignments_device", "assignments", ["device_id"], unique=False)
    op.create_index("ix_assignments_state", "assignments", ["number", "state"], unique=False)
    op.create_table(
        "reports",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("assignment_id", sa.String(length=88), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("product", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("slot", sa.String(length=16), nullable=False),
        sa.Column("bytes_fetched", sa.BigInteger(), nullable=False),
        sa.Column("bytes_again", sa.BigInteger(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.Column("time_s", sa.BigInteger(), nullable=False),
        sa.Column("received_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.device_id"], name=op.f("fk_reports_device_id")),
        sa.PrimaryKeyConstraint("device_id", "seq", name=op.f("pk_reports")),
    )
    op.create_index("ix_reports_assignment", "reports", ["assignment_id", "seq"], unique=False)
