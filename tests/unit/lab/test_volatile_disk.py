"""The disk with a volatile cache: what a power cut may leave, and only that; and the log of its writes."""

from __future__ import annotations

import io
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlock.core.errors import TwinlockError
from twinlock.lab.qemu import writelog
from twinlock.lab.qemu.nbd import NbdServer
from twinlock.lab.qemu.volatile import CutPlan, PowerCutError, VolatileDisk
from twinlock.lab.qemu.writelog import Entry, Kind, LogWriter
from twinlock.provision.tools import find_tool

SECTOR = 512
SECTORS = 16


def fill(byte: int, sectors: int = 1) -> bytes:
    return bytes([byte]) * (SECTOR * sectors)


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    path = tmp_path / "medium.img"
    path.write_bytes(bytes(SECTOR * SECTORS))
    return path


@pytest.fixture
def disk(medium: Path) -> Iterator[VolatileDisk]:
    found = VolatileDisk(medium)
    yield found
    found.close()


def sector(medium: Path, number: int) -> bytes:
    return medium.read_bytes()[number * SECTOR : (number + 1) * SECTOR]


def test_an_unflushed_write_is_read_back_but_is_not_on_the_medium(disk: VolatileDisk, medium: Path) -> None:
    disk.write(SECTOR, fill(7, 2))
    assert disk.read(SECTOR - 10, 20) == bytes(10) + fill(7)[:10]
    assert disk.read(0, SECTOR * SECTORS) == bytes(SECTOR) + fill(7, 2) + bytes(SECTOR * 13)
    assert medium.read_bytes() == bytes(SECTOR * SECTORS)
    assert disk.unflushed_writes == 1


def test_a_flush_makes_every_write_durable(disk: VolatileDisk, medium: Path) -> None:
    disk.write(0, fill(1))
    disk.write(0, fill(2))
    disk.flush()
    disk.cut(seed=1, keep=0.0)
    assert sector(medium, 0) == fill(2)


def test_the_cache_is_empty_after_a_flush(disk: VolatileDisk) -> None:
    disk.write(0, fill(1, 4))
    disk.write(SECTOR, fill(2), through=True)
    assert disk.unflushed_sectors == 3
    disk.flush()
    assert (disk.unflushed_writes, disk.unflushed_sectors) == (0, 0)


def test_an_older_write_that_leaves_the_cache_does_not_hide_a_newer_one(medium: Path) -> None:
    disk = VolatileDisk(medium, cache_size_bytes_max=2 * SECTOR)
    disk.write(0, fill(1, 2))
    disk.write(SECTOR, fill(2))
    assert disk.unflushed_writes == 1
    assert disk.read(0, 3 * SECTOR) == fill(1) + fill(2) + bytes(SECTOR)
    disk.close()


def test_a_write_through_is_durable_and_older_writes_stay_volatile(disk: VolatileDisk, medium: Path) -> None:
    disk.write(0, fill(1, 3))
    disk.write(SECTOR, fill(2), through=True)
    assert disk.read(0, 3 * SECTOR) == fill(1) + fill(2) + fill(1)
    disk.cut(seed=1, keep=0.0)
    assert medium.read_bytes()[: 3 * SECTOR] == bytes(SECTOR) + fill(2) + bytes(SECTOR)


def test_an_older_write_never_comes_back_over_a_write_through(disk: VolatileDisk, medium: Path) -> None:
    disk.write(0, fill(1))
    disk.write(0, fill(2), through=True)
    disk.cut(seed=1, keep=1.0)
    assert sector(medium, 0) == fill(2)


def test_a_dead_disk_answers_nothing(disk: VolatileDisk) -> None:
    disk.cut(seed=1)
    assert disk.cut_happened.is_set()
    with pytest.raises(PowerCutError):
        disk.read(0, 1)
    with pytest.raises(PowerCutError):
        disk.write(0, fill(1))
    with pytest.raises(PowerCutError):
        disk.flush()


def test_the_cut_comes_at_the_named_write(medium: Path) -> None:
    disk = VolatileDisk(medium, cut=CutPlan(at_write=3, seed=1, keep=0.0))
    disk.write(0, fill(1))
    disk.flush()
    disk.write(SECTOR, fill(2))
    with pytest.raises(PowerCutError):
        disk.write(2 * SECTOR, fill(3))
    assert medium.read_bytes()[: 3 * SECTOR] == fill(1) + bytes(2 * SECTOR)
    assert disk.loss is not None
    assert (disk.loss.unflushed, disk.loss.kept) == (2, 0)
    disk.close()


def test_a_torn_write_leaves_a_sector_of_both(disk: VolatileDisk, medium: Path) -> None:
    disk.write(0, fill(9))
    loss = disk.cut(seed=5, keep=0.0, tear_bytes=True)
    assert loss.torn == 1
    assert set(sector(medium, 0)) == {0, 9}


@pytest.mark.parametrize(
    ("offset", "data"),
    [(1, fill(1)), (0, b"abc"), (SECTOR * SECTORS, fill(1)), (-SECTOR, fill(1)), (0, fill(1, SECTORS + 1))],
)
def test_writes_off_the_sectors_or_the_disk_are_refused(disk: VolatileDisk, offset: int, data: bytes) -> None:
    with pytest.raises(TwinlockError) as caught:
        disk.write(offset, data)
    assert caught.value.code == "input-invalid"
    assert disk.writes == 0


def test_a_full_cache_brings_its_oldest_writes_to_the_medium(medium: Path) -> None:
    disk = VolatileDisk(medium, cache_size_bytes_max=2 * SECTOR)
    for number in range(4):
        disk.write(number * SECTOR, fill(number + 1))
    assert disk.unflushed_writes == 2
    disk.cut(seed=1, keep=0.0)
    assert medium.read_bytes()[: 4 * SECTOR] == fill(1) + fill(2) + bytes(2 * SECTOR)
    disk.close()


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SECTORS - 3), st.integers(1, 3)),
        st.tuples(st.just("through"), st.integers(0, SECTORS - 3), st.integers(1, 3)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
    ),
    max_size=20,
)


@settings(max_examples=60)
@given(steps=operations, seed=st.integers(0, 2**32))
def test_a_cut_leaves_each_sector_at_one_of_its_values_since_it_was_last_durable(
    steps: list[tuple[str, int, int]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    medium = tmp_path_factory.getbasetemp() / f"cut-{os.getpid()}.img"
    medium.write_bytes(bytes(SECTOR * SECTORS))
    disk = VolatileDisk(medium)
    possible = [[0] for _ in range(SECTORS)]
    for byte, (kind, first, count) in enumerate(steps, start=1):
        if kind == "flush":
            disk.flush()
            possible = [values[-1:] for values in possible]
            continue
        disk.write(first * SECTOR, fill(byte, count), through=kind == "through")
        for number in range(first, first + count):
            possible[number] = [byte] if kind == "through" else [*possible[number], byte]
    newest = b"".join(fill(values[-1]) for values in possible)
    assert disk.read(0, SECTOR * SECTORS) == newest
    disk.cut(seed)
    disk.close()
    left = medium.read_bytes()
    for number, values in enumerate(possible):
        assert left[number * SECTOR : (number + 1) * SECTOR] in [fill(value) for value in values]


def test_the_same_seed_loses_the_same_sectors(tmp_path: Path, seed: int) -> None:
    outcomes = []
    for name in ("one", "two"):
        medium = tmp_path / name
        medium.write_bytes(bytes(SECTOR * SECTORS))
        disk = VolatileDisk(medium)
        disk.write(0, bytes(random.Random(seed).randbytes(SECTOR * SECTORS)))
        disk.cut(seed, tear_bytes=True)
        disk.close()
        outcomes.append(medium.read_bytes())
    assert outcomes[0] == outcomes[1]


def logged(entries: list[Entry]) -> bytes:
    out = io.BytesIO()
    writer = LogWriter(out)
    for entry in entries:
        writer.add(entry)
    writer.flush()
    return out.getvalue()


entry_lists = st.lists(
    st.one_of(
        st.builds(
            Entry,
            st.sampled_from([Kind.WRITE, Kind.WRITE_THROUGH]),
            st.integers(0, 2**40),
            st.binary(max_size=60),
        ),
        st.sampled_from([Entry(Kind.FLUSH), Entry(Kind.CUT), Entry(Kind.MARK, 0, b"armed")]),
    ),
    max_size=12,
)


@given(entries=entry_lists)
def test_a_log_reads_back_as_it_was_written(entries: list[Entry]) -> None:
    assert list(writelog.parse(io.BytesIO(logged(entries)))) == entries


@given(entries=entry_lists, cut=st.integers(8, 400))
def test_a_log_cut_short_reads_up_to_its_last_whole_entry(entries: list[Entry], cut: int) -> None:
    found = list(writelog.parse(io.BytesIO(logged(entries)[:cut])))
    assert found == entries[: len(found)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "input-wrong-type"),
        (b"something else", "input-wrong-type"),
        (writelog.MAGIC + b"\x09" + bytes(19), "input-invalid"),
        (writelog.MAGIC + b"\x00" + bytes(19), "input-invalid"),
        (writelog.MAGIC + b"\x01\0\0\0\xff\xff\xff\xff" + bytes(12), "input-invalid"),
        (writelog.MAGIC + b"\x03" + bytes(15) + b"\1\0\0\0", "input-invalid"),  # a wrong checksum
    ],
)
def test_what_is_no_log_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        list(writelog.parse(io.BytesIO(data)))
    assert caught.value.code == code


def test_a_write_too_large_for_the_log_is_refused() -> None:
    with pytest.raises(TwinlockError) as caught:
        writelog.encode(Entry(Kind.WRITE, 0, bytes(writelog.ENTRY_DATA_BYTES_MAX + 1)))
    assert caught.value.code == "input-too-large"


def test_a_replayed_log_gives_the_disk(medium: Path) -> None:
    entries: list[Entry] = []
    disk = VolatileDisk(medium, log=entries.append)
    disk.mark("start")
    disk.write(0, fill(1, 4))
    disk.write(SECTOR, fill(2), through=True)
    disk.flush()
    disk.close()
    assert [entry.kind for entry in entries] == [Kind.MARK, Kind.WRITE, Kind.WRITE_THROUGH, Kind.FLUSH]
    copy = io.BytesIO(bytes(SECTOR * SECTORS))
    writelog.replay(entries, copy)
    assert copy.getvalue() == medium.read_bytes()


def qemu_io(socket: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    arguments = [argument for command in commands for argument in ("-c", command)]
    return subprocess.run(
        [
            find_tool("qemu-io", "qemu-utils"),
            "-t",
            "writeback",
            "-f",
            "raw",
            *arguments,
            f"nbd+unix:///?socket={socket}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_qemu_reads_writes_and_flushes_over_nbd(tmp_path: Path) -> None:
    medium = tmp_path / "disk.img"
    medium.write_bytes(bytes(1024 * 1024))
    entries: list[Entry] = []
    disk = VolatileDisk(medium, log=entries.append)
    with NbdServer(disk, tmp_path / "nbd.sock") as server:
        done = qemu_io(
            tmp_path / "nbd.sock", "write -P 7 4096 8192", "read -v 4096 16", "write -f -P 9 0 512", "flush"
        )
        assert done.returncode == 0, done.stderr
        assert "07 07 07" in done.stdout
        assert server.failure is None
    assert disk.read(4096, 8192) == bytes([7]) * 8192
    assert medium.read_bytes()[:512] == bytes([9]) * 512
    assert Kind.WRITE_THROUGH in {entry.kind for entry in entries}
    assert entries[-1].kind in (Kind.FLUSH, Kind.WRITE)
    disk.close()


def test_qemu_gets_an_error_and_no_answer_when_the_power_goes(tmp_path: Path) -> None:
    medium = tmp_path / "disk.img"
    medium.write_bytes(bytes(1024 * 1024))
    disk = VolatileDisk(medium, cut=CutPlan(at_write=2, seed=3, keep=0.0))
    with NbdServer(disk, tmp_path / "nbd.sock") as server:
        done = qemu_io(tmp_path / "nbd.sock", "write -P 7 0 512", "write -P 8 512 512", "read 0 512")
        assert "error" in (done.stdout + done.stderr).lower()
        assert disk.cut_happened.wait(10)
        assert server.failure is None
    assert medium.read_bytes() == bytes(1024 * 1024)
    disk.close()


def test_a_socket_path_that_exists_is_refused(tmp_path: Path, disk: VolatileDisk) -> None:
    (tmp_path / "nbd.sock").write_bytes(b"")
    with pytest.raises(TwinlockError) as caught:
        NbdServer(disk, tmp_path / "nbd.sock")
    assert caught.value.code == "io-error"
