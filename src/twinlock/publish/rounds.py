"""A signing request's way out of a repository and back into it.

Holders may sign one after the other, or each a copy of their own: what comes back is only ever added. Nothing
of a request that comes back is taken but signatures over the bytes that wait here.
"""

from __future__ import annotations

from collections.abc import Sequence

from twinlock.core import limits
from twinlock.core.durable import read_bounded
from twinlock.core.errors import TwinlockError, error
from twinlock.publish import lists, signing
from twinlock.publish.ceremony import Ceremony
from twinlock.publish.releases import (
    details_name,
    details_path,
    list_releases,
    manifest_path,
    read_record,
)
from twinlock.publish.repository import Repository
from twinlock.publish.request import Checked, Request

ONLINE = ("snapshot", "timestamp")


def make(repository: Repository) -> Request:
    """The request for what waits in `repository`. Raises InputError `input-missing` when nothing does."""
    files = {
        role: signing.encode(metadata) for role, metadata in repository.pending.items() if role not in ONLINE
    }
    if not files:
        raise error(
            "input-missing",
            f"nothing waits for signatures of others in {repository.folder}",
            hint="prepare something with `twinlock release sign FOLDER` or `twinlock keys rotate`",
        )
    published = repository.published_files()
    wanted = {role for role in files if role != "root"}
    for role, delegator, _ in lists.walk(repository.list_of):
        if role in files and role != lists.TOP:
            wanted |= {delegator, lists.TOP}  # they say whose signatures count
    return Request(
        format="twinlock-signing-request",
        format_version=1,
        roots=() if repository.chain is None else repository.chain.roots,
        base={role: published[role] for role in sorted(wanted) if role in published},
        files=files,
        manifests=_manifests(repository),
    )


def _manifests(repository: Repository) -> dict[str, bytes]:
    """The manifests and details that no published list names."""
    found: dict[str, bytes] = {}
    new = set(repository.entries(pending=True)) - set(repository.entries(pending=False))
    for one in list_releases(repository):
        if not one.published:
            record = read_record(repository, one)
            path = manifest_path(repository.folder, one.claims, record)
            if one.name in new:
                found[one.name] = read_bounded(path, limits.MANIFEST_SIZE_BYTES_MAX, "manifest")
            at = details_name(one.claims)
            if one.details_sha256 is not None and at in new:
                path = details_path(repository.folder, one.claims, one.details_sha256)
                found[at] = read_bounded(path, limits.DETAILS_SIZE_BYTES_MAX, "details")
    return found


def collect(ceremony: Ceremony, came_back: Sequence[Checked]) -> int:
    """Adds the signatures that came back to what waits, and makes them durable; how many were new.

    Raises PolicyError `request-stale` when something else was signed since the request was made,
    `signature-repeated` when nothing new came back, TrustError `request-changed` when it asks for other bytes
    than those that wait.
    """
    repository = ceremony.repository
    for checked in came_back:
        _check_same(repository, checked)
    added = 0
    for item in (item for checked in came_back for item in checked.items):
        waiting = repository.pending[item.role]
        for keyid, signature in item.metadata.signatures.items():
            if keyid not in waiting.signatures:
                waiting.signatures[keyid] = signature
                added += 1
    if not added:
        raise error(
            "signature-repeated", f"no signature came back that {repository.folder} does not have already"
        )
    repository.save_pending()
    return added


def _check_same(repository: Repository, checked: Checked) -> None:
    known = () if repository.chain is None else repository.chain.roots
    asked = checked.request.roots
    if asked != known:
        if known[: len(asked)] == asked:
            raise _stale(repository, f"root version {len(known)} is in force since")
        raise error("request-changed", f"the request starts from other roots than {repository.folder}")
    published = repository.published_files()
    for role, data in checked.request.base.items():
        if published.get(role) != data:
            raise _stale(repository, f"another version of {role} is in force since")
    for item in checked.items:
        waiting = repository.pending.get(item.role)
        if item.role != "root" and item.base is None and item.role in published:
            raise _stale(repository, f"a first version of {item.role} is in force since")
        if waiting is None:
            raise _stale(repository, f"no {item.role} waits for signatures here any more")
        if signing.signed_text(waiting) != signing.signed_text(item.metadata):
            raise error(
                "request-changed",
                f"{item.role} in the request is not what waits in {repository.folder}: it was changed on its "
                "way, or something else was prepared here since",
                hint="compare the digests; then make a new request with `twinlock release request`",
            )


def _stale(repository: Repository, why: str) -> TwinlockError:
    return error("request-stale", f"the request is of an earlier state of {repository.folder}: {why}")
