"""Details: what is signed of a release for people beside its bytes: why, until when, made of what.

UTF-8 JSON, one object, keys as in `Details`, signed as a file of its own, `PRODUCT/VERSION.details`, in the
same list as the manifest. Devices need it for nothing: an agent that knows no details installs all the same.
An unknown key, mark or version of the format is refused.
"""

from __future__ import annotations

import datetime
import re
from typing import Final, Literal

import msgspec

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.names import check_name, check_version

FORMAT: Final = "twinlock-details"
VERSION: Final = 1
SUFFIX: Final = ".details"
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_SPEC_LENGTH_MAX: Final = 16


class Sbom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A software bill of materials: which standard and version, and the file's SHA-256 and size in bytes."""

    kind: Literal["cyclonedx", "spdx"]
    spec_version: str
    sha256: bytes
    size_bytes: int
    components: int


class Details(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One release's details. `support_ends` is the last day with security fixes, ISO 8601, or None."""

    format: Literal["twinlock-details"]
    format_version: Literal[1]
    product: str
    version: str
    kind: Literal["security", "feature"]
    support_ends: str | None = None
    advisory: str = ""
    sbom: Sbom | None = None

    @property
    def name(self) -> str:
        """The name under which signed metadata lists it."""
        return f"{check_name(self.product, 'product')}/{check_version(self.version)}{SUFFIX}"


def encode(details: Details) -> bytes:
    """The bytes: JSON with sorted keys, so that the same details have one encoding."""
    return msgspec.json.encode(details, order="sorted")


class _Head(msgspec.Struct, frozen=True):
    format: str
    format_version: int


def decode(data: bytes) -> Details:
    """The details in `data`, with every bound checked.

    Raises TrustError `details-malformed`, or `format-unknown` for a format or format version from later.
    """
    if len(data) > limits.DETAILS_SIZE_BYTES_MAX:
        raise error("details-malformed", f"details are larger than {limits.DETAILS_SIZE_BYTES_MAX} bytes")
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.format != FORMAT or head.format_version != VERSION:
            raise error(
                "format-unknown", f"details have format {head.format[:40]!r}, version {head.format_version}"
            )
        found = msgspec.json.decode(data, type=Details, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("details-malformed", f"details do not parse: {problem}") from problem
    check(found)
    return found


def check(details: Details) -> None:
    """Raises TrustError `details-malformed`, or InputError for names, when a field is out of its bounds."""
    sbom = details.sbom
    rules = (
        (bool(details.name), "the name is wrong"),
        (len(details.advisory) <= limits.ADVISORY_LENGTH_MAX, "the advisory is too long"),
        (details.support_ends is None or is_day(details.support_ends), "the end of support is no day"),
        (sbom is None or len(sbom.sha256) == 32, "the SBOM's hash is not 32 bytes"),
        (sbom is None or 0 < sbom.size_bytes <= limits.SBOM_SIZE_BYTES_MAX, "the SBOM's size is not allowed"),
        (sbom is None or 0 <= sbom.components <= limits.SBOM_SIZE_BYTES_MAX, "the SBOM has too many parts"),
        (sbom is None or 0 < len(sbom.spec_version) <= _SPEC_LENGTH_MAX, "the SBOM's version is too long"),
    )
    for holds, what in rules:
        if not holds:
            raise error("details-malformed", f"details of {details.product} {details.version}: {what}")


def is_day(text: str) -> bool:
    """Whether `text` is a day of the calendar, as YYYY-MM-DD."""
    try:
        return bool(_DAY.fullmatch(text)) and datetime.date.fromisoformat(text) is not None
    except ValueError:
        return False
