"""Partition tables: read back by sfdisk, and grown so that a cut at any write leaves a table in force."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.provision import gpt, layout, mbr
from twinlock.provision.tools import run

SMALL = """
align = "1 MiB"
boot.size = "4 MiB"
slot.size = "8 MiB"
recovery.size = "8 MiB"
data.size = "8 MiB"
"""
SECTOR = 512


class Disk:
    """A disk that holds only the sectors that were written."""

    def __init__(self, size_bytes: int, sectors: dict[int, bytes] | None = None) -> None:
        self.size_bytes = size_bytes // SECTOR * SECTOR
        self.sectors = dict(sectors or {})

    def read(self, offset: int, size: int) -> bytes:
        first, last = offset // SECTOR, (offset + size) // SECTOR
        return b"".join(self.sectors.get(number, bytes(SECTOR)) for number in range(first, last))

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= self.size_bytes - len(data)
        for at in range(0, len(data), SECTOR):
            self.sectors[(offset + at) // SECTOR] = data[at : at + SECTOR]

    def flip(self, offset: int) -> None:
        sector = bytearray(self.read(offset // SECTOR * SECTOR, SECTOR))
        sector[offset % SECTOR] ^= 1
        self.write(offset // SECTOR * SECTOR, bytes(sector))

    def copy(self) -> Disk:
        return Disk(self.size_bytes, self.sectors)


def small_plan(table: str) -> layout.Plan:
    return layout.plan(layout.parse_spec(f"table = '{table}'\n{SMALL}"))


def disk_of(plan: layout.Plan, *, room_bytes: int = 0) -> Disk:
    disk = Disk(plan.disk_size_bytes + room_bytes)
    writes = gpt.encode(gpt.of_plan(plan)) if plan.spec.table == "gpt" else mbr.encode(plan)
    apply(disk, writes)
    return disk


def apply(disk: Disk, writes: list[tuple[int, bytes]]) -> None:
    for offset, data in writes:
        disk.write(offset, data)


def sfdisk(disk: Disk, folder: Path) -> dict[str, Any]:
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(disk.size_bytes)
        for number, sector in disk.sectors.items():
            file.seek(number * SECTOR)
            file.write(sector)
    assert "No errors detected" in run(["sfdisk", "--verify", str(image)], package="fdisk")
    table: dict[str, Any] = json.loads(run(["sfdisk", "--json", str(image)], package="fdisk"))[
        "partitiontable"
    ]
    return table


@pytest.mark.parametrize("table", ["gpt", "mbr"])
def test_sfdisk_reads_every_partition_where_the_plan_has_it(table: str, tmp_path: Path) -> None:
    plan = small_plan(table)
    found = sfdisk(disk_of(plan), tmp_path)
    assert found["label"] == ("gpt" if table == "gpt" else "dos")
    places = {
        int(part["node"].removeprefix(str(tmp_path / "disk.img"))): part for part in found["partitions"]
    }
    for part in plan.partitions:
        seen = places[part.number]
        assert (seen["start"] * SECTOR, seen["size"] * SECTOR) == (part.start_bytes, part.size_bytes)
        if table == "gpt":
            assert (seen["uuid"].lower(), seen["name"]) == (part.partuuid, part.label)
    if table == "mbr":
        assert found["id"] == f"0x{plan.mbr_signature:08x}"
        assert set(places) == {1, 2, 3, 4, 5, 6, 7}


def test_a_gpt_reads_back_as_it_was_written() -> None:
    table = gpt.of_plan(small_plan("gpt"))
    disk = disk_of(small_plan("gpt"))
    assert read_primary(disk) == table


def read_primary(disk: Disk) -> gpt.Table:
    header = disk.read(SECTOR, SECTOR)
    return gpt.decode(header, disk.read(gpt.entries_lba_of(header) * SECTOR, 16384), SECTOR)


def read_backup(disk: Disk) -> gpt.Table:
    header = disk.read(disk.size_bytes - SECTOR, SECTOR)
    return gpt.decode(header, disk.read(gpt.entries_lba_of(header) * SECTOR, 16384), SECTOR)


def in_force(disk: Disk) -> gpt.Table:
    """As the kernel reads it: the primary table, or the backup in the last sector."""
    try:
        return read_primary(disk)
    except TwinlockError:
        return read_backup(disk)


def test_backup_and_primary_of_a_gpt_say_the_same() -> None:
    disk = disk_of(small_plan("gpt"))
    assert read_backup(disk).entries == read_primary(disk).entries


@pytest.mark.parametrize("at", [SECTOR, SECTOR + 16, SECTOR + 56, 1024, 1024 + 300])
def test_a_damaged_gpt_is_refused(at: int) -> None:
    disk = disk_of(small_plan("gpt"))
    disk.flip(at)
    with pytest.raises(TwinlockError) as caught:
        read_primary(disk)
    assert caught.value.code == "slot-unusable"
    assert in_force(disk).entries == gpt.of_plan(small_plan("gpt")).entries


def test_moved_entries_are_found_by_every_reader(tmp_path: Path) -> None:
    plan = layout.plan(layout.parse_spec("gpt_entries_offset = '512 KiB'\n" + SMALL))
    disk = disk_of(plan)
    assert read_primary(disk).entries_lba == 1024
    assert len(sfdisk(disk, tmp_path)["partitions"]) == 6


def test_a_gpt_on_large_sectors_names_the_same_bytes() -> None:
    plan = layout.plan(layout.parse_spec("sector_size = 4096\n" + SMALL))
    table = gpt.of_plan(plan)
    assert table.entries[0].first * 4096 == plan.need("boot").start_bytes
    offsets = {offset for offset, _ in gpt.encode(table)}
    assert {0, 4096, 8192, plan.disk_size_bytes - 4096} <= offsets


def test_an_mbr_on_large_sectors_is_refused() -> None:
    with pytest.raises(TwinlockError, match="512-byte"):
        mbr.encode(layout.plan(layout.parse_spec("sector_size = 4096\ntable = 'mbr'\n" + SMALL)))


@pytest.mark.parametrize("room", [1, SECTOR, 16 * 1024])
def test_a_gpt_with_nothing_to_gain_stays(room: int) -> None:
    table = gpt.of_plan(small_plan("gpt"))
    assert gpt.grown(table, (small_plan("gpt").disk_size_bytes + room) // SECTOR, MIB) is None


def test_growing_onto_a_smaller_disk_is_refused() -> None:
    plan = small_plan("gpt")
    with pytest.raises(TwinlockError, match="sectors"):
        gpt.grown(gpt.of_plan(plan), plan.disk_size_bytes // SECTOR - 1, MIB)
    disk = disk_of(small_plan("mbr"))
    lba, ebr = last_ebr(disk)
    with pytest.raises(TwinlockError, match="sectors"):
        mbr.grown(disk.read(0, SECTOR), lba, ebr, lba + 1, MIB)


@given(room=st.integers(2 * MIB, 64 * MIB), seed=st.integers(0, 2**32))
def test_a_cut_at_any_write_of_growing_a_gpt_leaves_the_old_table_or_the_new(room: int, seed: int) -> None:
    rng = random.Random(seed)
    plan = small_plan("gpt")
    old = gpt.of_plan(plan)
    disk = disk_of(plan, room_bytes=room // SECTOR * SECTOR)
    new = gpt.grown(old, disk.size_bytes // SECTOR, MIB)
    assert new is not None
    before = {entry.name: entry for entry in old.entries}
    after = {entry.name: entry for entry in new.entries}
    assert before.pop("twinlock-data").last < after.pop("twinlock-data").last
    assert before == after
    for offset, data in gpt.encode(new):
        torn = disk.copy()
        sectors = range(0, len(data), SECTOR)
        for at in sectors:
            if rng.random() < 0.5:
                torn.write(offset + at, data[at : at + SECTOR])
        assert in_force(torn).entries in (old.entries, new.entries)
        apply(disk, [(offset, data)])
    assert read_primary(disk) == new
    assert read_backup(disk).entries == new.entries


def last_ebr(disk: Disk) -> tuple[int, bytes]:
    read: dict[int, bytes] = {}
    while True:
        found = mbr.last_logical(read, disk.read(0, SECTOR))
        if isinstance(found, tuple):
            return found
        read[found] = disk.read(found * SECTOR, SECTOR)


@given(room=st.integers(MIB, 64 * MIB))
def test_a_cut_at_any_write_of_growing_an_mbr_leaves_the_old_place_or_the_new(room: int) -> None:
    plan = small_plan("mbr")
    disk = disk_of(plan, room_bytes=room // SECTOR * SECTOR)
    lba, ebr = last_ebr(disk)
    data = plan.need("data")
    assert lba * SECTOR == data.start_bytes - plan.align_bytes
    writes = mbr.grown(disk.read(0, SECTOR), lba, ebr, disk.size_bytes // SECTOR, MIB)
    assert [offset for offset, _ in writes] == [0, lba * SECTOR]
    sizes = set()
    for write in writes:
        apply(disk, [write])
        at, sector = last_ebr(disk)
        assert at == lba
        sizes.add(int.from_bytes(sector[446 + 12 : 446 + 16], "little") * SECTOR)
    grown = (disk.size_bytes // MIB) * MIB - data.start_bytes
    assert sizes == {data.size_bytes, grown}
    assert mbr.grown(disk.read(0, SECTOR), *last_ebr(disk), disk.size_bytes // SECTOR, MIB) == []


def test_sfdisk_accepts_grown_tables(tmp_path: Path) -> None:
    for table in ("gpt", "mbr"):
        plan = small_plan(table)
        disk = disk_of(plan, room_bytes=20 * MIB)
        sectors = disk.size_bytes // SECTOR
        if table == "gpt":
            new = gpt.grown(gpt.of_plan(plan), sectors, MIB)
            assert new is not None
            apply(disk, gpt.encode(new))
        else:
            apply(disk, mbr.grown(disk.read(0, SECTOR), *last_ebr(disk), sectors, MIB))
        last = sfdisk(disk, tmp_path)["partitions"][-1]
        assert last["size"] * SECTOR >= plan.need("data").size_bytes + 18 * MIB


def test_a_chain_of_ebrs_that_never_ends_is_refused() -> None:
    disk = disk_of(small_plan("mbr"))
    lba, ebr = last_ebr(disk)
    # The last EBR points back to the first.
    looped = bytearray(ebr)
    looped[446 + 16 : 446 + 32] = (
        bytes([0, 0xFE, 0xFF, 0xFF, 0x0F, 0xFE, 0xFF, 0xFF]) + bytes(4) + b"\1\0\0\0"
    )
    disk.write(lba * SECTOR, bytes(looped))
    with pytest.raises(TwinlockError, match="more than 16"):
        last_ebr(disk)


@pytest.mark.parametrize("sector", [bytes(512), bytes(510) + b"\x55\xaa", b"short"])
def test_what_is_no_mbr_is_refused(sector: bytes) -> None:
    with pytest.raises(TwinlockError) as caught:
        mbr.last_logical({}, sector)
    assert caught.value.code == "slot-unusable"
