"""The boot record as one U-Boot environment block, for `env import -c` and `env export -c -s 0x200`.

    0      CRC-32 of everything after it (and after the flags byte), little-endian
    4      a flags byte, only in U-Boots built with a redundant environment
    4 / 5  `tl_armed=3\\0tl_default=a\\0...` sorted by name, ended by an empty string, padded with zeros

One block is one 512-byte sector, so that the medium writes it whole or not at all; a torn one fails its CRC.
Source: U-Boot 2023.01, cmd/nvedit.c, env/common.c, include/env_internal.h.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from twinlock.core.bootenv import from_fields, to_fields
from twinlock.core.errors import error

if TYPE_CHECKING:
    from twinlock.core.bootrecord import BootRecord

SIZE_BYTES: Final = 512
_CRC: Final = struct.Struct("<I")
_PREFIX: Final = "tl_"
_FLAG_ACTIVE: Final = b"\x01"


def encode(record: BootRecord, *, flags_byte: bool = False) -> bytes:
    """One block of 512 bytes; `flags_byte` as the device's U-Boot wants it (see `has_flags_byte`).

    Raises DeviceError `boot-record` when the sequence number is used up.
    """
    fields = to_fields(record)
    # Hexadecimal, of fixed width: the script compares with `itest 0x..`.
    fields["seq"] = f"{record.seq:08x}"
    text = b"".join(
        f"{_PREFIX}{name}={value}".encode("ascii") + b"\0" for name, value in sorted(fields.items())
    )
    flag = _FLAG_ACTIVE if flags_byte else b""
    room = SIZE_BYTES - _CRC.size - len(flag)
    assert len(text) < room, "the longest record fits by the bounds of its fields"
    data = text.ljust(room, b"\0")
    return _CRC.pack(zlib.crc32(data)) + flag + data


def _data(block: bytes) -> tuple[bytes, bool] | None:
    """The environment's bytes and whether a flags byte precedes them; None without a valid CRC."""
    if len(block) != SIZE_BYTES:
        return None
    (crc,) = _CRC.unpack_from(block)
    for flags_byte in (False, True):
        data = block[_CRC.size + flags_byte :]
        if zlib.crc32(data) == crc:
            return data, flags_byte
    return None


def has_flags_byte(block: bytes) -> bool | None:
    """Whether the U-Boot that wrote this valid block has a flags byte; None for an invalid block."""
    found = _data(block)
    return None if found is None else found[1]


def decode(block: bytes) -> BootRecord | None:
    """The record in a block of 512 bytes, or None when it is torn, blank, or not a record of this version."""
    found = _data(block)
    if found is None:
        return None
    text, end, _ = found[0].partition(b"\0\0")
    if not end or not text.isascii():
        return None
    fields: dict[str, str] = {}
    for entry in text.decode("ascii").split("\0"):
        name, equals, value = entry.partition("=")
        if not equals or not name.startswith(_PREFIX) or name[len(_PREFIX) :] in fields:
            return None
        fields[name[len(_PREFIX) :]] = value
    seq = fields.get("seq", "")
    if len(seq) != 8 or not set(seq) <= set("0123456789abcdef"):
        return None
    return from_fields(fields | {"seq": str(int(seq, 16))})


def spend(block: bytes) -> bytes:
    """The block that the loader's script saves before a trial boot: one try less, all else as it was.

    Raises DeviceError `boot-record` for a block that is no record with tries left.
    """
    found = _data(block)
    record = decode(block)
    if found is None or record is None or record.tries_left == 0:
        raise error("boot-record", "no try can be taken off this block")
    data, flags_byte = found
    before, after = (
        f"{_PREFIX}tries={tries}\0".encode("ascii") for tries in (record.tries_left, record.tries_left - 1)
    )
    data = data.replace(b"\0" + before, b"\0" + after, 1)
    return _CRC.pack(zlib.crc32(data)) + (_FLAG_ACTIVE if flags_byte else b"") + data
