"""Virtual devices: a disk that tools understand, a loader that does what real ones do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from twinlock.agent import config
from twinlock.agent.boot.file import FileBootControl
from twinlock.agent.slots import ConfiguredSlots
from twinlock.core import bootrecord
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.lab import images
from twinlock.lab.disk import Disk, slot_size_for
from twinlock.lab.virtual import Release, VirtualDevice
from twinlock.provision import gpt

SIZE = 6 * MIB


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [images.build(images.sized(recipe, SIZE), folder) for recipe in images.STANDARD[:2]]


@pytest.fixture(scope="module")
def known(built: list[Path]) -> list[Release]:
    return [
        Release("demo", f"1.{number}", number, hashlib.sha256(image.read_bytes()).hexdigest(), SIZE)
        for number, image in enumerate(built)
    ]


@pytest.fixture
def device(tmp_path: Path, built: list[Path], known: list[Release]) -> VirtualDevice:
    return VirtualDevice.provision(
        tmp_path / "device", built[0], known[0], server="http://127.0.0.1:1", root=b"{}"
    )


def arm(device: VirtualDevice, tries: int = 2) -> None:
    device.disk.save_record(bootrecord.arm(device.disk.record(), "b", tries, "trial"))


def test_the_disk_has_a_partition_table_that_others_read(device: VirtualDevice) -> None:
    with device.disk.path.open("rb") as file:
        file.seek(512)
        header = file.read(512)
        table = gpt.decode(header, file.read(128 * 128), 512)
    assert [entry.name for entry in table.entries] == [
        f"twinlock-{role}" for role in ("boot", "record", "a", "b", "recovery", "data")
    ]
    fdisk = shutil.which("fdisk", path=os.environ["PATH"] + ":/sbin:/usr/sbin")
    if fdisk is not None:
        shown = subprocess.run([fdisk, "-l", device.disk.path], capture_output=True, text=True)
        assert "Disklabel type: gpt" in shown.stdout
        assert shown.stdout.count(str(device.disk.path)) == 7


def test_the_agent_finds_record_and_slots_where_the_loader_has_them(device: VirtualDevice) -> None:
    device.boot()
    loaded = config.load(device.config)
    control = FileBootControl(loaded.boot.path, loaded.boot.offset_bytes, loaded.boot.booted)
    assert control.read() == bootrecord.initial() == device.disk.record()
    assert control.booted().slot == "a"
    slots = ConfiguredSlots(loaded.slots)
    with device.disk.path.open("rb") as file:
        file.seek(device.disk.slots["b"].offset_bytes)
        assert file.read(4096) == bytes(4096)
    opened = slots.open("b")
    opened.write(b"x" * 512, opened.size_bytes - 512)
    opened.close()
    assert device.disk.sha256("a", SIZE) != device.disk.sha256("b", SIZE)
    with pytest.raises(TwinlockError):
        opened.write(b"x", opened.size_bytes)


def test_it_runs_what_it_was_made_with(device: VirtualDevice, known: list[Release]) -> None:
    first, second = device.boot(), device.boot()
    assert (first.slot, second.slot) == ("a", "a")
    assert first.boot_id != second.boot_id
    assert device.boot_id() == second
    assert device.release_in("a", known) == known[0]
    assert device.release_in("b", known) is None
    check = device.folder / "rootfs/etc/twinlock/health/required.d/10-app"
    assert subprocess.run([check], capture_output=True).stdout == b"app 1.0: ready\n"
    assert device.disk.record() == bootrecord.initial()  # nothing is written in the steady state


def test_a_reset_empties_memory_and_keeps_data(device: VirtualDevice) -> None:
    device.boot()
    (device.folder / "run/volatile").write_text("x")
    (device.state / "kept").write_text("x")
    device.boot()
    assert not (device.folder / "run/volatile").exists()
    assert (device.state / "kept").exists()


def test_a_trial_costs_a_try_each_boot_and_ends_in_the_old_slot(
    device: VirtualDevice, built: list[Path], known: list[Release]
) -> None:
    device.disk.write_image("b", built[1])
    assert device.release_in("b", known) == known[1]
    arm(device)
    seen = []
    for _ in range(4):
        slot = device.boot().slot
        seen.append((slot, device.disk.record().tries_left))
    assert seen == [("b", 1), ("b", 0), ("a", 0), ("a", 0)]
    check = device.folder / "rootfs/etc/twinlock/health/required.d/10-app"
    assert subprocess.run([check], capture_output=True).stdout == b"app 1.0: ready\n"


def test_a_slot_without_a_file_system_is_passed_over(device: VirtualDevice) -> None:
    arm(device)
    assert device.boot().slot == "a"
    assert device.disk.record().tries_left == 1  # the try was saved before the loader could know


def test_nothing_good_left_means_recovery(device: VirtualDevice) -> None:
    record = device.disk.record()
    device.disk.save_record(replace(record, seq=record.seq + 1, failed=frozenset({"a", "b"})))
    assert device.boot().slot == "recovery"
    with pytest.raises(TwinlockError) as refused:
        device.settle()
    assert refused.value.code == "slot-unusable"


def test_both_copies_torn_means_recovery(device: VirtualDevice) -> None:
    with device.disk.path.open("r+b") as file:
        for offset in device.disk.record_offsets_bytes:
            file.seek(offset + 8)
            file.write(b"\xff")
    assert device.boot().slot == "recovery"


def test_one_copy_torn_means_the_other_counts(device: VirtualDevice) -> None:
    arm(device)
    torn = next(
        offset
        for offset, copy in zip(device.disk.record_offsets_bytes, device.disk.copies(), strict=True)
        if copy is not None and copy.trying == "b"
    )
    with device.disk.path.open("r+b") as file:
        file.seek(torn + 8)
        file.write(b"\xff")
    assert device.boot().slot == "a"


def test_a_slot_with_one_changed_byte_is_no_release(device: VirtualDevice, known: list[Release]) -> None:
    images.flip_bit(device.disk.path, device.disk.slots["a"].offset_bytes + SIZE - 1)
    assert device.release_in("a", known) is None


def test_an_image_that_fills_the_slot_s_tail_is_refused(tmp_path: Path) -> None:
    disk = Disk.make(tmp_path / "disk", slot_size_for(0))
    image = tmp_path / "image"
    image.write_bytes(bytes(disk.slots["a"].size_bytes))
    with pytest.raises(TwinlockError) as refused:
        disk.write_image("a", image)
    assert refused.value.code == "image-too-large"


def test_a_copy_goes_its_own_way(device: VirtualDevice, tmp_path: Path) -> None:
    device.boot()
    twin = device.copy(tmp_path / "twin")
    assert twin.disk.path.read_bytes() == device.disk.path.read_bytes()
    assert str(device.folder) + "/" not in twin.config.read_text()
    assert config.load(twin.config).state == twin.state
    arm(twin)
    assert device.disk.record() == bootrecord.initial()
    assert VirtualDevice.open(twin.folder).facts == device.facts


def test_a_folder_without_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TwinlockError) as refused:
        VirtualDevice.open(tmp_path)
    assert refused.value.code == "input-missing"
    (tmp_path / "device.json").write_text("[]")
    with pytest.raises(TwinlockError) as refused:
        VirtualDevice.open(tmp_path)
    assert refused.value.code == "input-invalid"


def test_the_factory_s_release_is_known_to_the_agent(device: VirtualDevice, known: list[Release]) -> None:
    slots = json.loads((device.state / "slots.json").read_text())
    assert slots["a"]["version"] == "1.0"
    assert device.floor() == 0
    assert (device.state / "root.json").read_bytes() == b"{}"
