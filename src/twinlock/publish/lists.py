"""Lists of releases: the top one, those of product lines with keys of their own, and hash bins.

    targets                 signed by the targets keys; may delegate product lines, or be cut in bins
    PRODUCT                 signed by the product line's keys; may be cut in bins
    ROLE-bins-00 .. -1f     hash bins (TAP 15), signed by the same keys as the list that was cut

A list is cut when it would name more than `NAMES_MAX` files: a device then fetches one bin instead of all.
A list that delegates product lines cannot be cut as well (a file has either kind of delegation), so its
releases have to be delegated before it is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from securesystemslib.signer import SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, SuccinctRoles, Targets

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.names import check_name
from twinlock.core.trust.delegations import delegated_roles
from twinlock.publish import signing
from twinlock.publish.keys import ROLES

TOP: Final = "targets"
NAMES_MAX: Final = 1000
BIN_BITS: Final = 5
BINS: Final = "-bins"

Judge = Root | Targets


def kind_of(role: str) -> str:
    """The type of a role's metadata: every role but the four of a root is a list of releases."""
    return role if role in ROLES else TOP


def walk(load: Callable[[str], Targets | None]) -> Iterator[tuple[str, str, Targets | None]]:
    """Every list with who delegates to it, the delegator always first; None where `load` has nothing.

    Each pair comes once, so lists that delegate in a circle end too.
    """
    waiting, seen = [(TOP, "root")], set[tuple[str, str]]()
    while waiting:
        role, delegator = pair = waiting.pop(0)
        if pair in seen:
            continue
        seen.add(pair)
        signed = load(role)
        yield role, delegator, signed
        if signed is not None:
            waiting += [(child, role) for child in delegated_roles(signed)]


def speaker(load: Callable[[str], Targets | None], name: str) -> str:
    """The role that a new file of this name is to be listed by."""
    role = TOP
    while (signed := load(role)) is not None and signed.delegations is not None:
        children = list(signed.delegations.get_roles_for_target(name))
        if not children:
            break
        role = children[0][0]
    return role


def delegate(top: Targets, product: str, keys: list[SSlibKey], threshold: int) -> None:
    """Lets `threshold` of `keys` sign the releases of `product` from now on, instead of who did before.

    Raises InputError `input-invalid` for a product of a reserved name or a list in bins, `key-threshold`.
    """
    check_name(product, "product")
    if product in ROLES or BINS in product:
        raise error("input-invalid", f"the product name {product!r} is reserved for a role")
    listed = {str(key.keyid): key for key in keys}
    if not 1 <= threshold <= len(listed) <= limits.SIGNATURES_MAX:
        raise error(
            "key-threshold",
            f"{product} would need {threshold} signatures and have {len(listed)} keys",
            hint="give more keys with --key, or set --threshold between 1 and their number",
        )
    if top.delegations is not None and top.delegations.succinct_roles is not None:
        raise error("input-invalid", "the list of releases is in hash bins; it cannot delegate product lines")
    roles = dict(top.delegations.roles or {}) if top.delegations is not None else {}
    known = dict(top.delegations.keys) if top.delegations is not None else {}
    roles[product] = DelegatedRole(product, sorted(listed), threshold, True, paths=[f"{product}/*"])
    needed = {keyid for role in roles.values() for keyid in role.keyids}
    top.delegations = Delegations(
        {keyid: key for keyid, key in {**known, **listed}.items() if keyid in needed}, roles
    )


def take_back(top: Targets, product: str) -> None:
    """Lets the top list's keys sign the releases of `product` again; nobody delegates to its list any more.

    Raises InputError `input-invalid` when it has no keys of its own.
    """
    roles = dict(top.delegations.roles or {}) if top.delegations is not None else {}
    if top.delegations is None or roles.pop(product, None) is None:
        raise error(
            "input-invalid",
            f"the product {product!r} has no keys of its own",
            hint="`twinlock keys list --repo REPO` shows the product lines that do",
        )
    needed = {keyid for role in roles.values() for keyid in role.keyids}
    kept = {keyid: key for keyid, key in top.delegations.keys.items() if keyid in needed}
    top.delegations = Delegations(kept, roles) if roles else None


def is_full(signed: Targets) -> bool:
    """Whether a list names more than one file should."""
    return len(signed.targets) > NAMES_MAX


def cut(role: str, signed: Targets, judge: Judge) -> dict[str, Metadata[Targets]]:
    """Moves a list's names to hash bins, which the keys of the list sign; the bins, not signed yet.

    Raises InputError `input-too-large` for a list that delegates product lines.
    """
    if signed.delegations is not None and signed.delegations.roles:
        raise error(
            "input-too-large",
            f"the list of releases has more than {NAMES_MAX} names and delegates product lines",
            hint="delegate another product line with `twinlock keys delegate`",
        )
    demanded = judge.get_delegated_role(role)
    bins = SuccinctRoles(list(demanded.keyids), demanded.threshold, BIN_BITS, f"{role}{BINS}")
    signed.delegations = Delegations(_keys_of(demanded, judge), succinct_roles=bins)
    made: dict[str, Metadata[Targets]] = {
        name: Metadata(Targets(1, signing.SPEC_VERSION, signed.expires)) for name in bins.get_roles()
    }
    for name, entry in signed.targets.items():
        made[bins.get_role_for_target(name)].signed.targets[name] = entry
    signed.targets = {}
    return made


def follow_keys(role: str, signed: Targets, judge: Judge) -> bool:
    """Gives a list's bins the keys that sign the list itself; True when they had others."""
    if signed.delegations is None or signed.delegations.succinct_roles is None:
        return False
    bins, demanded = signed.delegations.succinct_roles, judge.get_delegated_role(role)
    if (set(bins.keyids), bins.threshold) == (set(demanded.keyids), demanded.threshold):
        return False
    new = SuccinctRoles(list(demanded.keyids), demanded.threshold, bins.bit_length, bins.name_prefix)
    signed.delegations = Delegations(_keys_of(demanded, judge), succinct_roles=new)
    return True


def _keys_of(demanded: Any, judge: Judge) -> dict[str, Any]:
    keys: Mapping[str, Any] = signing.keys_of(judge)
    return {keyid: keys[keyid] for keyid in demanded.keyids}
