"""The boot record as one GRUB environment block: 1024 bytes, what `load_env` reads and `save_env` writes.

    # GRUB Environment Block\\n
    tl_seq=0000000001\\n
    ...
    ###### up to 1024 bytes

GRUB's format has no checksum and its script language cannot make one. `tl_check` therefore repeats every
other variable that matters to the loader; a copy in which the two do not agree is ignored, here by the same
rule as in the script. All of these lie in the first 512 bytes, so that they share one sector. The reason,
which no loader reads, comes last and carries its own CRC-32.
Source: GRUB 2.06, include/grub/lib/envblk.h, grub-core/lib/envblk.c, grub-core/commands/loadenv.c.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from twinlock.core.bootenv import NONE, from_fields, to_fields
from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.core.bootrecord import BootRecord

SIZE_BYTES: Final = 1024
SECTOR_SIZE_BYTES: Final = 512
SIGNATURE: Final = b"# GRUB Environment Block\n"
_PREFIX: Final = "tl_"
_CHECKED: Final = ("seq", "default", "try", "tries", "armed", "failed", "trial")
_ORDER: Final = ("version", *_CHECKED, "check", "reason")
_SEQ_WIDTH: Final = 10  # fixed: the script compares numbers as text


def _check(fields: Mapping[str, str]) -> str:
    return ":".join(fields[name] for name in _CHECKED)


def encode(record: BootRecord) -> bytes:
    """One block of 1024 bytes. Raises DeviceError `boot-record` when the sequence number is used up."""
    fields = to_fields(record)
    fields["seq"] = f"{record.seq:0{_SEQ_WIDTH}d}"
    fields["check"] = _check(fields)
    if fields["reason"] != NONE:
        fields["reason"] = f"{zlib.crc32(fields['reason'].encode('ascii')):08x}:{fields['reason']}"
    lines = {name: f"{_PREFIX}{name}={fields[name]}\n".encode("ascii") for name in _ORDER}
    block = SIGNATURE + b"".join(lines.values())
    assert len(block) - len(lines["reason"]) <= SECTOR_SIZE_BYTES, "what a loader reads fits one sector"
    assert len(block) <= SIZE_BYTES, "the longest record fits by the bounds of its fields"
    return block.ljust(SIZE_BYTES, b"#")


def _fields(block: bytes) -> dict[str, str] | None:
    """The variables as GRUB reads them, of a whole block or a torn one.

    A line that begins with `#` is left out. A name ends at the next `=`, on whichever line that is; a value
    without a line's end is none; of two with one name the last counts.
    """
    if len(block) != SIZE_BYTES or not block.startswith(SIGNATURE) or not block.isascii():
        return None
    fields: dict[str, str] = {}
    rest = block[len(SIGNATURE) :].decode("ascii")
    while rest:
        name, equals, value = ("#", "=", rest) if rest.startswith("#") else rest.partition("=")
        value, end, rest = value.partition("\n")
        if not equals or not end:
            break
        if name.startswith(_PREFIX):
            fields[name[len(_PREFIX) :]] = value
    return fields


def decode(block: bytes) -> BootRecord | None:
    """The record in a block of 1024 bytes, or None when it is damaged or not a record of this version."""
    found = _fields(block)
    if found is None:
        return None
    # As `load_env` with a list of names: others are passed over. The reason is not the loader's: a block that
    # was torn in front of it is one that the loader follows, so it counts here too.
    fields = {"reason": NONE} | {name: found[name] for name in _ORDER if name in found}
    if len(fields) != len(_ORDER):
        return None
    if fields.pop("check") != _check(fields) or len(fields["seq"]) != _SEQ_WIDTH:
        return None
    crc, _, reason = fields["reason"].partition(":")
    intact = crc == f"{zlib.crc32(reason.encode('ascii')):08x}"
    record = from_fields(fields | {"reason": reason if intact else NONE})
    if record is None and intact:
        # A reason that nobody could have written must not hide a record that the loader follows.
        record = from_fields(fields | {"reason": NONE})
    return record


def takes_changes(block: bytes) -> bool:
    """Whether `save_env` writes over this block: it needs the signature, and an end of the last line."""
    return block.startswith(SIGNATURE) and block.rstrip(b"#").endswith(b"\n")


def spend(block: bytes) -> bytes:
    """The block that the loader's script saves before a trial boot: one try less, all else as it was.

    Raises DeviceError `boot-record` for a block that is no record with tries left.
    """
    record, fields = decode(block), _fields(block)
    if record is None or fields is None or record.tries_left == 0:
        raise error("boot-record", "no try can be taken off this block")
    fields["tries"] = str(record.tries_left - 1)
    fields["check"] = _check(fields)
    lines = [f"{_PREFIX}{name}={fields[name]}\n".encode("ascii") for name in _ORDER]
    return (SIGNATURE + b"".join(lines)).ljust(SIZE_BYTES, b"#")
