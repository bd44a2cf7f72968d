"""Kernels: what is taken for one, and what is left alone."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.unit.publish.delta.trees import bzimage
from twinlock.core import limits
from twinlock.core.payload.libraries import shared
from twinlock.publish.delta.files.model import Extent, ImageFile, ImageMap
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.kernels import lz4_blocks
from twinlock.publish.delta.pairing import Pairing
from twinlock.publish.delta.stretches import KernelCutter, Packed, Raw, within_a_part

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


def images(folder: Path, old: bytes, new: bytes) -> list[ImageMap]:
    """Images of one kernel each, written to `old` and `new` in the folder, and their maps."""
    maps = []
    for name, data in (("old", old), ("new", new)):
        (folder / name).write_bytes(data + bytes(-len(data) % 512))
        maps.append(ImageMap((ImageFile("boot/vmlinuz", len(data), (Extent(0, 0, len(data)),)),)))
    return maps


@pytest.mark.parametrize("same", [True, False])
def test_a_kernel_without_a_way_back_is_taken_as_it_lies(tmp_path: Path, same: bool) -> None:
    """The same kernel is a copy; a changed one that no library here reproduces is matched as it is."""
    newer = KERNEL if same else bzimage(PLAIN[:-5] + b"other")
    maps = images(tmp_path, KERNEL, newer)
    with Image(tmp_path / "old") as base, Image(tmp_path / "new") as image:
        cutter = KernelCutter(base, image, maps[1], Pairing(maps[0].files), LIBRARIES)
        assert cutter.known() == []
        assert cutter.cut(0, len(newer)) == [Raw(0, len(newer))]


@pytest.mark.parametrize(("dense", "cut"), [(2, True), (9, False)])
def test_a_kernel_is_not_cut_into_more_than_a_part_may_have(tmp_path: Path, dense: int, cut: bool) -> None:
    rng = random.Random(3)
    letters = [bytes(rng.choices(range(32), k=1_000_000)) for _ in range(dense + 1)]
    plain = bytes(200_000).join(letters)
    newer = bzimage(plain + b"new")
    maps = images(tmp_path, bzimage(plain), newer)
    with Image(tmp_path / "old") as base, Image(tmp_path / "new") as image:
        cutter = KernelCutter(base, image, maps[1], Pairing(maps[0].files), shared())
        found = within_a_part(cutter.cut(0, len(newer)), 0, len(newer))
        assert any(isinstance(stretch, Packed) for stretch in found) is cut
        assert len(found) <= limits.STEPS_MAX
        sizes = [one.size_bytes if isinstance(one, Packed) else one.end - one.start for one in found]
        assert sum(sizes) == len(newer)
