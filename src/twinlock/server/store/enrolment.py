"""Preauthorised keys, enrolment tokens and operators' tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, func, insert, select, update

from twinlock.server.enrolment.tokens import EnrolmentToken
from twinlock.server.store import dialect
from twinlock.server.store.tables import enrolment_tokens, operator_tokens, preauthorised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection


_TOKEN: Final = tuple(enrolment_tokens.c[name] for name in EnrolmentToken.__slots__)


class SqlEnrolment:
    """`EnrolmentStore` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def preauthorised(self, device_id: str) -> str | None:
        return self._connection.execute(
            select(preauthorised.c.fingerprint).where(preauthorised.c.device_id == device_id)
        ).scalar()

    def preauthorise(self, device_id: str, fingerprint: str, now_ms: int) -> None:
        row = {"device_id": device_id, "fingerprint": fingerprint, "created_ms": now_ms}
        dialect.upsert(self._connection, preauthorised, [row])

    def use_preauthorisation(self, device_id: str) -> None:
        self._connection.execute(delete(preauthorised).where(preauthorised.c.device_id == device_id))

    def token(self, token_sha256: str) -> EnrolmentToken | None:
        statement = select(*_TOKEN).where(enrolment_tokens.c.token_sha256 == token_sha256)
        row = self._connection.execute(statement.with_for_update()).first()
        return None if row is None else EnrolmentToken(*row)

    def token_named(self, name: str) -> EnrolmentToken | None:
        row = self._connection.execute(select(*_TOKEN).where(enrolment_tokens.c.name == name)).first()
        return None if row is None else EnrolmentToken(*row)

    def tokens(self, limit: int) -> list[EnrolmentToken]:
        newest = select(*_TOKEN).order_by(
            enrolment_tokens.c.created_ms.desc(), enrolment_tokens.c.name.desc()
        )
        return [EnrolmentToken(*row) for row in self._connection.execute(newest.limit(limit))]

    def count_open_tokens(self, now_ms: int) -> int:
        found = self._connection.execute(
            select(func.count())
            .select_from(enrolment_tokens)
            .where(
                enrolment_tokens.c.used_by == "",
                enrolment_tokens.c.revoked_ms.is_(None),
                enrolment_tokens.c.expires_ms > now_ms,
            )
        ).scalar_one()
        return int(found)

    def add_token(self, token: EnrolmentToken) -> None:
        values = {name: getattr(token, name) for name in EnrolmentToken.__slots__}
        self._connection.execute(insert(enrolment_tokens).values(**values))

    def revoke_token(self, name: str, now_ms: int) -> bool:
        own = enrolment_tokens.c
        done = self._connection.execute(
            update(enrolment_tokens)
            .where(own.name == name, own.used_by == "", own.revoked_ms.is_(None))
            .values(revoked_ms=now_ms)
        )
        return done.rowcount == 1

    def use_token(self, name: str, device_id: str, now_ms: int) -> None:
        self._connection.execute(
            update(enrolment_tokens)
            .where(enrolment_tokens.c.name == name)
            .values(used_by=device_id, used_ms=now_ms)
        )


class SqlOperators:
    """`Operators` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def all(self) -> Sequence[tuple[str, str]]:
        rows = self._connection.execute(select(operator_tokens.c.name, operator_tokens.c.token_sha256))
        return [(name, token_sha256) for name, token_sha256 in rows]

    def add(self, name: str, token_sha256: str, now_ms: int) -> None:
        row = {"name": name, "token_sha256": token_sha256, "created_ms": now_ms}
        dialect.upsert(self._connection, operator_tokens, [row])
