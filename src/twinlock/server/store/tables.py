"""The tables. Times are milliseconds since 1970 (`_ms`), hashes lower-case hex. Migrations make them.

`check_ins` is a narrow table of its own because every poll changes it; `device_facts` changes only when a
device says something new. `devices.assignment_id` is the newest assignment, so that a poll is one lookup.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from twinlock.core import limits

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_DEVICE_ID = String(limits.DEVICE_ID_LENGTH_MAX)
_NAME = String(limits.NAME_LENGTH_MAX)
_VERSION = String(limits.VERSION_LENGTH_MAX)
_SHA256 = String(64)
_ASSIGNMENT_ID = String(limits.DEVICE_ID_LENGTH_MAX + 24)

operator_tokens = Table(
    "operator_tokens",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("token_sha256", _SHA256, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("device_id", _DEVICE_ID, primary_key=True),
    Column("hardware", _NAME, nullable=False),
    Column("public_key", Text, nullable=False),
    Column("fingerprint", _SHA256, nullable=False),
    Column("status", String(16), nullable=False),
    Column("enrolled_ms", BigInteger, nullable=False),
    Column("decided_ms", BigInteger),
    Column("session_floor_us", BigInteger, nullable=False, server_default="0"),
    Column("report_floor", BigInteger, nullable=False, server_default="0"),
    Column("assignment_id", _ASSIGNMENT_ID),
    Column("considered", Integer, nullable=False, server_default="0"),
    Index("ix_devices_status", "status", "device_id"),
)

preauthorised = Table(
    "preauthorised",
    metadata,
    Column("device_id", _DEVICE_ID, primary_key=True),
    Column("fingerprint", _SHA256, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("token_sha256", _SHA256, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", _NAME, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("used_by", _DEVICE_ID, nullable=False, server_default=""),
    Column("used_ms", BigInteger),
    Column("revoked_ms", BigInteger),
)

indicators = Table(
    "indicators",
    metadata,
    Column("device_id", _DEVICE_ID, primary_key=True),
    Column("kind", String(40), primary_key=True),
    Column("key", String(96), primary_key=True),
    Column("detail", Text, nullable=False),
    Column("first_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
    Column("count", Integer, nullable=False),
)

check_ins = Table(
    "check_ins",
    metadata,
    Column("device_id", _DEVICE_ID, ForeignKey("devices.device_id"), primary_key=True),
    Column("seen_ms", BigInteger, nullable=False),
)

device_facts = Table(
    "device_facts",
    metadata,
    Column("device_id", _DEVICE_ID, ForeignKey("devices.device_id"), primary_key=True),
    Column("product", _NAME, nullable=False),
    Column("version", _VERSION, nullable=False),
    Column("counter", BigInteger, nullable=False),
    Column("image_sha256", _SHA256, nullable=False),
    Column("slot", String(16), nullable=False),
    Column("floor", BigInteger, nullable=False),
    Column("agent", String(64), nullable=False),
    Column("state", String(64), nullable=False),
    Column("abilities", Text, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("release_id", Integer, primary_key=True, autoincrement=True),
    Column("product", _NAME, nullable=False),
    Column("version", _VERSION, nullable=False),
    Column("counter", BigInteger, nullable=False),
    Column("hardware", Text, nullable=False),
    Column("manifest_sha256", _SHA256, nullable=False),
    Column("image_sha256", _SHA256, nullable=False),
    Column("image_size_bytes", BigInteger, nullable=False),
    Column("notes", Text, nullable=False),
    Column("published_ms", BigInteger, nullable=False),
    Column("published_by", _NAME, nullable=False),
    Column("unlisted_ms", BigInteger),
    UniqueConstraint("product", "version"),
)

release_payloads = Table(
    "release_payloads",
    metadata,
    Column("release_id", Integer, ForeignKey("releases.release_id"), primary_key=True),
    Column("sha256", _SHA256, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("index_size_bytes", BigInteger, nullable=False),
    Column("base_sha256", _SHA256),
    Index("ix_release_payloads_sha256", "sha256"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("release_id", Integer, ForeignKey("releases.release_id"), nullable=False),
    Column("everyone", Boolean, nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", _NAME, nullable=False),
    Column("halted_ms", BigInteger),
    Index("ix_rollouts_open", "everyone", "status", "number"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("assignment_id", _ASSIGNMENT_ID, primary_key=True),
    Column("number", Integer, ForeignKey("rollouts.number"), nullable=False),
    Column("device_id", _DEVICE_ID, ForeignKey("devices.device_id"), nullable=False),
    Column("progress", String(16), nullable=False),
    Column("first_seq", BigInteger),
    Column("first_outcome", String(16), nullable=False),
    Column("rolled_back_seq", BigInteger),
    Column("mark", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    UniqueConstraint("number", "device_id"),
    Index("ix_assignments_state", "number", "state"),
    Index("ix_assignments_device", "device_id"),
)

reports = Table(
    "reports",
    metadata,
    Column("device_id", _DEVICE_ID, ForeignKey("devices.device_id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("assignment_id", _ASSIGNMENT_ID, nullable=False),
    Column("state", String(16), nullable=False),
    Column("code", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("product", _NAME, nullable=False),
    Column("version", _VERSION, nullable=False),
    Column("slot", String(16), nullable=False),
    Column("bytes_fetched", BigInteger, nullable=False),
    Column("bytes_again", BigInteger, nullable=False),
    Column("duration_s", Float, nullable=False),
    Column("time_s", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("body_sha256", _SHA256, nullable=False),
    Index("ix_reports_assignment", "assignment_id", "seq"),
)

evidence = Table(
    "evidence",
    metadata,
    Column("device_id", _DEVICE_ID, ForeignKey("devices.device_id"), primary_key=True),
    Column("name", _SHA256, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("assignment_id", _ASSIGNMENT_ID, nullable=False),
    Column("product", _NAME, nullable=False),
    Column("version", _VERSION, nullable=False),
    Column("slot", String(16), nullable=False),
    Column("time_s", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

release_entries = Table(
    "release_entries",
    metadata,
    Column("release_id", Integer, ForeignKey("releases.release_id"), primary_key=True, autoincrement=False),
    Column("entry", Text, nullable=False),
    Column("entry_sha256", _SHA256, nullable=False),
)

director_answers = Table(
    "director_answers",
    metadata,
    Column("device_id", _DEVICE_ID, ForeignKey("devices.device_id"), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("basis", String(192), nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("answer", LargeBinary, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String(96), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", _SHA256, nullable=False),
    Column("hash", _SHA256, nullable=False),
)
