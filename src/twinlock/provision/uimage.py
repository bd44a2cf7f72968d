"""U-Boot script images: the 64-byte legacy header that `source` checks, around a script. Pure.

The same bytes as `mkimage -T script`, with a fixed time so that the same script gives the same image.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from twinlock.core.errors import error

MAGIC: Final = 0x27051956
SCRIPT_SIZE_BYTES_MAX: Final = 64 * 1024
_HEADER: Final = struct.Struct(">IIIIIIIBBBB32s")
_OS_LINUX: Final = 5
_ARCH: Final = {"arm": 2, "x86": 3, "arm64": 22, "riscv": 26}
_TYPE_SCRIPT: Final = 6


def script_image(
    script: str, *, architecture: str = "arm64", name: str = "twinlock", time_s: int = 0
) -> bytes:
    """The image for a script. Raises InputError `input-invalid` for text that U-Boot's shell cannot read."""
    text = script.encode("utf-8")
    if len(text) > SCRIPT_SIZE_BYTES_MAX or not script.isascii() or "\0" in script or "\r" in script:
        raise error("input-invalid", "a boot script is ASCII text of at most 64 KiB with Unix line ends")
    if architecture not in _ARCH:
        raise error("input-invalid", f"U-Boot architecture {architecture!r} is not known: {sorted(_ARCH)}")
    # A script image holds a list of lengths, ended by zero, then the scripts.
    data = struct.pack(">II", len(text), 0) + text
    fields = (time_s, len(data), 0, 0, zlib.crc32(data), _OS_LINUX, _ARCH[architecture], _TYPE_SCRIPT, 0)
    label = name.encode("ascii")[:32]
    crc = zlib.crc32(_HEADER.pack(MAGIC, 0, *fields, label))
    return _HEADER.pack(MAGIC, crc, *fields, label) + data
