"""What may be a name. Names reach file paths, URLs, boot records and terminals, so they are plain ASCII."""

from __future__ import annotations

import re
from typing import Final

from twinlock.core.errors import error
from twinlock.core.limits import DEVICE_ID_LENGTH_MAX, NAME_LENGTH_MAX, VERSION_LENGTH_MAX

SLOTS: Final = ("a", "b")
RECOVERY: Final = "recovery"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+~-]*", re.ASCII)
_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _check(pattern: re.Pattern[str], text: str, length_max: int, what: str) -> str:
    if len(text) > length_max:
        raise error("input-invalid", f"{what} has {len(text)} characters; at most {length_max} are allowed")
    if not pattern.fullmatch(text) or ".." in text:
        raise error(
            "input-invalid",
            f"{what} {text!r} has characters outside letters, digits and '.-_'",
        )
    return text


def check_name(text: str, what: str = "name") -> str:
    """`text` if it may name a product, hardware id, key or rollout; else InputError `input-invalid`."""
    return _check(_NAME, text, NAME_LENGTH_MAX, what)


def check_version(text: str) -> str:
    """`text` if it may be a release version; else InputError `input-invalid`."""
    return _check(_VERSION, text, VERSION_LENGTH_MAX, "version")


def check_device_id(text: str) -> str:
    """`text` if it may be a device id; else InputError `input-invalid`."""
    return _check(_NAME, text, DEVICE_ID_LENGTH_MAX, "device id")


def check_sha256_hex(text: str) -> str:
    """`text` if it is 64 lower-case hex digits; else InputError `input-invalid`."""
    if not _SHA256_HEX.fullmatch(text):
        raise error("input-invalid", f"{text[:80]!r} is not a SHA-256 in lower-case hex")
    return text


def release_name(product: str, version: str) -> str:
    """The name that signed metadata lists a release's manifest under: `PRODUCT/VERSION.manifest`.

    Made from checked names only; nothing ever derives a local path from the name in metadata.
    """
    return f"{check_name(product, 'product')}/{check_version(version)}.manifest"
