"""Sections of an ELF file (System V ABI, gABI chapter 4): where they lie and which addresses they have."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

MACHINE_ARM: Final = 40
MACHINE_X86_64: Final = 62
MACHINE_ARM64: Final = 183
TYPE_RELOCATABLE: Final = 1
SECTIONS_MAX: Final = 8192
SECTION_SIZE_BYTES_MAX: Final = 1 << 32
_NOBITS: Final = 8
_ALLOCATED: Final = 2
_EXECUTABLE: Final = 4


@dataclass(frozen=True, slots=True)
class Section:
    """One section; `address` is 0 in relocatable files, `stored` is False for those without bytes (.bss)."""

    name: str
    kind: int
    address: int
    offset: int
    size: int
    entry_size: int
    link: int
    info: int
    allocated: bool
    executable: bool

    @property
    def stored(self) -> bool:
        return self.kind != _NOBITS


@dataclass(frozen=True, slots=True)
class Elf:
    """A little endian ELF file."""

    machine: int
    bits: int
    relocatable: bool
    sections: tuple[Section, ...]


def parse(data: bytes) -> Elf | None:
    """The file's sections in order; None for anything but a little endian ELF file with section headers."""
    if data[:4] != b"\x7fELF" or len(data) < 64 or data[5] != 1 or data[4] not in (1, 2):
        return None
    bits = 32 * data[4]
    try:
        return _parse(data, bits)
    except (struct.error, IndexError, ValueError, OverflowError):
        return None


def _parse(data: bytes, bits: int) -> Elf | None:
    kind, machine = struct.unpack_from("<HH", data, 16)
    if bits == 64:
        (table,) = struct.unpack_from("<Q", data, 40)
        size, count, names = struct.unpack_from("<HHH", data, 58)
        layout = struct.Struct("<IIQQQQIIQQ")
    else:
        (table,) = struct.unpack_from("<I", data, 32)
        size, count, names = struct.unpack_from("<HHH", data, 46)
        layout = struct.Struct("<IIIIIIIIII")
    if size < layout.size or not 0 < count <= SECTIONS_MAX or names >= count:
        return None
    rows = [layout.unpack_from(data, table + index * size) for index in range(count)]
    text_start, text_size = rows[names][4], rows[names][5]
    text = data[text_start : text_start + text_size]
    sections = []
    for name, section, flags, address, offset, length, link, info, _, entry_size in rows:
        if (section != _NOBITS and offset + length > len(data)) or length > SECTION_SIZE_BYTES_MAX:
            return None
        label = text[name : text.index(b"\0", name)] if name < len(text) else b""
        allocated, executable = bool(flags & _ALLOCATED), bool(flags & _EXECUTABLE)
        sections.append(
            Section(
                label.decode("latin-1"),
                section,
                address,
                offset,
                length,
                entry_size,
                link,
                info,
                allocated,
                executable,
            )
        )
    return Elf(machine, bits, kind == TYPE_RELOCATABLE, tuple(sections))
