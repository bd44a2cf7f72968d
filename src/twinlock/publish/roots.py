"""The root of trust: which keys sign for which role, how many of them, and how that changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Metadata, Root

from twinlock.core.errors import TwinlockError, error
from twinlock.publish import signing
from twinlock.publish.ceremony import Ceremony
from twinlock.publish.keys import ROLES, check_role

KEYID_PREFIX_LENGTH_MIN = 6


@dataclass(frozen=True, slots=True)
class Change:
    """How a root shall differ: keys to add, key ids (or their beginnings) to remove, thresholds, by role."""

    add: Sequence[tuple[str, SSlibKey]] = ()
    remove: Sequence[tuple[str, str]] = ()
    thresholds: Mapping[str, int] | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.add or self.remove or self.thresholds)


def start(
    ceremony: Ceremony, keys: Iterable[tuple[str, SSlibKey]], thresholds: Mapping[str, int]
) -> dict[str, int]:
    """Makes and signs root version 1, or adds signatures to one that waits for them.

    Who adds a signature says with their own keys and thresholds what they expect of that root; what they
    leave out they do not mind. Raises InputError `input-invalid` when it is another one, `input-exists` when
    the repository has a root, `key-missing` and `key-threshold` as `signing.new_root` and
    `Ceremony.complete` do.
    """
    repository = ceremony.repository
    if repository.chain is not None:
        raise error(
            "input-exists",
            f"{repository.folder} has a root of trust already",
            hint="change its keys with `twinlock keys rotate`",
        )
    waiting = repository.pending.get("root")
    if waiting is not None:
        _check_same(waiting.signed, keys, thresholds)
    else:
        by_role: dict[str, list[SSlibKey]] = {role: [] for role in ROLES}
        for role, key in keys:
            by_role[check_role(role)].append(key)
        ends = signing.expires("root", ceremony.now, ceremony.lifetimes)
        repository.pending["root"] = signing.new_root(by_role, thresholds, ends, 1)
    return ceremony.complete()


def _check_same(waiting: Root, keys: Iterable[tuple[str, SSlibKey]], thresholds: Mapping[str, int]) -> None:
    """Raises InputError `input-invalid` when a holder means another root than the one that waits for them."""
    for role, threshold in thresholds.items():
        if waiting.roles[check_role(role)].threshold != threshold:
            raise _other(f"wants {waiting.roles[role].threshold} signatures of {role}, not {threshold}")
    for role, key in keys:
        if key.keyid not in waiting.roles[check_role(role)].keyids:
            raise _other(f"does not name the {role} key {str(key.keyid)[:16]}")


def _other(what: str) -> TwinlockError:
    return error(
        "input-invalid",
        f"the root that waits for your signature {what}",
        hint="agree on one; `twinlock release abandon` drops the one that waits",
    )


def rotate(ceremony: Ceremony, change: Change) -> dict[str, int]:
    """Makes the next root with `change`, and signs it; without a change it signs the one that waits.

    The change is one of the published root. The same change again adds signatures to the root that waits,
    another one replaces it, and its signatures with it. Without a change and with nothing waiting the root is
    renewed. What the new root no longer vouches for is signed again. Raises InputError `input-invalid` for a
    key that is not there, `key-threshold`.
    """
    repository = ceremony.repository
    published = repository.root
    if published is None:
        raise error("input-missing", f"{repository.folder} has no root yet", hint="run `twinlock keys init`")
    waiting = repository.pending.get("root")
    if waiting is None or not change.is_empty:
        wanted = changed(ceremony.following(published), change)
        if waiting is None or _trusts(waiting) != _trusts(wanted):
            ceremony.dropped += len(waiting.signatures) if waiting is not None else 0
            repository.pending["root"] = wanted
    return ceremony.complete()


def _trusts(metadata: Metadata[Root]) -> dict[str, tuple[int, frozenset[str]]]:
    """Whom a root trusts with what."""
    roles = metadata.signed.roles.items()
    return {name: (role.threshold, frozenset(role.keyids)) for name, role in roles}


def changed(metadata: Metadata[Root], change: Change) -> Metadata[Root]:
    """`metadata` with the change done. Raises InputError."""
    root = metadata.signed
    for role, start_of_id in change.remove:
        root.revoke_key(find_key(root, role, start_of_id), check_role(role))
    for role, key in change.add:
        if key.keyid in root.roles[check_role(role)].keyids:
            raise error("input-exists", f"key {key.keyid} signs for {role} already")
        root.add_key(key, role)
    for role, threshold in (change.thresholds or {}).items():
        root.roles[check_role(role)].threshold = threshold
    for role in ROLES:
        have, need = len(root.roles[role].keyids), root.roles[role].threshold
        if not 1 <= need <= have:
            raise error(
                "key-threshold",
                f"{role} would need {need} signatures and have {have} keys",
                hint="add keys with --add, or set --threshold between 1 and their number",
            )
    return metadata


def find_key(root: Root, role: str, start_of_id: str) -> str:
    """The id of the role's key that begins so. Raises InputError `input-invalid` unless exactly one does."""
    found = [keyid for keyid in root.roles[check_role(role)].keyids if keyid.startswith(start_of_id)]
    if len(start_of_id) < KEYID_PREFIX_LENGTH_MIN or len(found) != 1:
        raise error(
            "input-invalid",
            f"{len(found)} keys of {role} have an id that begins with {start_of_id!r}",
            hint=f"`twinlock keys list --repo` shows the ids; give {KEYID_PREFIX_LENGTH_MIN} digits or more",
        )
    return found[0]
