"""What of a repository expires when, and what to say about it in time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from twinlock.publish import lists, signing
from twinlock.publish.repository import Repository

_RENEW = {
    "root": "twinlock keys rotate",
    "targets": "twinlock release refresh --all",
    "snapshot": "twinlock release refresh",
    "timestamp": "twinlock release refresh",
}


@dataclass(frozen=True, slots=True)
class Expiry:
    """When one role's published metadata ends."""

    role: str
    version: int
    expires: datetime


def expiries(repository: Repository) -> list[Expiry]:
    """Every published role with its end, root first."""
    found = []
    for role in (*signing.KINDS, *sorted(set(repository.published_files()) - {lists.TOP})):
        published = repository.published(role)
        if published is not None:
            found.append(Expiry(role, published.signed.version, published.signed.expires))
    return found


def warnings(repository: Repository, now: datetime) -> list[str]:
    """One sentence for each role that has expired or will within a quarter of its usual life."""
    texts = []
    for one in expiries(repository):
        command = f"renew it with `{_RENEW[lists.kind_of(one.role)]} --repo {repository.folder}`"
        day = one.expires.strftime("%Y-%m-%d %H:%M UTC")
        if one.expires <= now:
            texts.append(f"{one.role} metadata expired at {day}; devices refuse it; {command}")
        elif one.expires - now < timedelta(days=signing.warn_days(lists.kind_of(one.role))):
            days = (one.expires - now).days
            texts.append(f"{one.role} metadata expires in {days} days ({day}); {command}")
    return texts
