"""Small executables for tests: functions that call each other, tables of addresses, what unwinds them.

A version is a seed and what was changed: the same functions, some of them longer, so that all that follows
moves, and everything that refers to it changes.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

X86_64, ARM64, ARM = 62, 183, 40
A32 = ARM | 1 << 16  # as `ARM`, with code of its older instruction set
KERNEL_BASE = 0xFFFFFFFF81000000
FUNCTIONS = 160


@dataclass
class Section:
    name: str
    data: bytes
    address: int
    flags: int = 2
    kind: int = 1
    size: int = 0


@dataclass
class Build:
    """One executable: `grown` functions have more bytes than in the version without."""

    seed: int = 1
    grown: frozenset[int] = frozenset()
    machine: int = X86_64
    kernel: bool = False
    starts: list[int] = field(default_factory=list)
    fixed: list[int] = field(default_factory=list)  # addresses of absolute operands

    @property
    def base(self) -> int:
        return KERNEL_BASE if self.kernel else 0x1000

    def elf(self) -> bytes:
        text = self._text()
        address = _up(self.base + len(text))
        rng = random.Random(self.seed)
        order = [rng.randrange(FUNCTIONS) for _ in range(600)]
        width = "<I" if self.machine & 0xFFFF == ARM else "<Q"
        pointers = b"".join(struct.pack(width, self._to(number)) for number in order)
        sections = [Section(".text", text, self.base, 6)]
        sections.append(Section(".data.rel.ro", pointers, address))
        address = _up(address + len(pointers))
        if self.kernel:
            table = b"".join(
                struct.pack("<i", self._to(number) - address - 4 * index)
                for index, number in enumerate(order)
            )
            sections.append(Section("__table", table, address))
        elif self.machine & 0xFFFF != ARM:
            frames = self._frames(address)
            sections.append(Section(".eh_frame", frames, address))
            address = _up(address + len(frames))
            header = b"".join(
                struct.pack("<ii", start - address, sections[-1].address + 24 * index - address)
                for index, start in enumerate(self.starts)
            )
            sections.append(Section(".eh_frame_hdr", header, address))
        sections.append(Section(".bss", b"", _up(address + 8192), 3, 8, 4096))
        body = _file(self.machine, sections)
        if self.kernel:
            body += b"".join(struct.pack("<I", place & 0xFFFFFFFF) for place in self.fixed)
        return body

    def _to(self, number: int) -> int:
        return self.starts[number]

    def _text(self) -> bytes:
        rng = random.Random(self.seed)
        shapes = [self._shape(rng) for _ in range(FUNCTIONS)]
        extra = random.Random(self.seed + 1)
        for number in sorted(self.grown):
            shapes[number].insert(1, ("bytes", extra.randbytes(4 * extra.randrange(1, 40))))
        self.starts, place = [], self.base
        for shape in shapes:
            self.starts.append(place)
            place += sum(_size(value) for _, value in shape)
        out = bytearray()
        for shape in shapes:
            for kind, value in shape:
                out += self._operation(kind, value, self.base + len(out))
        return bytes(out)

    def _shape(self, rng: random.Random) -> list[tuple[str, object]]:
        """Bytes, calls and (in kernels) absolute operands, in turns."""
        found: list[tuple[str, object]] = [("bytes", _quiet(rng, 16))]
        for _ in range(rng.randrange(2, 9)):
            kind = rng.choice(["call", "call", "load", "absolute" if self.kernel else "call"])
            if self.machine in (ARM64, A32):
                kind = "call"
            found += [(kind, rng.randrange(FUNCTIONS)), ("bytes", _quiet(rng, 4 * rng.randrange(2, 12)))]
        return found

    def _operation(self, kind: str, value: object, address: int) -> bytes:
        if isinstance(value, bytes):
            return value
        assert isinstance(value, int)
        target = self.starts[value]
        if self.machine & 0xFFFF == ARM:
            return self._arm(kind, target, address)
        if self.machine == ARM64:
            return struct.pack("<II", 0x94000000 | ((target - address) >> 2) & 0x3FFFFFF, 0xD503201F)
        if kind == "call":
            return b"\x90\x90\x90\xe8" + struct.pack("<i", target - address - 8)
        if kind == "load":
            return b"\x90\x48\x8d\x05" + struct.pack("<i", target - address - 8)
        self.fixed.append(address + 4)
        return b"\x90\x48\xc7\xc7" + struct.pack("<I", target & 0xFFFFFFFF)

    def _arm(self, kind: str, target: int, address: int) -> bytes:
        """BL of one instruction set or the other; or a literal that the program counter is added to."""
        if self.machine == A32:
            return struct.pack("<II", 0xEB000000 | (target - address - 8) >> 2 & 0xFFFFFF, 0xE1A00000)
        if kind == "load":
            return struct.pack("<HHi", 0x4B00, 0x447B, target - address - 6)
        halves = (target - address - 4) >> 1
        return struct.pack("<HHHH", 0xF000 | halves >> 11 & 0x7FF, 0xF800 | halves & 0x7FF, 0x4618, 0x4618)

    def _frames(self, address: int) -> bytes:
        """.eh_frame: one entry of 24 bytes for each function."""
        out = b""
        for index, start in enumerate(self.starts):
            place = address + 24 * index
            out += struct.pack("<IIiI8x", 20, 24 * index + 4, start - place - 8, 64)
        return out


def _quiet(rng: random.Random, size: int) -> bytes:
    """Bytes that look like no operand."""
    return bytes(rng.choice(b"\x50\x51\x52\x53\x54\x55\x56\x57\x89\xc0\xc3\x31") for _ in range(size))


def _size(value: object) -> int:
    return len(value) if isinstance(value, bytes) else 8


def _up(address: int) -> int:
    return -(-address // 4096) * 4096


def _file(machine: int, sections: list[Section]) -> bytes:
    """A linked ELF file with section headers, and no program headers: nobody runs it."""
    narrow = machine & 0xFFFF == ARM
    layout = struct.Struct("<IIIIIIIIII" if narrow else "<IIQQQQIIQQ")
    names = b"\0" + b"".join(section.name.encode() + b"\0" for section in sections) + b".shstrtab\0"
    body = bytearray(64)
    rows = [[0] * 10]
    at = 1
    for section in [*sections, Section(".shstrtab", names, 0, 0, 3)]:
        body += bytes(-len(body) % 16)
        size = section.size or len(section.data)
        rows.append([at, section.kind, section.flags, section.address, len(body), size, 0, 0, 16, 0])
        body += section.data
        at += len(section.name) + 1
    body += bytes(-len(body) % 16)
    # The headers come early, as a kernel's tail must be what lies behind the sections.
    size = len(rows) * layout.size
    shift = -(-(64 + size) // 16) * 16 - 64
    for row in rows[1:]:
        row[4] += shift
    table = b"".join(layout.pack(*row) for row in rows)
    ident = struct.pack("<4sBBBB8x", b"\x7fELF", 1 if narrow else 2, 1, 1, 0)
    head = ident + struct.pack("<HHIIII" if narrow else "<HHIQQQ", 2, machine & 0xFFFF, 1, 0, 0, 64)
    head += struct.pack("<IHHHHHH", 0, len(head) + 16, 0, 0, layout.size, len(rows), len(rows) - 1)
    return head.ljust(64, b"\0") + table + bytes(shift - len(table)) + bytes(body[64:])
