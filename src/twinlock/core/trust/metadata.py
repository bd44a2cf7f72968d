"""One metadata file, read and not yet trusted: bytes to a typed document.

The signed bytes are the canonical form of exactly what was read, unknown fields included, and not of what a
parser made of it: what is verified is what is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Key, Root, Snapshot, Targets, Timestamp

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.trust import canonical, strict
from twinlock.core.trust.keys import public_key
from twinlock.core.trust.shapes import SHAPES, Envelope

R = TypeVar("R", Root, Timestamp, Snapshot, Targets)

_PARSE_ERRORS: Final = (RepositoryError, ValueError, KeyError, TypeError, AttributeError)
# Key types that libraries wrote before the specification settled on one name for the curve's family.
_OLD_KEY_TYPES: Final = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
_OPTIONAL_ROLE: Final = "mirrors"


@dataclass(frozen=True, slots=True)
class Document(Generic[R]):
    """`signed` is the typed content, `payload` the bytes that `signatures` (key id to hex) are over."""

    signed: R
    payload: bytes
    signatures: dict[str, str]


def read(kind: type[R], data: bytes, what: str | None = None) -> Document[R]:
    """The document in `data`, of the role that `kind` is. Nothing in it is trusted yet.

    Raises TrustError `metadata-malformed`, or `format-unknown` for fields marked as critical.
    """
    role = kind.type
    what = what or f"{role} metadata"
    raw = strict.load(data, limits.METADATA_SIZE_BYTES_MAX[role], what)
    try:
        envelope = msgspec.convert(raw, Envelope, strict=True)
        if envelope.signed.get("_type") != role:
            raise ValueError(f"its type is {str(envelope.signed.get('_type'))[:40]!r}, not {role!r}")
        msgspec.convert(envelope.signed, SHAPES[role], strict=True)
        payload = canonical.encode(envelope.signed)
        _leave_out_unknown(envelope.signed)
        signed = kind.from_dict(envelope.signed)
    except _PARSE_ERRORS as problem:
        raise error("metadata-malformed", f"{what} does not parse: {problem}") from problem
    if signed.unrecognized_fields.get("critical"):
        raise error("format-unknown", f"{what} has critical fields that this version does not know")
    signatures = {one.keyid: one.sig for one in envelope.signatures}
    if len(signatures) != len(envelope.signatures):
        raise error("metadata-malformed", f"{what} has two signatures of one key id")
    return Document(signed, payload, signatures)


def _leave_out_unknown(signed: dict[str, Any]) -> None:
    """Takes out what the typed content has no place for: keys of unknown types, and the mirrors' role.

    A key of a type from later cannot verify anything here, so it counts for nothing; the keys beside it do.
    """
    if isinstance(signed.get("roles"), dict):
        signed["roles"].pop(_OPTIONAL_ROLE, None)
    holders = (signed, signed.get("delegations"))
    for holder in holders:
        if isinstance(holder, dict) and isinstance(holder.get("keys"), dict):
            holder["keys"] = {keyid: key for keyid, key in holder["keys"].items() if _known(keyid, key)}


def _known(keyid: str, key: dict[str, Any]) -> bool:
    if key["keytype"] in _OLD_KEY_TYPES:
        key["keytype"] = "ecdsa"
    if public_key(key["keytype"], key["scheme"], str(key["keyval"].get("public", ""))) is None:
        return False
    try:
        Key.from_dict(keyid, dict(key))
    except ValueError:
        return False
    return True
