"""Which roles may speak for a name, and in which order they are asked (the TUF specification, section 5.6.7).

Preorder, depth first, in order of appearance; a terminating delegation ends the search at what it covers; no
role is asked twice, and at most `ROLES_VISITED_MAX` beside the first are asked at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.core import limits
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuf.api.metadata import TargetFile, Targets

FIRST: Final = ("targets", "root")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")


def file_name(role: str) -> str:
    """The role's name as one part of a URL or path: bytes that are not plain as %XX (RFC 3986).

    Raises TrustError `metadata-malformed` when that is longer than `ROLE_FILE_NAME_LENGTH_MAX`. The result
    may be `.` or `..`; append `.json` before it names a file.
    """
    quoted = "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in role.encode("utf-8"))
    if len(quoted) > limits.ROLE_FILE_NAME_LENGTH_MAX:
        raise error("metadata-malformed", f"the role name {role[:60]!r}... is too long")
    return quoted


def delegated_roles(targets: Targets | None) -> list[str]:
    """The roles that a list delegates to, in order."""
    if targets is None or targets.delegations is None:
        return []
    if targets.delegations.succinct_roles is not None:
        return list(targets.delegations.succinct_roles.get_roles())
    return list(targets.delegations.roles or {})


def find(name: str, load: Callable[[str, str], Targets]) -> TargetFile | None:
    """What the most trusted role says of `name`; None when no role that may speak for it lists it.

    `load(role, delegator)` gives the role's metadata, verified as that delegator demands; what it raises ends
    the search.
    """
    waiting = [FIRST]
    visited: set[str] = set()
    while waiting and len(visited) <= limits.ROLES_VISITED_MAX:
        role, delegator = waiting.pop()
        if role in visited:
            continue
        visited.add(role)
        targets = load(role, delegator)
        found = targets.targets.get(name)
        if found is not None:
            return found
        if targets.delegations is None:
            continue
        children = []
        for child, terminating in targets.delegations.get_roles_for_target(name):
            children.append((child, role))
            if terminating:
                waiting.clear()
                break
        waiting += reversed(children)
    return None
