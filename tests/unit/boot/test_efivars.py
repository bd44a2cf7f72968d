"""EFI variables through a file system that behaves as the kernel's, and the load options in them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.boot.efivarfs import FakeEfivarfs, mounted
from twinlock.agent.boot.efivars import EfiVariables
from twinlock.core import bootloader_efi as efi
from twinlock.core.bootloader_efi import BootPartition
from twinlock.core.errors import TwinlockError

GPT = BootPartition(1, 2048, 131072, "5d7b2c5e-6a0f-4d0c-9a55-0f4d1b6f7a11")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEfivarfs]:
    with mounted(tmp_path / "efivars", monkeypatch) as found:
        yield found


def test_a_variable_is_set_in_one_write_and_read_without_its_attributes(fake: FakeEfivarfs) -> None:
    variables = EfiVariables(fake.folder)
    assert variables.read("BootOrder") == b""
    variables.write("BootOrder", b"\x01\x00\x02\x00")
    variables.write("BootOrder", b"\x02\x00")
    assert variables.read("BootOrder") == b"\x02\x00"
    assert fake.log == ["set BootOrder", "set BootOrder"]
    assert variables.names() == ["BootOrder"]


def test_the_immutable_flag_is_taken_off_for_a_write_and_for_a_removal(fake: FakeEfivarfs) -> None:
    variables = EfiVariables(fake.folder)
    for name in ("Boot7100", "Boot7101", "Boot0001"):
        fake.put(name, b"old", immutable=True)
    variables.write("Boot7100", b"new")
    variables.remove("Boot7101")
    assert variables.read("Boot7100") == b"new"
    assert fake.immutable == {"Boot0001"}
    assert variables.names() == ["Boot0001", "Boot7100"]
    variables.remove("Boot7101")


def test_names_of_other_vendors_are_not_seen(fake: FakeEfivarfs) -> None:
    (fake.folder / "BootNext-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f").write_bytes(b"\7\0\0\0x")
    assert EfiVariables(fake.folder).names() == []


def test_a_full_store_and_a_refusal_are_said(fake: FakeEfivarfs, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = EfiVariables(fake.folder)
    fake.full = True
    with pytest.raises(TwinlockError) as caught:
        variables.write("BootNext", b"x")
    assert caught.value.code == "boot-control"
    assert "full" in caught.value.hint
    fake.put("Boot7100", b"old", immutable=True)

    def refuse(fd: int, request: int, argument: Any) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    calls: tuple[Callable[[], None], ...] = (
        lambda: variables.write("Boot7100", b"x"),
        lambda: variables.remove("Boot7100"),
    )
    for call in calls:
        with pytest.raises(TwinlockError, match="Boot7100"):
            call()


def test_a_file_system_without_flags_is_no_obstacle(
    fake: FakeEfivarfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.put("BootNext", b"x")

    def none(fd: int, request: int, argument: Any) -> int:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr(fcntl, "ioctl", none)
    EfiVariables(fake.folder).remove("BootNext")
    assert fake.log == ["delete BootNext"]


def test_a_device_that_was_not_booted_through_efi_says_so(tmp_path: Path) -> None:
    with pytest.raises(TwinlockError) as caught:
        EfiVariables(tmp_path / "none").names()
    assert caught.value.code == "boot-control"
    assert "efivarfs" in caught.value.hint


def test_a_load_option_as_the_specification_has_it() -> None:
    data = efi.load_option("Twinlock a", GPT, "twinlock/a/linux", "ro twinlock.slot=a")
    assert data[:4] == b"\x01\0\0\0"
    length = int.from_bytes(data[4:6], "little")
    assert data[6:28] == "Twinlock a\0".encode("utf-16-le")
    path = data[28 : 28 + length]
    assert path[:4] == b"\x04\x01\x2a\x00"
    assert path[4:24] == bytes.fromhex("0100000000080000000000000000020000000000")
    assert path[24:40] == bytes.fromhex("5e2c7b5d0f6a0c4d9a550f4d1b6f7a11")
    assert path[40:46] == b"\x02\x02\x04\x04\x28\x00"
    assert path[46:82] == "\\twinlock\\a\\linux\0".encode("utf-16-le")
    assert path[82:] == b"\x7f\xff\x04\x00"
    assert data[28 + length :] == "ro twinlock.slot=a\0".encode("utf-16-le")
    assert efi.read_option(data) == ("twinlock/a/linux", "ro twinlock.slot=a")


def test_a_partition_of_an_mbr_is_named_by_the_disks_signature() -> None:
    part = BootPartition(1, 2048, 131072, "5d7b2c5e-01")
    data = efi.load_option("x", part, "a", "")
    assert bytes.fromhex("5e2c7b5d") + bytes(12) + b"\x01\x01" in data
    with pytest.raises(TwinlockError):
        efi.load_option("x", BootPartition(1, 1, 1, "what is this"), "a", "")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    found = efi.read_option(data)
    assert found is None or isinstance(found[0], str)


@given(st.data())
def test_no_damaged_option_breaks_the_reader(data: st.DataObject) -> None:
    option = bytearray(efi.load_option("Twinlock a", GPT, "twinlock/a/linux", "x"))
    option[data.draw(st.integers(0, len(option) - 1))] = data.draw(st.integers(0, 255))
    efi.read_option(bytes(option[: data.draw(st.integers(0, len(option)))]))
