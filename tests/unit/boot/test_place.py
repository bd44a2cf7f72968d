"""The loader's files on a real file system: mounts, copies from a slot, and whole trials by configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.boot.efivarfs import FakeEfivarfs, mounted
from twinlock.agent import config as configs
from twinlock.agent.boot import place as places
from twinlock.agent.boot.beside import BesideBootControl
from twinlock.agent.boot.choose import boot_control, loader_rules
from twinlock.agent.boot.kernels import copy_tree, inside
from twinlock.agent.boot.mounts import Mounts
from twinlock.agent.config import LoaderConfig
from twinlock.core import bootrecord
from twinlock.core.bootloader import Drop, Patch, Put
from twinlock.core.errors import TwinlockError

KINDS = ("efi", "systemd-boot", "tryboot")
# `mount` by copying, and a log of what was asked for; `umount` writes nothing back.
MOUNT = """#!/bin/sh
echo "mount $*" >>"$LOG"
[ "${2#remount}" = "$2" ] || exit 0
for last; do at=$from; from=$to; to=$last; done
[ -e "$from/broken" ] && { echo "wrong fs type" >&2; exit 32; }
cp -a "$from/." "$to/"
"""
UMOUNT = """#!/bin/sh
echo "umount $*" >>"$LOG"
rm -rf "$1"
"""


@pytest.fixture
def mount_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("mount", MOUNT), ("umount", UMOUNT)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "mounts.log"))
    return tmp_path / "mounts.log"


@pytest.fixture
def variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEfivarfs]:
    with mounted(tmp_path / "efivars", monkeypatch) as fake:
        yield fake


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def table(tmp_path: Path, kind: str) -> dict[str, Any]:
    """A device's configuration in a folder; slots are folders that the stand-in for `mount` copies."""
    return {
        "server": "https://updates.example.com",
        "hardware": "board",
        "product": "demo",
        "state": str(tmp_path / "state"),
        "slots": {slot: {"path": str(tmp_path / f"slot-{slot}")} for slot in ("a", "b")},
        "boot": {
            "control": kind,
            "path": str(tmp_path / "record"),
            "offset_bytes": [0, 4096],
            "booted": str(tmp_path / "run/booted.json"),
            "loader": {
                "folder": str(tmp_path / "boot"),
                "slot_folder": str(tmp_path / "run/slot"),
                "variables": str(tmp_path / "efivars"),
                "arguments": {slot: f"ro twinlock.slot={slot}" for slot in ("a", "b")},
                "copies": {"/boot/vmlinuz": "linux"},
                "partition": {
                    "number": 1,
                    "start_sectors": 2048,
                    "size_sectors": 4096,
                    "partuuid": "5d7b2c5e-01",
                },
            },
        },
    }


def device(tmp_path: Path, kind: str) -> BesideBootControl:
    sector = bootrecord.encode(bootrecord.initial())
    (tmp_path / "record").write_bytes(sector.ljust(4096, b"\xff") + sector)
    for slot in ("a", "b"):
        (tmp_path / f"slot-{slot}/boot").mkdir(parents=True)
        (tmp_path / f"slot-{slot}/boot/vmlinuz-6").write_bytes(f"kernel of {slot}".encode())
        (tmp_path / f"slot-{slot}/boot/vmlinuz").symlink_to("/boot/vmlinuz-6")
    for name in ("run", "boot/twinlock/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "boot/twinlock/a" / "linux").write_bytes(b"kernel of a")
    runs(tmp_path, "a", 1)
    config = configs.parse(table(tmp_path, kind))
    control = boot_control(config.boot, config.slots)
    assert isinstance(control, BesideBootControl)
    return control


def runs(tmp_path: Path, slot: str, boot: int) -> None:
    (tmp_path / "run/booted.json").write_text(json.dumps({"slot": slot, "boot_id": f"boot-{boot}"}))


def loader(control: BesideBootControl, *, flag: bool) -> str | None:
    """What the loader would start, from the files as they are."""
    with control._place.open(write=False) as place:
        files = place.read(lambda path: True)
    return control._rules.boots(files, flag=flag)[0]


@pytest.mark.usefixtures("mount_log", "variables")
def test_a_whole_trial_on_files(tmp_path: Path, kind: str) -> None:
    control = device(tmp_path, kind)
    assert control.capabilities.name == kind
    assert control.mend()
    assert control.mend() == []
    assert loader(control, flag=False) == "a"
    control.invalidate("b")
    control.arm("b", 3, "one")
    folder = tmp_path / "boot/twinlock/b"
    assert (folder / "linux").read_bytes() == b"kernel of b"
    flag = control.before_reboot()
    assert flag is (kind == "tryboot")
    again = boot_control(configs.parse(table(tmp_path, kind)).boot, {})
    assert again.before_reboot() is flag
    assert again.read().tries_left == (3 if kind == "systemd-boot" else 2)
    assert loader(control, flag=flag) == "b"
    runs(tmp_path, "b", 2)
    control.self_test()
    assert control.before_reboot() is False
    control.commit("one")
    assert loader(control, flag=False) == "b"
    assert not list((tmp_path / "boot").rglob("*.tmp"))
    assert not (tmp_path / "boot/twinlock/probe").exists()
    assert control.mend() == []


@pytest.mark.usefixtures("variables")
def test_the_slot_is_mounted_read_only_and_unmounted(tmp_path: Path, mount_log: Path) -> None:
    control = device(tmp_path, "systemd-boot")
    control.arm("b", 3, "one")
    lines = mount_log.read_text().splitlines()
    point = tmp_path / "run/slot"
    assert lines == [f"mount -o ro,nodev,nosuid,noexec {tmp_path}/slot-b {point}", f"umount {point}"]


@pytest.mark.usefixtures("variables")
def test_the_boot_partition_is_mounted_for_writing_only_when_something_is_written(
    tmp_path: Path, mount_log: Path
) -> None:
    config = table(tmp_path, "systemd-boot")
    config["boot"]["loader"]["device"] = str(tmp_path / "esp")
    (tmp_path / "esp").mkdir()
    device(tmp_path, "systemd-boot")
    parsed = configs.parse(config)
    control = boot_control(parsed.boot, parsed.slots)
    with pytest.raises(TwinlockError, match="is not what was written"):
        control.mend()  # the stand-in's umount keeps nothing, as a medium that does not
    asked = [line for line in mount_log.read_text().splitlines() if line.startswith("mount")]
    assert [line.split()[2].partition(",")[0] for line in asked] == ["ro", "rw", "ro"]
    assert all("-t vfat" in line for line in asked)


def test_what_cannot_be_mounted_is_said(tmp_path: Path, mount_log: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/broken").touch()
    with pytest.raises(TwinlockError, match="wrong fs type"), _at(tmp_path):
        raise AssertionError
    assert mount_log.read_text().count("umount") == 0


def _at(tmp_path: Path) -> Any:
    return Mounts().mounted(tmp_path / "dev", tmp_path / "point", write=False)


def test_without_mount_the_device_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TwinlockError) as caught, _at(tmp_path):
        raise AssertionError
    assert caught.value.code == "boot-control"


def test_what_a_killed_run_left_mounted_is_unmounted_first(
    tmp_path: Path, mount_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with _at(tmp_path):
        assert (tmp_path / "point").is_dir()
    asked = [line.partition(" ")[0] for line in mount_log.read_text().splitlines()]
    assert asked == ["umount", "mount", "umount"]


class Numbered(Mounts):
    """A folder stands for the block device 259:1."""

    def _number(self, device: Path) -> str | None:
        return "259:1"


@pytest.mark.parametrize(
    ("access", "write", "asked"),
    [
        ("rw", False, []),
        ("rw", True, []),
        ("ro", False, []),
        ("ro", True, ["remount,rw", "remount,ro"]),
    ],
)
def test_what_the_system_has_mounted_is_used_where_it_is(
    tmp_path: Path, mount_log: Path, access: str, write: bool, asked: list[str]
) -> None:
    here = tmp_path / "the efi"
    here.mkdir()
    shown = str(here).replace(" ", "\\040")
    lines = ["short", "29 24 259:9 / / ro - ext4 x ro", f"31 24 259:1 / {shown} {access} - vfat x {access}"]
    lines.append(f"30 24 259:1 /sub /bind {access} - vfat x {access}")
    (tmp_path / "mountinfo").write_text("\n".join(lines))
    mounts = Numbered(tmp_path / "mountinfo")
    with mounts.mounted(tmp_path / "dev", tmp_path / "point", write=write) as place:
        assert place == here
    lines = mount_log.read_text().splitlines() if mount_log.exists() else []
    assert [line.split()[2] for line in lines] == asked
    (tmp_path / "mountinfo").write_text("29 24 259:9 / / ro - ext4 x ro\n")
    (tmp_path / "dev").mkdir()
    with mounts.mounted(tmp_path / "dev", tmp_path / "point", write=write) as place:
        assert place == tmp_path / "point"


# --- what is copied from a slot


def test_links_inside_a_slot_never_lead_out_of_it(tmp_path: Path) -> None:
    root = tmp_path / "slot"
    (root / "boot").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("the slot's")
    (root / "boot/up").symlink_to("../../../etc/passwd")
    (root / "boot/absolute").symlink_to("/etc/passwd")
    (root / "boot/loop").symlink_to("loop")
    for name in ("up", "absolute"):
        assert inside(root, f"/boot/{name}").read_text() == "the slot's"
    for name in ("/boot/loop", "/boot/none", "/boot/../../none"):
        with pytest.raises(TwinlockError) as caught:
            inside(root, name)
        assert caught.value.code == "boot-control"


def test_a_folder_is_copied_and_what_is_of_an_older_release_removed(tmp_path: Path) -> None:
    root, to = tmp_path / "slot", tmp_path / "boot/twinlock/b"
    for name in ("firmware/overlays/one.dtbo", "firmware/board.dtb", "kernel"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    to.mkdir(parents=True)
    (to / "old.dtb").write_text("old")
    (to / "cmdline.txt").write_text("the agent's")
    copies = {"/firmware": "", "/kernel": "linux"}
    copy_tree(root, copies, to)
    found = {path.relative_to(to).as_posix(): path.read_text() for path in to.rglob("*") if path.is_file()}
    assert found == {
        "overlays/one.dtbo": "firmware/overlays/one.dtbo",
        "board.dtb": "firmware/board.dtb",
        "linux": "kernel",
        "cmdline.txt": "the agent's",
    }
    times = {path: path.stat().st_ino for path in to.rglob("*")}
    copy_tree(root, copies, to)
    assert {path: path.stat().st_ino for path in to.rglob("*")} == times, "the same files were written again"


def test_a_device_node_and_too_many_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slot").mkdir()
    os.mkfifo(tmp_path / "slot/pipe")
    with pytest.raises(TwinlockError, match="neither a file nor a folder"):
        copy_tree(tmp_path / "slot", {"/pipe": "linux"}, tmp_path / "to")
    for number in range(3):
        (tmp_path / f"slot/{number}").write_text("x")
    monkeypatch.setattr("twinlock.agent.boot.kernels.FILES_MAX", 2)
    with pytest.raises(TwinlockError, match="more than 2 files"):
        copy_tree(tmp_path / "slot", {f"/{number}": f"{number}" for number in range(3)}, tmp_path / "to")


# --- single steps


@pytest.fixture
def opened(tmp_path: Path) -> places.OpenBootPlace:
    (tmp_path / "boot").mkdir()
    return places.OpenBootPlace(tmp_path / "boot", None, None)  # type: ignore[arg-type]  # nothing is copied


def test_a_patch_goes_to_the_file_itself(tmp_path: Path, opened: places.OpenBootPlace) -> None:
    path = tmp_path / "boot/config.txt"
    opened.perform(Put("config.txt", b"a" * 512))
    inode = path.stat().st_ino
    opened.perform(Patch("config.txt", b"b" * 512))
    assert (path.read_bytes(), path.stat().st_ino) == (b"b" * 512, inode)
    with pytest.raises(TwinlockError, match="does not have 3 bytes"):
        opened.perform(Patch("config.txt", b"ccc"))
    opened.perform(Drop("config.txt"))
    opened.perform(Drop("config.txt"))
    assert not path.exists()


def test_a_medium_that_does_not_keep_a_file_is_found_out(
    opened: places.OpenBootPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "write_atomic", lambda path, data: path.write_bytes(b"other"))
    with pytest.raises(TwinlockError) as caught:
        opened.perform(Put("x", b"data"))
    assert caught.value.code == "boot-control"


def test_reading_is_bounded(
    tmp_path: Path, opened: places.OpenBootPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot/large").write_bytes(bytes(places.FILE_SIZE_BYTES_MAX + 1))
    with pytest.raises(TwinlockError, match="larger than"):
        opened.read(lambda path: True)
    assert opened.read(lambda path: path != "large") == {}
    monkeypatch.setattr(places, "NAMES_MAX", 0)
    with pytest.raises(TwinlockError, match="more than 0 files"):
        opened.read(lambda path: False)
    (tmp_path / "boot/large").unlink()
    (tmp_path / "boot/1/2/3/4").mkdir(parents=True)
    (tmp_path / "boot/1/2/3/4/deep").touch()
    assert opened.read(lambda path: True) == {}


def test_variables_on_a_device_without_them(opened: places.OpenBootPlace) -> None:
    with pytest.raises(TwinlockError, match="without EFI variables"):
        opened.perform(Put("efivars/BootNext", b""))


# --- the configuration


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"arguments": {"a": "twinlock.slot=a"}}, "arguments are for"),
        ({"arguments": {"a": "twinlock.slot=b", "b": "twinlock.slot=b"}}, "name it"),
        ({"arguments": {"a": "x\ntwinlock.slot=a", "b": "twinlock.slot=b"}}, "one line"),
        ({"copies": {"/boot/vmlinuz": "../linux"}}, "below the slot's folder"),
        ({"copies": {}}, "name the kernel"),
        ({"partition": None}, "boot.loader.partition"),
    ],
)
def test_a_loader_that_cannot_work_is_refused(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    config = table(tmp_path, "efi")
    config["boot"]["loader"] |= change
    with pytest.raises(TwinlockError, match=what) as caught:
        configs.parse(config)
    assert caught.value.code == "config-invalid"


def test_each_control_has_its_own_sections(tmp_path: Path) -> None:
    without = table(tmp_path, "efi")
    del without["boot"]["loader"]
    plain = table(tmp_path, "efi")
    plain["boot"]["control"] = "uboot"
    exits = table(tmp_path, "tryboot") | {"reboot": {"mode": "exit"}}
    for config, what in ((without, "boot.loader"), (plain, "boot.loader"), (exits, "reboot.mode")):
        with pytest.raises(TwinlockError, match=what):
            configs.parse(config)
    with pytest.raises(TwinlockError):
        loader_rules("efi", LoaderConfig(arguments={}))
