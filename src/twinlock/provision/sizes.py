"""Sizes as people write them in a disk description: `"16 MiB"`, or a number of bytes."""

from __future__ import annotations

import re
from typing import Final

from twinlock.core.errors import error
from twinlock.core.limits import GIB, KIB, MIB

SIZE_BYTES_MAX: Final = 1 << 50
_UNITS: Final = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
_SIZE: Final = re.compile(r"([0-9]{1,16}) ?([KMGT]i?B|B)?", re.ASCII)


def parse_size(value: str | int, what: str) -> int:
    """Bytes. Raises InputError `input-invalid` for anything but a whole number of B, KiB, MiB, GiB or TiB."""
    if isinstance(value, int):
        size_bytes = value
    else:
        match = _SIZE.fullmatch(value)
        unit = "" if match is None else match[2] or ""
        if match is None or unit not in _UNITS:
            raise error(
                "input-invalid",
                f"{what} {value[:40]!r} is not a size",
                hint='write a whole number of bytes, or of units of 1024: "16 MiB", "2 GiB"',
            )
        size_bytes = int(match[1]) * _UNITS[unit]
    if not 0 <= size_bytes <= SIZE_BYTES_MAX:
        raise error("input-invalid", f"{what} of {size_bytes} bytes is out of range")
    return size_bytes


def show_size(size_bytes: int) -> str:
    """The size in the largest unit that shows it exactly, in the form that `parse_size` reads."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]} {unit}"
    return f"{size_bytes} B"


def align_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step
