"""The parts of the crash lab: what a cut leaves of writes, names and flushes; which choices; the loaders."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.agent import store
from twinlock.agent.boot.file import FileBootControl
from twinlock.agent.store import FolderStore
from twinlock.core import bootenv_grub, bootenv_uboot, bootrecord, durable
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import TwinlockError
from twinlock.core.names import RECOVERY, SLOTS
from twinlock.lab.crash import choices
from twinlock.lab.crash.disk import Content, Disk, Names, Pending, Sector, Size, file_after
from twinlock.lab.crash.kernel import BOOT, RUN, VARIABLES, Kernel, Switch
from twinlock.lab.crash.kinds import LOADERS
from twinlock.lab.crash.loaders import OFFSETS_BYTES, RECORD
from twinlock.lab.crash.paths import KernelPath

WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
SECTOR = 512
EMPTY = Disk({}, frozenset({"/state", BOOT, VARIABLES}), {"/dev/slot": Content(bytes(4 * SECTOR))})


def recorded(disk: Disk = EMPTY) -> Kernel:
    return Kernel(disk, lambda: None)


def write(kernel: Kernel, path: str, data: bytes, flags: int = WRITE_NEW) -> int:
    fd = kernel.open(path, flags)
    assert kernel.write(fd, data) == len(data)
    return fd


def every_disk(kernel: Kernel) -> list[Disk]:
    """What a cut right now may leave, torn sectors aside."""
    snapshot = kernel.snapshot()
    units = [one.unit for one in snapshot.pending]
    kept = [[unit for n, unit in enumerate(units) if mask >> n & 1] for mask in range(1 << len(units))]
    return [snapshot.after_loss(one) for one in kept]


def contents(kernel: Kernel, path: str) -> set[bytes | None]:
    return {disk.files.get(path) for disk in every_disk(kernel)}


# --- what a cut leaves ------------------------------------------------------------------------------------


def test_a_new_file_may_be_gone_empty_short_of_data_or_whole() -> None:
    kernel = recorded()
    write(kernel, "/state/new", b"x" * 10)
    assert contents(kernel, "/state/new") == {None, b"", bytes(10), b"x" * 10}


def test_a_flushed_file_is_whole_but_its_name_may_be_lost_until_the_folder_is_flushed() -> None:
    kernel = recorded()
    kernel.fsync(write(kernel, "/state/new", b"data"))
    assert contents(kernel, "/state/new") == {None, b"data"}
    kernel.fsync(kernel.open("/state", os.O_RDONLY | os.O_DIRECTORY))
    assert contents(kernel, "/state/new") == {b"data"}
    assert kernel.snapshot().pending == ()


def test_a_rename_leads_to_the_old_or_the_new_file_and_the_new_one_may_be_empty() -> None:
    kernel = recorded(Disk({"/state/name": b"old"}, EMPTY.folders, {}))
    write(kernel, "/state/name.tmp", b"new")
    kernel.rename("/state/name.tmp", "/state/name")
    assert contents(kernel, "/state/name") == {b"old", b"", bytes(3), b"new"}


def test_a_rename_on_fat_may_leave_neither_name_or_both() -> None:
    kernel = recorded(Disk({f"{BOOT}/a": b"1", f"{BOOT}/b": b"2"}, EMPTY.folders, {}))
    kernel.rename(f"{BOOT}/a", f"{BOOT}/b")
    left = {(disk.files.get(f"{BOOT}/a"), disk.files.get(f"{BOOT}/b")) for disk in every_disk(kernel)}
    assert left == {(b"1", b"2"), (b"1", None), (None, b"2"), (None, None), (b"1", b"1"), (None, b"1")}


def test_a_variable_is_durable_when_it_is_written() -> None:
    kernel = recorded()
    seen: list[set[bytes | None]] = []
    kernel._changed = lambda: seen.append(contents(kernel, f"{VARIABLES}/x"))
    write(kernel, f"{VARIABLES}/x", b"1", os.O_WRONLY | os.O_CREAT)
    write(kernel, f"{VARIABLES}/x", b"2", os.O_WRONLY | os.O_CREAT)
    kernel.unlink(f"{VARIABLES}/x")
    assert seen == [{None, b"1"}, {b"1"}, {b"1", None, b"2"}, {b"2"}, {b"2", None}, {None}]


def test_what_is_below_run_is_gone_with_the_boot_and_never_on_a_disk() -> None:
    kernel = recorded()
    kernel.start_run({f"{RUN}/note": b"1"})
    kernel.fsync(write(kernel, f"{RUN}/other", b"2"))
    assert kernel.content(f"{RUN}/other") == b"2"
    assert kernel.snapshot().pending == ()
    assert kernel.disk().files == {}
    kernel.flush_all()
    assert not [name for name in kernel.snapshot().names if name.startswith(RUN)]
    kernel.start_run({})
    assert kernel.content(f"{RUN}/note") is None


def test_a_file_in_a_folder_that_is_lost_is_lost() -> None:
    kernel = recorded()
    KernelPath(kernel, "/state/sub").mkdir()
    kernel.fsync(write(kernel, "/state/sub/file", b"data"))
    kernel.fsync(kernel.open("/state/sub", os.O_RDONLY | os.O_DIRECTORY))
    assert contents(kernel, "/state/sub/file") == {None, b"data"}
    kernel.fsync(kernel.open("/state", os.O_RDONLY | os.O_DIRECTORY))
    assert contents(kernel, "/state/sub/file") == {b"data"}


def test_sectors_of_a_medium_survive_each_by_itself_until_the_flush() -> None:
    kernel = recorded()
    fd = kernel.open("/dev/slot", os.O_RDWR)
    kernel.pwrite(fd, b"a" * SECTOR + b"b" * SECTOR, SECTOR)
    kernel.pwrite(fd, bytes(SECTOR), 3 * SECTOR)  # as it was: nothing waits
    ends = {disk.media["/dev/slot"].data for disk in every_disk(kernel)}
    zero = bytes(SECTOR)
    first, second = b"a" * SECTOR, b"b" * SECTOR
    assert ends == {
        zero * 4, zero + first + zero * 2, zero * 2 + second + zero, zero + first + second + zero,
    }  # fmt: skip
    kernel.fdatasync(fd)
    assert [disk.media["/dev/slot"].data for disk in every_disk(kernel)] == [zero + first + second + zero]


def test_a_synchronous_write_waits_for_nothing_when_it_returns() -> None:
    kernel = recorded()
    kernel.pwrite(kernel.open("/dev/slot", os.O_RDWR | os.O_DSYNC), b"x" * SECTOR, 0)
    assert kernel.snapshot().pending == ()
    write(kernel, "/state/f", b"x", WRITE_NEW | os.O_DSYNC)
    assert {type(one.unit) for one in kernel.snapshot().pending} == {Names}


def test_holes_read_as_zeros_and_a_cut_file_is_short() -> None:
    late = Sector(1, 1, b"late", b"")
    assert file_after(b"ab", [late]) == b"ab"
    assert file_after(b"ab", [late, Size(1, 516)]) == b"ab" + bytes(510) + b"late"
    assert file_after(b"abcd", [Size(1, 0), Size(1, 6)]) == bytes(6)
    assert file_after(b"", [Size(1, 3)]) == bytes(3)


def test_two_disks_have_one_key_only_when_their_bytes_are_equal() -> None:
    other = Disk({}, EMPTY.folders, {"/dev/slot": Content(bytes(4 * SECTOR))})
    assert other.key == EMPTY.key
    assert Disk({"/state/x": b""}, EMPTY.folders, EMPTY.media).key != EMPTY.key
    assert Disk({}, EMPTY.folders, {"/dev/slot": Content(b"x")}).key != EMPTY.key


def test_a_function_that_the_kernel_does_not_have_is_missed() -> None:
    with pytest.raises(AttributeError, match="sendfile"):
        recorded().sendfile  # noqa: B018
    for call in (
        lambda: recorded().open("/state/none", os.O_RDONLY),
        lambda: recorded().open("/dev/none", os.O_RDONLY),
        lambda: recorded().open("/state", os.O_RDONLY),
        lambda: recorded().unlink("/state/none"),
        lambda: recorded().rename("/state/none", "/state/x"),
        lambda: recorded().mkdir("/state"),
        lambda: KernelPath(recorded(), "/state/none").unlink(),
        lambda: KernelPath(recorded(), "/state/none").open(),
        lambda: KernelPath(recorded(), "/state/none").open("wb"),
        lambda: KernelPath(recorded(), "/state").mkdir(),
    ):
        with pytest.raises(OSError, match=r"/(state|dev)"):
            call()


@pytest.mark.parametrize("flushes", [True, False])
def test_the_real_store_keeps_old_or_new_only_because_it_flushes(flushes: bool) -> None:
    kernel = recorded(Disk({"/state/name": b"old"}, EMPTY.folders, {}))
    seen: set[bytes | None] = set()
    kernel._changed = lambda: seen.update(contents(kernel, "/state/name"))
    switch = Switch()
    switch.kernel = kernel
    if not flushes:
        kernel.fsync = lambda fd: None  # type: ignore[method-assign]
    with patch.object(durable, "os", switch), patch.object(store, "os", switch):
        FolderStore(cast("Path", KernelPath(kernel, "/state"))).write("name", b"new content")
    assert (seen == {b"old", b"new content"}) is flushes
    assert {b"old", b"new content"} <= seen


# --- choices ----------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(3, 9), st.integers(0, 99))
def test_subsets_are_all_of_a_few_units_and_some_of_many(count: int, power: int, seed: int) -> None:
    bound = 1 << power
    found = list(choices.masks(count, bound, Random(seed)))
    assert all(0 <= mask < 1 << count for mask in found)
    assert {0, (1 << count) - 1} <= set(found)
    if count <= power:
        assert sorted(found) == list(range(1 << count))
    else:
        assert len(found) <= bound
        newest = max(1, power - 2)
        assert {mask >> (count - newest) for mask in found} == set(range(1 << newest))


def test_every_choice_is_found_by_its_name() -> None:
    sector = Sector(RECORD, 0, b"new" + bytes(509), b"old" + bytes(509))
    pending = [Pending(1, Size(3, 9)), Pending(2, sector)]
    found = list(choices.every(pending, 8, Random(0), frozenset({RECORD})))
    assert [one.name for one in found] == [
        "kept-0", "kept-1", "kept-2", "kept-3", "torn-1-1-lost", "torn-1-1-kept", "torn-1-2-lost",
        "torn-1-2-kept",
    ]  # fmt: skip
    for one in found:
        assert choices.named(pending, one.name, frozenset({RECORD})) == one
    with pytest.raises(TwinlockError, match="2 unflushed units"):
        choices.named(pending, "kept-4", frozenset())


def test_a_torn_sector_begins_new_and_ends_old() -> None:
    sector = Sector(RECORD, 0, b"abcd", b"abxy")
    assert choices.tears(sector, frozenset({RECORD})) == [3]
    long = Sector(7, 0, bytes(range(100)), b"\xff" * 100)
    assert len(choices.tears(long, frozenset())) == choices.TEARS_MAX
    assert len(choices.tears(Sector("x", 0, b"12345678", b""), frozenset({"x"}))) == 7


def test_nothing_that_waits_is_one_choice() -> None:
    assert [one.name for one in choices.every([], 8, Random(0), frozenset())] == ["kept-0"]


# --- loaders ----------------------------------------------------------------------------------------------

CODECS: dict[str, Any] = {"file": bootrecord, "uboot": bootenv_uboot, "grub": bootenv_grub}


@st.composite
def records(draw: st.DrawFn) -> BootRecord:
    default = draw(st.sampled_from(SLOTS))
    trying = draw(st.sampled_from([None, bootrecord.other(default)]))
    return BootRecord(
        seq=draw(st.integers(1, 300)),
        default=default,
        trying=trying,
        tries_left=draw(st.integers(0, 7)) if trying else 0,
        trial_id=draw(st.sampled_from(["", "0" * 32])),
        failed=draw(st.frozensets(st.sampled_from(SLOTS))),
        reason=draw(st.sampled_from(["", "being written", "health-failed: a=b"])),
    )


@pytest.mark.parametrize("name", CODECS)
@given(record=records(), older=records(), swapped=st.booleans())
def test_a_loader_does_what_the_boot_record_says(
    name: str, record: BootRecord, older: BootRecord, swapped: bool
) -> None:
    codec, loader = CODECS[name], LOADERS[name]
    before = BootRecord(**{**{n: getattr(older, n) for n in older.__slots__}, "seq": 0})
    medium = loader.first(*((before, record) if swapped else (record, before)))
    kernel = Kernel(Disk({}, frozenset(), {path: Content(data) for path, data in medium.items()}))
    order = loader.start(kernel)
    slot, saved = bootrecord.next_boot(record)
    trying = record.trying if record.tries_left else None
    if slot == trying and record.trying in record.failed:
        return  # no agent writes this
    assert order[0] == slot
    assert order[-1] == RECOVERY
    assert len(set(order)) == len(order)
    data = kernel.medium(RECORD).data
    blocks = [data[at : at + codec.SIZE_BYTES] if name != "file" else data[at:][:512] for at in OFFSETS_BYTES]
    assert bootrecord.newest(tuple(map(codec.decode, blocks)))[1] == saved


@pytest.mark.parametrize("name", CODECS)
def test_a_loader_without_a_record_starts_recovery(name: str) -> None:
    kernel = Kernel(Disk({}, frozenset(), {RECORD: Content(bytes(8192))}))
    assert LOADERS[name].start(kernel) == [RECOVERY]


def test_grub_saves_to_no_block_whose_last_line_has_no_end() -> None:
    trial = BootRecord(seq=9, default="a", trying="b", tries_left=3, trial_id="t")
    medium = bytearray(LOADERS["grub"].first(trial, bootrecord.initial())[RECORD])
    at = medium.index(b"tl_reason", OFFSETS_BYTES[1])
    medium[at + 4 : at + 100] = b"#" * 96
    kernel = Kernel(Disk({}, frozenset(), {RECORD: Content(bytes(medium))}))
    assert LOADERS["grub"].start(kernel) == ["a", RECOVERY]
    assert kernel.medium(RECORD).data == bytes(medium)


# --- faults that the lab found ----------------------------------------------------------------------------


class Writes(Kernel):
    """Notes the order of writes and flushes of the record."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.log: list[str] = []

    def write_medium(self, name: str, data: bytes | memoryview, offset: int) -> None:
        self.log.append(f"write {offset}")
        super().write_medium(name, data, offset)

    def flush_medium(self, name: str) -> None:
        self.log.append("flush")
        super().flush_medium(name)


@pytest.fixture
def kernel() -> Writes:
    trial = BootRecord(seq=9, default="a", trying="b", tries_left=3, trial_id="t")
    medium = LOADERS["file"].first(trial, bootrecord.initial())
    return Writes(Disk({}, frozenset(), {path: Content(data) for path, data in medium.items()}))


@pytest.fixture
def control(kernel: Writes, monkeypatch: pytest.MonkeyPatch) -> FileBootControl:
    switch = Switch()
    switch.kernel = kernel
    monkeypatch.setattr("twinlock.agent.boot.file.os", switch)
    return FileBootControl(Path(RECORD), OFFSETS_BYTES, Path("/nowhere"))


def test_what_a_loader_left_is_flushed_before_the_other_copy_is_written(
    control: FileBootControl, kernel: Writes
) -> None:
    """U-Boot and GRUB flush nothing: with the newer copy lost, a torn older one would leave none."""
    control.commit("t")
    assert kernel.log == ["flush", f"write {OFFSETS_BYTES[1]}", "flush"]


def test_a_torn_copy_is_written_again_and_a_whole_record_is_left_alone(
    control: FileBootControl, kernel: Writes
) -> None:
    assert control.mend() == []
    assert kernel.log == []
    kernel.write_medium(RECORD, b"torn", OFFSETS_BYTES[1])
    assert control.mend() == ["a copy of the boot record"]
    assert control.valid_copies() == (True, True)
    assert control.read().trying == "b"
    assert control.mend() == []


@pytest.mark.parametrize("at", [b"tl_reason", b"l_reason", b"reason"])
def test_a_block_that_grub_follows_counts_though_its_reason_is_torn(at: bytes) -> None:
    record = BootRecord(seq=9, default="a", trying="b", tries_left=3, trial_id="t", reason="why not")
    block = bootenv_grub.encode(record)
    torn = block[: block.index(at)].ljust(len(block), b"#")
    found = bootenv_grub.decode(torn)
    assert found is not None
    assert (found.trying, found.tries_left, found.reason) == ("b", 3, "")
    assert not bootenv_grub.takes_changes(torn) or at == b"tl_reason"
