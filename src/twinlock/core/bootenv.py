"""The boot record as the variables that U-Boot and GRUB scripts read and write.

Neither loader's script can be relied on to add one to a number, so a script never writes a new sequence
number: it lowers `tl_tries` and leaves `tl_seq`. Of two copies with the same `tl_seq`, the one with fewer
tries is newer. `BootRecord.seq` counts those steps too: it is `tl_seq` plus the tries that are already spent.

Values are percent-encoded outside letters, digits and `_.-`, so that no shell, no parser and no separator
ever meets them; `-` alone stands for "none".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from twinlock.core.bootrecord import TRIAL_ID_BYTES_MAX, BootRecord, clip_reason
from twinlock.core.errors import error
from twinlock.core.limits import BOOT_REASON_BYTES_MAX, TRIES_MAX
from twinlock.core.names import SLOTS

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = "1"
NONE: Final = "-"
SEQ_MAX: Final = (1 << 31) - 1  # loaders for 32-bit processors compare signed numbers
FIELDS: Final = ("armed", "default", "failed", "reason", "seq", "trial", "tries", "try", "version")


_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_ESCAPED: Final = re.compile(r"%([0-9A-F]{2})", re.ASCII)


def _escape(text: bytes) -> str:
    if text == NONE.encode("ascii"):
        return "%2D"  # a lone `-` would read as "none"
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in text) or NONE


def _unescape(value: str, size_bytes_max: int) -> bytes | None:
    """None for anything that `_escape` does not make."""
    if value == NONE:
        return b""
    if not value or len(value) > 3 * size_bytes_max or not value.isascii():
        return None
    data = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value).encode("latin-1")
    return data if len(data) <= size_bytes_max and _escape(data) == value else None


def to_fields(record: BootRecord) -> dict[str, str]:
    """The record's variables without their `tl_` prefix; `seq` as a number for the caller to write its way.

    Raises DeviceError `boot-record` when the sequence number is used up.
    """
    armed = record.tries_left if record.trying is not None else 0
    if not 0 <= record.seq <= SEQ_MAX:
        raise error(
            "boot-record", "the boot record's sequence number is used up", hint="provision the device"
        )
    return {
        "armed": str(armed),
        "default": record.default,
        "failed": "".join(slot for slot in SLOTS if slot in record.failed) or NONE,
        "reason": _escape(clip_reason(record.reason).encode("utf-8")),
        "seq": str(record.seq),
        "trial": _escape(record.trial_id.encode("ascii")),
        "tries": str(armed),
        "try": record.trying or NONE,
        "version": VERSION,
    }


def from_fields(fields: Mapping[str, str]) -> BootRecord | None:
    """The record, or None when a variable is missing, unknown or out of its domain. `seq` is decimal."""
    if set(fields) != set(FIELDS) or fields["version"] != VERSION:
        return None
    seq, armed, tries = (_number(fields[name]) for name in ("seq", "armed", "tries"))
    trial = _unescape(fields["trial"], TRIAL_ID_BYTES_MAX)
    reason = _unescape(fields["reason"], BOOT_REASON_BYTES_MAX)
    failed = frozenset() if fields["failed"] == NONE else frozenset(fields["failed"])
    trying = None if fields["try"] == NONE else fields["try"]
    known = (
        fields["default"] in SLOTS
        and (trying is None or (trying in SLOTS and trying != fields["default"]))
        and fields["failed"] in (NONE, "a", "b", "ab")
    )
    if not known or seq is None or armed is None or tries is None or trial is None or reason is None:
        return None
    if not (tries <= armed <= TRIES_MAX and seq <= SEQ_MAX) or not trial.isascii():
        return None
    if trying is None and armed != 0:
        return None
    try:
        text = reason.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return BootRecord(
        seq=seq + armed - tries,
        default=fields["default"],
        trying=trying,
        tries_left=tries,
        trial_id=trial.decode("ascii"),
        failed=failed,
        reason=text,
    )


def _number(text: str) -> int | None:
    return int(text) if 0 < len(text) <= 10 and text.isascii() and text.isdigit() else None
