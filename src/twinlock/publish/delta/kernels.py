"""Compressed kernels: the LZ4 blocks inside a bzImage, and whether they can be packed again bit for bit.

The x86 boot header (Documentation/arch/x86/boot.rst of the kernel) names where the payload is; an LZ4 payload
is the legacy frame: a magic number, then blocks of 8 MiB, each behind its packed size.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from twinlock.core import limits
from twinlock.core.payload.libraries import lz4_pack, lz4_unpack
from twinlock.core.payload.program import LZ4
from twinlock.publish.delta.files.model import ImageFile
from twinlock.publish.delta.lz4_blocks import PackedBlock
from twinlock.publish.delta.model import Block

KERNEL_SIZE_BYTES_MAX: Final = 128 * limits.MIB
_HEADER: Final = b"HdrS"
_LEGACY_BLOCK_BYTES: Final = 8 * limits.MIB
_LZ4_LEGACY: Final = b"\x02\x21\x4c\x18"
_LEVELS: Final = (9, 12, 11, 10, 8, 7, 6, 5, 4, 3)


@dataclass(frozen=True, slots=True)
class KernelBlock:
    """One LZ4 block of a kernel file: its place in the file, and what it unpacks to."""

    start: int
    packed: bytes
    plain: bytes


def lz4_blocks(data: bytes) -> list[KernelBlock]:
    """The blocks of a bzImage with an LZ4 payload, in order; empty for any other file."""
    if data[0x202:0x206] != _HEADER or len(data) < 0x250:
        return []
    payload, size = struct.unpack_from("<II", data, 0x248)
    position = ((data[0x1F1] or 4) + 1) * 512 + payload
    end = position + size - 4  # the last four bytes are the unpacked size
    if data[position : position + 4] != _LZ4_LEGACY or end + 4 > len(data):
        return []
    position += 4
    (left,) = struct.unpack_from("<I", data, end)
    blocks = []
    while position + 4 <= end:
        (packed_size,) = struct.unpack_from("<I", data, position)
        position += 4
        packed = data[position : position + packed_size]
        plain = _unpacked(packed, min(left, _LEGACY_BLOCK_BYTES))
        if position + packed_size > end or plain is None:
            return []
        left -= len(plain)
        blocks.append(KernelBlock(position, packed, plain))
        position += packed_size
    return blocks


def _unpacked(packed: bytes, size_bytes: int) -> bytes | None:
    """All of an LZ4 block: every one but the last of a frame unpacks to 8 MiB."""
    if size_bytes <= 0:
        return None
    plain = lz4_unpack(bytearray(packed), size_bytes)
    return None if plain is None else bytes(plain)


def kernel_sources(file: ImageFile, blocks: list[KernelBlock]) -> list[Block]:
    """The blocks of a kernel in the base, as a step refers to them."""
    return [
        Block(LZ4, len(block.plain), tuple(file.ranges(block.start, block.start + len(block.packed))))
        for block in blocks
    ]


def reproducible(blocks: list[KernelBlock], libraries: Sequence[str]) -> list[PackedBlock]:
    """The blocks, with the level that packs them again bit for bit; empty when none does."""
    version = next((name[4:] for name in libraries if name.startswith("lz4-")), None)
    if version is None or not blocks:
        return []
    trial = min(blocks, key=lambda block: len(block.plain))
    for level in _LEVELS:
        packed = lz4_pack(bytearray(trial.plain), 0, 0, len(trial.plain), level)
        if packed is not None and bytes(packed) == trial.packed:
            return [PackedBlock(block.packed, block.plain, level, version) for block in blocks]
    return []
