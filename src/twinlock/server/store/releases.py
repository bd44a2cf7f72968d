"""Releases and their payloads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import insert, select, update

from twinlock.core.protocol import PayloadOffer
from twinlock.server.releases.ports import Release
from twinlock.server.store import dialect
from twinlock.server.store.tables import release_payloads, releases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, RowMapping


def release_of(row: RowMapping) -> Release:
    """A row of `releases` as a Release."""
    hardware = msgspec.json.decode(row["hardware"], type=tuple[str, ...])
    return Release(**{**dict(row), "hardware": hardware})


def offer_of(row: Mapping[str, Any] | RowMapping) -> PayloadOffer:
    """A row of `release_payloads` as an offer."""
    base = row["base_sha256"]
    return PayloadOffer(
        kind=row["kind"],
        sha256=bytes.fromhex(row["sha256"]),
        size_bytes=row["size_bytes"],
        index_size_bytes=row["index_size_bytes"],
        base_sha256=None if base is None else bytes.fromhex(base),
    )


class SqlReleases:
    """`ReleaseStore` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    def get(self, product: str, version: str) -> Release | None:
        row = self._connection.execute(
            select(releases).where(releases.c.product == product, releases.c.version == version)
        ).mappings()
        found = row.first()
        return None if found is None else release_of(found)

    def add(self, release: Release) -> int:
        values = {
            name: getattr(release, name)
            for name in (column.name for column in releases.columns)
            if name not in ("release_id", "hardware")
        }
        hardware = msgspec.json.encode(release.hardware).decode()
        done = self._connection.execute(insert(releases).values(**values, hardware=hardware))
        key = done.inserted_primary_key
        assert key is not None
        return int(key[0])

    def unlist(self, release_id: int, at_ms: int | None) -> None:
        self._connection.execute(
            update(releases).where(releases.c.release_id == release_id).values(unlisted_ms=at_ms)
        )

    def newest(self, limit: int) -> Sequence[Release]:
        rows = self._connection.execute(
            select(releases).order_by(releases.c.release_id.desc()).limit(limit)
        ).mappings()
        return [release_of(row) for row in rows]

    def payloads(self, release_id: int) -> tuple[PayloadOffer, ...]:
        rows = self._connection.execute(
            select(release_payloads).where(release_payloads.c.release_id == release_id)
        ).mappings()
        return tuple(sorted(map(offer_of, rows), key=lambda one: (one.kind != "full", one.size_bytes)))

    def add_payloads(self, release_id: int, offers: Sequence[PayloadOffer]) -> None:
        rows = [
            {
                "release_id": release_id,
                "sha256": one.sha256.hex(),
                "kind": one.kind,
                "size_bytes": one.size_bytes,
                "index_size_bytes": one.index_size_bytes,
                "base_sha256": None if one.base_sha256 is None else one.base_sha256.hex(),
            }
            for one in offers
        ]
        dialect.upsert(self._connection, release_payloads, rows)
