"""The shape of metadata by field and type (the TUF specification, section 4), checked before it is used.

Python takes `true` for 1 and a text for a list of letters; a verifier must not. Fields that are not named
here are allowed, as the specification wants, and are covered by the signatures all the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from twinlock.core import limits

Version = Annotated[int, msgspec.Meta(ge=1, le=limits.METADATA_VERSION_MAX)]
Length = Annotated[int, msgspec.Meta(ge=0)]
Threshold = Annotated[int, msgspec.Meta(ge=1, le=limits.SIGNATURES_MAX)]
Time = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")]
KeyIds = Annotated[list[str], msgspec.Meta(max_length=limits.SIGNATURES_MAX)]
Hashes = Annotated[dict[str, str], msgspec.Meta(min_length=1, max_length=8)]


class SignatureShape(msgspec.Struct):
    """One signature: the id of its key and its bytes in hex."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct):
    """Any metadata file; `signed` is checked by the shape of its role."""

    signatures: Annotated[list[SignatureShape], msgspec.Meta(max_length=limits.SIGNATURES_MAX)]
    signed: dict[str, Any]


class KeyShape(msgspec.Struct):
    """A public key. `keyval` depends on the type, which may be one of later."""

    keytype: str
    scheme: str
    keyval: dict[str, Any]


class RoleShape(msgspec.Struct):
    """Which keys sign for a role, and how many of them must."""

    keyids: KeyIds
    threshold: Threshold


class _Signed(msgspec.Struct):
    spec_version: str
    version: Version
    expires: Time


class RootShape(_Signed):
    """Section 4.3."""

    keys: dict[str, KeyShape]
    roles: dict[str, RoleShape]
    kind: Literal["root"] = msgspec.field(name="_type")
    consistent_snapshot: bool | None = None


class MetaFileShape(msgspec.Struct):
    """What one metadata file says of another: the version, and maybe length and hashes."""

    version: Version
    length: Length | None = None
    hashes: Hashes | None = None


class TimestampShape(_Signed):
    """Section 4.6."""

    meta: dict[str, MetaFileShape]
    kind: Literal["timestamp"] = msgspec.field(name="_type")


class SnapshotShape(_Signed):
    """Section 4.4."""

    meta: dict[str, MetaFileShape]
    kind: Literal["snapshot"] = msgspec.field(name="_type")


class DelegatedRoleShape(RoleShape):
    """A delegation of some paths, or of some prefixes of the paths' hashes."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    terminating: bool
    paths: list[str] | None = None
    path_hash_prefixes: list[str] | None = None


class SuccinctRolesShape(RoleShape):
    """A delegation of all paths to 2^bit_length hash bins (TAP 15)."""

    bit_length: Annotated[int, msgspec.Meta(ge=1, le=limits.HASH_BIN_BITS_MAX)]
    name_prefix: str


class DelegationsShape(msgspec.Struct):
    """Section 4.5: whom a targets role delegates to, in order."""

    keys: dict[str, KeyShape]
    roles: list[DelegatedRoleShape] | None = None
    succinct_roles: SuccinctRolesShape | None = None


class EntryShape(msgspec.Struct):
    """What is signed of one file."""

    length: Length
    hashes: Hashes
    custom: Any = None


class SignedFilesShape(_Signed):
    """Section 4.5."""

    targets: dict[str, EntryShape]
    kind: Literal["targets"] = msgspec.field(name="_type")
    delegations: DelegationsShape | None = None


SHAPES: Final[dict[str, type[_Signed]]] = {
    "root": RootShape,
    "timestamp": TimestampShape,
    "snapshot": SnapshotShape,
    "targets": SignedFilesShape,
}
