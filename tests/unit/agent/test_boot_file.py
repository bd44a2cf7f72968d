"""The boot record in two sectors: which copy is written, and what torn writes leave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.agent.boot.file import FileBootControl
from twinlock.core import bootrecord
from twinlock.core.bootrecord import SECTOR_SIZE_BYTES, BootRecord
from twinlock.core.errors import TwinlockError

OFFSETS = (512, 8192)
SIZE_BYTES = 16384


def make(folder: Path, record: BootRecord | None = None) -> FileBootControl:
    path = folder / "disk"
    path.write_bytes(b"\xaa" * SIZE_BYTES)
    control = FileBootControl(path, OFFSETS, folder / "booted.json")
    if record is not None:
        put(path, 0, bootrecord.encode(record))
        put(path, 1, bootrecord.encode(record))
    return control


def put(path: Path, copy: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(OFFSETS[copy])
        file.write(data)


def code_of(control: FileBootControl) -> str:
    with pytest.raises(TwinlockError) as caught:
        control.read()
    return caught.value.code


def test_a_change_goes_to_the_older_copy_and_nowhere_else(tmp_path: Path) -> None:
    control = make(tmp_path, BootRecord(seq=5, default="a"))
    before = (tmp_path / "disk").read_bytes()
    control.invalidate("b")
    after = (tmp_path / "disk").read_bytes()
    changed = {number for number in range(SIZE_BYTES) if before[number] != after[number]}
    assert changed
    assert changed <= set(range(OFFSETS[1], OFFSETS[1] + SECTOR_SIZE_BYTES))
    control.arm("b", 3, "trial")
    third = (tmp_path / "disk").read_bytes()
    assert after[OFFSETS[1] :] == third[OFFSETS[1] :]
    assert after[OFFSETS[0] :][:512] != third[OFFSETS[0] :][:512]


def test_a_whole_trial(tmp_path: Path) -> None:
    control = make(tmp_path, bootrecord.initial())
    assert control.invalidate("b") == bootrecord.initial()
    armed = control.arm("b", 2, "t")
    assert control.arm("b", 2, "t") == armed
    assert control.roll_back("t", "no good").reason == "no good"
    control.arm("b", 2, "u")
    assert control.commit("u").default == "b"
    assert control.read() == control.commit("u")


def test_the_committed_slot_is_refused(tmp_path: Path) -> None:
    control = make(tmp_path, bootrecord.initial())
    changes: tuple[Callable[[], BootRecord], ...] = (
        lambda: control.invalidate("a"),
        lambda: control.arm("a", 3, "t"),
    )
    for change in changes:
        with pytest.raises(TwinlockError) as caught:
            change()
        assert caught.value.code == "boot-refused"


def test_no_valid_copy_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    control = make(tmp_path)
    assert code_of(control) == "boot-record"
    with pytest.raises(TwinlockError):
        control.invalidate("b")
    assert (tmp_path / "disk").read_bytes() == b"\xaa" * SIZE_BYTES


def test_storage_that_is_not_there_is_named(tmp_path: Path) -> None:
    control = FileBootControl(tmp_path / "gone", OFFSETS, tmp_path / "booted.json")
    assert code_of(control) == "boot-control"


def test_the_self_test_writes_and_changes_no_meaning(tmp_path: Path) -> None:
    record = bootrecord.arm(bootrecord.initial(), "b", 3, "t")
    control = make(tmp_path, record)
    control.self_test()
    found = control.read()
    assert found.seq == record.seq + 1
    assert bootrecord.next_boot(found)[0] == "b"
    assert (found.trial_id, found.tries_left) == ("t", 3)


def test_the_self_test_notices_a_copy_that_does_not_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = make(tmp_path, bootrecord.initial())
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, b"\0" * len(data), offset))
    with pytest.raises(TwinlockError) as caught:
        control.self_test()
    assert caught.value.code == "boot-control"


def test_the_self_test_notices_a_write_that_takes_the_other_copy_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when both copies lie in one erase block."""
    control = make(tmp_path, bootrecord.initial())
    real = os.pwrite

    def clumsy(fd: int, data: bytes, offset: int) -> int:
        for other in OFFSETS:
            real(fd, b"\xff" * SECTOR_SIZE_BYTES, other)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", clumsy)
    with pytest.raises(TwinlockError) as caught:
        control.self_test()
    assert caught.value.code == "boot-control"


def test_a_write_that_does_not_stay_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = make(tmp_path, bootrecord.initial())
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: len(data))
    with pytest.raises(TwinlockError) as caught:
        control.arm("b", 3, "t")
    assert caught.value.code == "boot-control"


@pytest.mark.parametrize(
    "text",
    [None, "", "[]", '{"slot":"c","boot_id":"1"}', '{"slot":"a"}', '{"slot":"a","boot_id":""}', "\xff"],
)
def test_a_booted_slot_that_is_not_known_is_an_error(tmp_path: Path, text: str | None) -> None:
    control = make(tmp_path, bootrecord.initial())
    if text is not None:
        (tmp_path / "booted.json").write_text(text, encoding="latin-1")
    with pytest.raises(TwinlockError) as caught:
        control.booted()
    assert caught.value.code == "boot-control"


def test_the_booted_slot(tmp_path: Path) -> None:
    control = make(tmp_path, bootrecord.initial())
    (tmp_path / "booted.json").write_text(json.dumps({"slot": "recovery", "boot_id": "f00"}))
    assert (control.booted().slot, control.booted().boot_id) == ("recovery", "f00")


@given(st.data())
def test_any_torn_write_leaves_the_old_record_or_the_new(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes of the sector reached the medium."""
    folder = tmp_path_factory.mktemp("torn")
    old = bootrecord.arm(bootrecord.initial(), "b", 3, "trial")
    control = make(folder, old)
    path = folder / "disk"
    before = path.read_bytes()
    new = control.commit("trial")
    after = path.read_bytes()
    start = OFFSETS[1]
    kept = data.draw(st.lists(st.booleans(), min_size=64, max_size=64))
    torn = bytearray(before)
    for number, is_new in enumerate(kept):
        if is_new:
            place = slice(start + number * 8, start + number * 8 + 8)
            torn[place] = after[place]
    path.write_bytes(torn)
    assert control.read() in (old, new)
    assert control.commit("trial").default == "b"
