"""Kernels: what is taken for one, and what is left alone."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.unit.publish.delta.trees import bzimage
from twinlock.publish.delta.files.model import Extent, ImageFile, ImageMap
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.kernels import lz4_blocks
from twinlock.publish.delta.pairing import Pairing
from twinlock.publish.delta.stretches import KernelCutter, Raw

PLAIN = random.Random(1).randbytes(1_200_000)
KERNEL = bzimage(PLAIN)
LIBRARIES: tuple[str, ...] = ()


def test_a_kernels_blocks_are_found_and_unpacked() -> None:
    (block,) = lz4_blocks(KERNEL)
    assert block.plain == PLAIN
    assert KERNEL[block.start : block.start + len(block.packed)] == block.packed


def changed(offset: int, data: bytes) -> bytes:
    return KERNEL[:offset] + data + KERNEL[offset + len(data) :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        KERNEL[:0x240],
        KERNEL[:-200_000],
        changed(0x202, b"HdrX"),
        changed(0x248, struct.pack("<I", 1 << 30)),
        changed(0x24C, struct.pack("<I", 1 << 30)),
        changed(5 * 512, b"\x1f\x8b\x08\x00"),  # another compressor
        changed(5 * 512 + 4, struct.pack("<I", 1 << 30)),
        changed(5 * 512 + 8, bytes(64)),
    ],
)
def test_what_is_no_whole_kernel_has_no_blocks(data: bytes) -> None:
    assert lz4_blocks(data) == []


@pytest.mark.parametrize("same", [True, False])
def test_a_kernel_without_a_way_back_is_taken_as_it_lies(tmp_path: Path, same: bool) -> None:
    """The same kernel is a copy; a changed one that no library here reproduces is matched as it is."""
    newer = KERNEL if same else bzimage(PLAIN[:-5] + b"other")
    maps = []
    for name, data in (("old", KERNEL), ("new", newer)):
        (tmp_path / name).write_bytes(data + bytes(-len(data) % 512))
        maps.append(ImageMap((ImageFile("boot/vmlinuz", len(data), (Extent(0, 0, len(data)),)),)))
    with Image(tmp_path / "old") as base, Image(tmp_path / "new") as image:
        cutter = KernelCutter(base, image, maps[1], Pairing(maps[0].files), LIBRARIES)
        assert cutter.known() == []
        assert cutter.cut(0, len(newer)) == [Raw(0, len(newer))]
