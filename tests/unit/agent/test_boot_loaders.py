"""One contract for every boot control with a record: U-Boot's, GRUB's and the file's.

The loader's own steps are `bootrecord.next_boot`, written as the loader's script writes them.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from twinlock.agent.boot.choose import boot_control
from twinlock.agent.boot.file import FileBootControl
from twinlock.agent.boot.uboot import UbootBootControl
from twinlock.agent.config import RECORD_SIZE_BYTES, BootConfig
from twinlock.core import bootenv_grub, bootenv_uboot, bootrecord
from twinlock.core.bootrecord import BootRecord, fallback, initial
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import TRIES_MAX

OFFSETS = (4096, 8192)
ENCODE = {"file": bootrecord.encode, "uboot": bootenv_uboot.encode, "grub": bootenv_grub.encode}


@pytest.fixture(params=sorted(ENCODE))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def control(kind: str, tmp_path: Path) -> FileBootControl:
    disk = bytearray(b"\xa5" * 16384)
    for offset in OFFSETS:
        block = ENCODE[kind](initial())
        disk[offset : offset + len(block)] = block
    (tmp_path / "record").write_bytes(disk)
    (tmp_path / "booted.json").write_text(json.dumps({"slot": "a", "boot_id": "1"}))
    where = {"path": str(tmp_path / "record"), "booted": str(tmp_path / "booted.json")}
    table = {**where, "control": kind, "offset_bytes": list(OFFSETS)}
    config = msgspec.convert(table, BootConfig, dec_hook=lambda wanted, value: wanted(value))
    return boot_control(config, {})


def test_it_says_what_it_is(control: FileBootControl, kind: str) -> None:
    assert control.capabilities.name == kind
    assert control.capabilities.tries_max == TRIES_MAX
    assert control.booted().slot == "a"


def test_a_trial_that_is_committed(control: FileBootControl) -> None:
    assert control.read() == initial()
    assert control.invalidate("b") == initial()
    armed = control.arm("b", 3, "trial-1")
    assert control.read() == armed
    assert (armed.trying, armed.tries_left) == ("b", 3)
    assert control.arm("b", 3, "trial-1") == armed
    committed = control.commit("trial-1")
    assert committed.default == "b"
    assert control.commit("trial-1") == committed
    assert control.invalidate("a").failed == {"a"}
    control.self_test()
    assert fallback(control.read()) == "b"


def test_a_trial_that_is_rolled_back_keeps_its_reason(control: FileBootControl) -> None:
    control.arm("b", 3, "trial-1")
    record = control.roll_back("trial-1", "the héalth check said: no; 100% sure = 'no'")
    assert record.reason == "the héalth check said: no; 100% sure = 'no'"
    assert control.read() == record
    assert fallback(record) == "a"


@pytest.mark.parametrize("change", ["invalidate a", "arm a", "commit other", "roll back other"])
def test_what_is_not_allowed_writes_nothing(control: FileBootControl, tmp_path: Path, change: str) -> None:
    before = (tmp_path / "record").read_bytes()
    with pytest.raises(TwinlockError) as caught:
        {
            "invalidate a": lambda: control.invalidate("a"),
            "arm a": lambda: control.arm("a", 3, "t"),
            "commit other": lambda: control.commit("other"),
            "roll back other": lambda: control.roll_back("other", "why"),
        }[change]()
    assert caught.value.code == "boot-refused"
    assert (tmp_path / "record").read_bytes() == before


def test_reading_writes_nothing(control: FileBootControl, tmp_path: Path) -> None:
    before = (tmp_path / "record").read_bytes()
    for _ in range(5):
        control.read()
        control.booted()
    assert (tmp_path / "record").read_bytes() == before


def test_a_cut_at_any_sector_of_any_write_leaves_the_record_before_or_after(
    control: FileBootControl, kind: str, tmp_path: Path, rng: random.Random
) -> None:
    """Every subset of the write's sectors, and a torn sector: what a loader then boots is a bootable slot."""
    path = tmp_path / "record"
    steps: tuple[Callable[[], BootRecord], ...] = (
        lambda: control.arm("b", 2, "trial-1"),
        lambda: control.commit("trial-1"),
        lambda: control.invalidate("a"),
        lambda: control.arm("a", 2, "trial-2"),
        lambda: control.roll_back("trial-2", "no good"),
    )
    for step in steps:
        before, old = path.read_bytes(), control.read()
        new = step()
        after = path.read_bytes()
        changed = [at for at in range(0, len(after), 512) if before[at : at + 512] != after[at : at + 512]]
        assert 1 <= len(changed) <= RECORD_SIZE_BYTES[kind] // 512
        states = [mix(before, after, set(kept)) for kept in subsets(changed)]
        cut = changed[0] + rng.randrange(1, 512)
        states.append(before[: changed[0]] + after[changed[0] : cut] + before[cut:])
        for state in states:
            found = read(control, path, state)
            assert what_boots(found) in (what_boots(old), what_boots(new))
        path.write_bytes(after)


def what_boots(record: BootRecord) -> tuple[str, str | None, frozenset[str]]:
    return record.default, record.trying, record.failed


def subsets(items: list[int]) -> Iterator[tuple[int, ...]]:
    for size in range(len(items) + 1):
        yield from itertools.combinations(items, size)


def mix(before: bytes, after: bytes, kept: set[int]) -> bytes:
    """The disk of which only these sectors of the new state were written."""
    pieces = [(after if at in kept else before)[at : at + 512] for at in range(0, len(before), 512)]
    return b"".join(pieces)


def read(control: FileBootControl, path: Path, data: bytes) -> BootRecord:
    path.write_bytes(data)
    return control.read()


def test_the_next_write_mends_a_damaged_copy(control: FileBootControl, tmp_path: Path) -> None:
    path = tmp_path / "record"
    data = bytearray(path.read_bytes())
    data[OFFSETS[1] : OFFSETS[1] + 512] = bytes(512)
    path.write_bytes(data)
    control.self_test()
    assert control.read().seq == initial().seq + 1


def test_two_damaged_copies_are_said_to_be(control: FileBootControl, tmp_path: Path) -> None:
    (tmp_path / "record").write_bytes(bytes(16384))
    with pytest.raises(TwinlockError) as caught:
        control.read()
    assert caught.value.code == "boot-record"


def test_a_uboot_with_a_flags_byte_is_written_to_in_its_own_form(tmp_path: Path) -> None:
    disk = bytearray(16384)
    for offset in OFFSETS:
        disk[offset : offset + 512] = bootenv_uboot.encode(initial(), flags_byte=True)
    (tmp_path / "record").write_bytes(disk)
    control = UbootBootControl(tmp_path / "record", OFFSETS, tmp_path / "booted.json")
    control.arm("b", 3, "trial-1")
    control.commit("trial-1")
    written = (tmp_path / "record").read_bytes()
    assert [bootenv_uboot.has_flags_byte(written[offset : offset + 512]) for offset in OFFSETS] == [
        True,
        True,
    ]
