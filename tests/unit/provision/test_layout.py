"""The disk description: what it refuses, and that every plan it gives is sound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.core.errors import TwinlockError
from twinlock.core.limits import KIB, MIB
from twinlock.provision import layout
from twinlock.provision.sizes import parse_size, show_size


def code_of(text: str) -> str:
    with pytest.raises(TwinlockError) as caught:
        layout.plan(layout.parse_spec(text))
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("name = ", "input-wrong-type"),
        ("a" * (64 * KIB + 1), "input-too-large"),
        ("[" * 5000, "input-wrong-type"),
        ("colour = 1", "input-invalid"),
        ("[slot]\nsize = '1 GB'", "input-invalid"),
        ("[slot]\nsize = '-1'", "input-invalid"),
        ("[slot]\nsize = -1", "input-invalid"),
        ("[slot]\nsize = 1.5", "input-invalid"),
        ("[slot]\nsize = '1 MiB'", "input-invalid"),
        ("[slot]\nsize = '9999999 TiB'", "input-invalid"),
        ("[slot]\nfilesystem = 'ntfs'", "input-invalid"),
        ("[slot]\nunknown = 1", "input-invalid"),
        ("name = '../etc'", "input-invalid"),
        ("name = ''", "input-invalid"),
        ("table = 'bsd'", "input-invalid"),
        ("sector_size = 1024", "input-invalid"),
        ("align = '3 MiB'", "input-invalid"),
        ("align = '4 KiB'", "input-invalid"),
        ("align = '128 MiB'", "input-invalid"),
        ("size = '1 GiB'", "image-too-large"),
        ("table = 'mbr'\n[slot]\nsize = '2 TiB'", "image-too-large"),
        ("gpt_entries_offset = 512", "input-invalid"),
        ("gpt_entries_offset = '4 MiB'", "input-invalid"),
        ("gpt_entries_offset = 1025", "input-invalid"),
        ("table = 'mbr'\ngpt_entries_offset = 1024", "input-invalid"),
        ("[loader]\nkind = 'lilo'", "input-invalid"),
        ("[loader]\nkernel = 'boot/vmlinuz'", "input-invalid"),
        ("[loader]\nkernel = ''", "input-invalid"),
        ("[loader]\nkernel = '/boot/../x'", "input-invalid"),
        ("[loader]\nkernel = \"/boot/'; reset; '\"", "input-invalid"),
        ("[loader]\nkernel_args = 'a; reset'", "input-invalid"),
        ("[loader]\nkernel_args = 'a${b}'", "input-invalid"),
        ('[loader]\nkernel_args = "a\\n"', "input-invalid"),
        ("[loader]\nkernel_address = '0xzz'", "input-invalid"),
        ("[loader]\nkernel_address = '${a;b}'", "input-invalid"),
        ("[loader]\nkernel_address = '$loadaddr'", "input-invalid"),
        ("raw = [" + "{file='x', offset=0}," * 17 + "]", "input-invalid"),
        ("raw = [{file='x'}]", "input-invalid"),
    ],
)
def test_a_wrong_description_is_refused(text: str, code: str) -> None:
    assert code_of(text) == code


def test_the_empty_description_is_the_emmc_board() -> None:
    plan = layout.plan(layout.parse_spec(""))
    roles = [part.role for part in plan.partitions]
    assert roles == ["boot", "record", "a", "b", "recovery", "data"]
    assert plan.need("boot").size_bytes == 16 * MIB
    assert plan.need("a").size_bytes == plan.need("b").size_bytes == 1024 * MIB
    assert [part.number for part in plan.partitions] == [1, 2, 3, 4, 5, 6]
    assert plan.record_offsets == (20 * MIB, 24 * MIB)


def test_the_same_name_gives_the_same_ids_and_another_name_others() -> None:
    one, two, other = (layout.plan(layout.parse_spec(f"name = '{name}'")) for name in ("x", "x", "y"))
    assert one == two
    ids = [{plan.disk_uuid, *(part.partuuid for part in plan.partitions)} for plan in (one, other)]
    assert not ids[0] & ids[1]
    assert len(ids[0]) == 7


def test_without_recovery_there_is_no_such_partition() -> None:
    plan = layout.plan(layout.parse_spec("[recovery]\nsize = 0"))
    assert plan.get("recovery") is None
    with pytest.raises(TwinlockError, match="no recovery partition"):
        plan.need("recovery")


def test_mbr_logical_partitions_have_a_block_before_them() -> None:
    plan = layout.plan(layout.parse_spec("table = 'mbr'"))
    assert [(part.role, part.number) for part in plan.partitions] == [
        ("boot", 1),
        ("a", 2),
        ("b", 3),
        ("record", 5),
        ("recovery", 6),
        ("data", 7),
    ]
    assert plan.extended_start_bytes == plan.need("b").end_bytes
    assert plan.need("record").start_bytes == plan.extended_start_bytes + plan.align_bytes
    assert plan.need("data").partuuid.endswith("-07")


sizes = st.integers(8 * MIB, 3000 * MIB)


@given(
    table=st.sampled_from(["gpt", "mbr"]),
    align=st.sampled_from([64 * KIB, MIB, 4 * MIB, 64 * MIB]),
    boot=sizes,
    slot=sizes,
    recovery=st.one_of(st.just(0), sizes),
    data=sizes,
)
def test_every_plan_is_sound(table: str, align: int, boot: int, slot: int, recovery: int, data: int) -> None:
    text = (
        f"table = '{table}'\nalign = {align}\n[boot]\nsize = {boot}\n[slot]\nsize = {slot}\n"
        f"[recovery]\nsize = {recovery}\n[data]\nsize = {data}\n"
    )
    plan = layout.plan(layout.parse_spec(text))
    end = align
    for part in plan.partitions:
        assert part.start_bytes >= end
        assert part.start_bytes % align == part.size_bytes % align == 0
        end = part.end_bytes
    assert plan.partitions[-1].role == "data"
    assert end <= plan.disk_size_bytes
    assert plan.need("a").size_bytes == plan.need("b").size_bytes >= slot
    record = plan.need("record")
    first, second = plan.record_offsets
    assert record.start_bytes == first
    assert first + align == second
    assert second + align == record.end_bytes
    assert 0 < plan.slot_image_size_bytes_max < plan.need("a").size_bytes


@given(st.integers(0, 1 << 50))
def test_a_size_reads_back_as_it_is_shown(size_bytes: int) -> None:
    assert parse_size(show_size(size_bytes), "size") == size_bytes


def test_the_plan_is_shown_as_a_table() -> None:
    shown = layout.plan(layout.parse_spec("")).show()
    assert "recovery" in shown
    assert "256 MiB" in shown


def offsets(text: str, sizes_bytes: list[int]) -> list[int]:
    return layout.raw_offsets(layout.plan(layout.parse_spec(text)), sizes_bytes)


def test_raw_blobs_keep_their_places() -> None:
    assert offsets("raw = [{file='idb', offset='32 KiB'}, {file='u', offset='1 MiB'}]", [9000, 700_000]) == [
        32 * KIB,
        MIB,
    ]


@pytest.mark.parametrize(
    ("text", "sizes_bytes"),
    [
        ("raw = [{file='x', offset='8 KiB'}]", [512]),  # inside the GPT's entries
        ("raw = [{file='x', offset=0}]", [512]),
        ("raw = [{file='x', offset='3 MiB'}]", [2 * MIB]),  # runs into the boot partition
        ("raw = [{file='x', offset='32 KiB'}, {file='y', offset='33 KiB'}]", [2048, 10]),
        ("raw = [{file='x', offset=40001}]", [1]),
    ],
)
def test_raw_blobs_that_overlap_something_are_refused(text: str, sizes_bytes: list[int]) -> None:
    with pytest.raises(TwinlockError) as caught:
        offsets(text, sizes_bytes)
    assert caught.value.code == "input-invalid"


def test_moved_gpt_entries_make_room_for_a_rom_that_reads_at_8_kib() -> None:
    text = "gpt_entries_offset = '1 MiB'\nraw = [{file='x', offset='8 KiB'}]"
    assert offsets(text, [500_000]) == [8 * KIB]
