"""What a signing request asks for, in plain words: what changes, for which hardware, from which counter to
which, which keys come and go. Holders sign what they read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuf.api.metadata import Root, Targets

from twinlock.core.details import SUFFIX, Details
from twinlock.core.manifest import Claims
from twinlock.core.trust.verifier import claims_of
from twinlock.publish.keys import ROLES
from twinlock.publish.request import Checked, Item

DIGEST_GROUP = 4
DIGEST_SHOWN = 32


def describe(checked: Checked) -> list[str]:
    """One sentence a line; details are indented by two spaces."""
    lines = [f"Request {spoken(checked.digest)}: the same for all holders, compare it by another way."]
    for item in checked.items:
        lines += _of_root(item) if item.role == "root" else _of_releases(item, checked)
        lines += _of_signatures(item)
    return lines


def spoken(digest: str) -> str:
    """The first half of a digest in groups, to be read aloud: 128 bits, which nobody can forge."""
    return " ".join(digest[at : at + DIGEST_GROUP] for at in range(0, DIGEST_SHOWN, DIGEST_GROUP))


def _of_root(item: Item) -> list[str]:
    new: Root = item.metadata.signed
    old = item.judges[0] if len(item.judges) > 1 else None
    assert old is None or isinstance(old, Root)
    title = "The first root of trust" if old is None else f"Root of trust {old.version} -> {new.version}"
    lines = [f"{title}, valid until {_day(new)}:"]
    changes = []
    for role in ROLES:
        before = set(old.roles[role].keyids) if old is not None else set()
        after = list(new.roles[role].keyids)
        for keyid in after:
            if keyid not in before:
                changes.append(f"  {role}: key {_key(keyid, new.keys)} comes")
        for keyid in sorted(before - set(after)):
            assert old is not None
            changes.append(f"  {role}: key {_key(keyid, old.keys)} goes")
        need = f"{new.roles[role].threshold} of {len(after)} keys must sign"
        if old is None:
            changes.append(f"  {role}: {need}")
        elif (old.roles[role].threshold, len(before)) != (new.roles[role].threshold, len(after)):
            changes.append(f"  {role}: {need} (before: {old.roles[role].threshold} of {len(before)})")
    return lines + (changes or ["  the same keys and thresholds, a new end"])


def _of_releases(item: Item, checked: Checked) -> list[str]:
    new: Targets = item.metadata.signed
    known: Mapping[str, Any] = {} if item.base is None else item.base.signed.targets
    before = 0 if item.base is None else item.base.signed.version
    named = "List of releases" if item.role == "targets" else f"List of releases of {item.role}"
    lines = [f"{named} {before} -> {new.version}, valid until {_day(new)}:"]
    changes = _of_delegations(item)
    elsewhere = {
        name for one in checked.items if one.role != "root" and one.base for name in one.base.signed.targets
    }
    here = sorted(name for name in new.targets if name in known or name not in elsewhere)
    for name in here:
        if name not in known and name.endswith(SUFFIX):
            changes += _of_details(checked.details[name])
        elif name not in known:
            changes += _of_release(checked, name, claims_of(new.targets[name]), known)
    others = {name for one in checked.items if one.role != "root" for name in one.metadata.signed.targets}
    gone = sorted(name for name in known if name not in new.targets)
    changes += [f"  {name} is taken back" for name in gone if name not in others]
    moved = sum(name in others for name in gone)
    if moved:
        changes.append(f"  {moved} names move to other lists of this request, unchanged")
    return lines + (changes or ["  the same releases, a new end"])


def _of_release(checked: Checked, name: str, claims: Claims, known: Mapping[str, Any]) -> list[str]:
    others = [claims_of(entry) for at, entry in known.items() if not at.endswith(SUFFIX)]
    counters = [one.counter for one in others if one.product == claims.product]
    counter = f"{max(counters)} -> {claims.counter}" if counters else str(claims.counter)
    hardware = ", ".join(claims.hardware)
    lines = [f"  new release {claims.product} {claims.version} for {hardware}, counter {counter}"]
    if counters and claims.counter < max(counters):
        lines.append("    its counter is lower: devices that have gone on refuse it")
    made = checked.manifests.get(name)
    if made is not None:  # a release that only moves to another list comes without
        lines.append(f"    image of {made.image_size_bytes} bytes, SHA-256 {made.image_sha256.hex()}")
        if made.notes:
            lines.append(f"    notes: {made.notes}")
    return lines


def _of_details(made: Details) -> list[str]:
    """What is said of a release to people: why, until when, made of what."""
    mark = "a security release" if made.kind == "security" else "a feature release"
    until = f", supported until {made.support_ends}" if made.support_ends else ""
    lines = [f"  {made.product} {made.version} is {mark}{until}"]
    if made.sbom is not None:
        lines.append(
            f"    {made.sbom.kind} {made.sbom.spec_version} SBOM of {made.sbom.components} components, "
            f"SHA-256 {made.sbom.sha256.hex()}"
        )
    return lines + [f"    advisory: {line}" for line in made.advisory.splitlines()]


def _of_delegations(item: Item) -> list[str]:
    new = item.metadata.signed.delegations
    old = None if item.base is None else item.base.signed.delegations
    lines = []
    before = dict(old.roles or {}) if old is not None else {}
    after = dict(new.roles or {}) if new is not None else {}
    for name, role in after.items():
        if name not in before or before[name].to_dict() != role.to_dict():
            keys = ", ".join(_key(keyid, new.keys) for keyid in role.keyids)
            lines.append(
                f"  {role.threshold} of the keys {keys} may sign releases of {', '.join(role.paths or [])}"
            )
    lines += [
        f"  {name} has no keys of its own any more: what they signed counts no more"
        for name in before
        if name not in after
    ]
    bins = None if new is None else new.succinct_roles
    if bins is not None and (old is None or old.succinct_roles is None):
        lines.append(f"  the list is cut in {2**bins.bit_length} hash bins, signed by the same keys")
    return lines


def _of_signatures(item: Item) -> list[str]:
    lines = []
    whose = ("the keys",) if len(item.judges) == 1 else ("the old root's keys", "the new root's keys")
    for one, which in zip(item.signatures(), whose, strict=True):
        lines.append(f"  signed by {one.have} of the {one.need} needed of {which}")
    return lines


def _key(keyid: str, keys: Mapping[str, Any]) -> str:
    return f"{keyid[:16]} ({keys[keyid].keytype})"


def _day(signed: Any) -> str:
    return str(signed.expires.strftime("%Y-%m-%d"))
