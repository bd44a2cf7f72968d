"""The audit log's chain: each entry's hash covers its fields and the hash before it.

Taking an entry out, changing one or putting one in between breaks the chain at that place, for anybody who
kept any later hash. It does not stop somebody who owns the machine from writing a new chain: copy the newest
hash elsewhere from time to time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

START: Final = "0" * 64
DETAIL_LENGTH_MAX: Final = 2000


@dataclass(frozen=True, slots=True)
class Entry:
    """One action. `number` rises by one from 1; `at_ms` is milliseconds since 1970, UTC."""

    number: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: str
    previous: str
    hash: str


class AuditStore(Protocol):
    """The log in one transaction."""

    def last(self) -> Entry | None:
        """The newest entry; locks the log until the transaction ends."""
        ...

    def add(self, entry: Entry) -> None:
        """Appends an entry."""
        ...

    def entries(self, after: int, limit: int) -> list[Entry]:
        """Up to `limit` entries with numbers above `after`, oldest first."""
        ...


def hash_of(
    number: int, at_ms: int, actor: str, action: str, subject: str, detail: str, previous: str
) -> str:
    """SHA-256 over the fields as one JSON array, 64 hex digits."""
    fields = [number, at_ms, actor, action, subject, detail, previous]
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def append(store: AuditStore, now_ms: int, actor: str, action: str, subject: str, detail: str = "") -> Entry:
    """Appends one action to the log, in the transaction of what it tells about."""
    last = store.last()
    number, previous = (1, START) if last is None else (last.number + 1, last.hash)
    detail = detail[:DETAIL_LENGTH_MAX]
    entry = Entry(
        number,
        now_ms,
        actor,
        action,
        subject,
        detail,
        previous,
        hash_of(number, now_ms, actor, action, subject, detail, previous),
    )
    store.add(entry)
    return entry


def first_break(entries: Iterable[Entry], previous: str = START, number: int = 0) -> int | None:
    """The number of the first entry that does not continue the chain, or None when all do."""
    for entry in entries:
        number += 1
        expected = hash_of(
            entry.number, entry.at_ms, entry.actor, entry.action, entry.subject, entry.detail, entry.previous
        )
        if (entry.number, entry.previous, entry.hash) != (number, previous, expected):
            return number
        previous = entry.hash
    return None
