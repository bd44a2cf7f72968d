"""The FAT around GRUB's records: FAT tools see two files, and their bytes lie where the plan says."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinlock.core.bootrecord import initial
from twinlock.provision import disk, layout, recordfat
from twinlock.provision.tools import run


@pytest.mark.parametrize("align", ["64 KiB", "256 KiB", "1 MiB", "4 MiB", "32 MiB", "64 MiB"])
def test_mtools_reads_both_records_from_where_they_were_written(align: str, tmp_path: Path) -> None:
    plan = layout.plan(layout.parse_spec(f"align = '{align}'\nloader.kind = 'grub'"))
    part = plan.need("record")
    image = tmp_path / "record.img"
    blocks = disk.record_blocks(plan, initial())
    with image.open("wb") as file:
        file.truncate(part.size_bytes)
        for offset, data in [*recordfat.metadata(plan), *blocks]:
            assert part.start_bytes <= offset <= part.end_bytes - len(data)
            file.seek(offset - part.start_bytes)
            file.write(data)
    run(["fsck.vfat", "-n", str(image)], package="dosfstools")
    for name, (_, block) in zip(recordfat.FILES, blocks, strict=True):
        out = tmp_path / name
        run(["mcopy", "-i", str(image), f"::{name}", str(out)], package="mtools")
        assert out.read_bytes() == block


def test_tables_and_copies_have_an_erase_block_each() -> None:
    plan = layout.plan(layout.parse_spec("loader.kind = 'grub'"))
    blocks = {
        (offset - plan.need("record").start_bytes) // plan.align_bytes
        for offset, _ in recordfat.metadata(plan)
    }
    copies = [
        (offset - plan.need("record").start_bytes) // plan.align_bytes for offset in plan.record_offsets
    ]
    assert blocks == {0}
    assert copies == [1, 2]


def test_large_sectors_are_named_in_the_boot_sector() -> None:
    plan = layout.plan(layout.parse_spec("sector_size = 4096\nloader.kind = 'grub'"))
    boot = recordfat.metadata(plan)[0][1]
    assert int.from_bytes(boot[11:13], "little") == 4096
    assert len(boot) == 4096
