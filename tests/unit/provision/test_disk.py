"""Whole disk images: the same bytes every time, everything in its place, and nothing that does not fit."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from twinlock.core import bootenv_grub, bootenv_uboot
from twinlock.core.bootrecord import initial
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import KIB, MIB
from twinlock.provision import disk, ext4, filesystems, grow, layout
from twinlock.provision.disk import Trees
from twinlock.provision.layout import DiskSpec, Plan
from twinlock.provision.tools import find_tool, run

SMALL = """
name = "small"
align = "1 MiB"
boot.size = "4 MiB"
slot.size = "8 MiB"
recovery.size = "8 MiB"
data.size = "8 MiB"
"""


def small(text: str = "") -> DiskSpec:
    return layout.parse_spec(text + SMALL)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "boot").mkdir(parents=True)
    (root / "boot/vmlinuz").write_bytes(bytes(range(256)) * 64)
    (root / "bin").mkdir()
    (root / "bin/tool").write_bytes(b"#!/bin/sh\n")
    (root / "bin/tool").chmod(0o4755)
    (root / "bin/link").symlink_to("tool")
    (root / "etc").mkdir()
    (root / "etc/a b'c\"d").write_text("odd name")
    if os.geteuid() == 0:
        os.chown(root / "bin/tool", 1234, 1234)
        (root / "bin/tool").chmod(0o4755)
    return root


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cut_out(image: Path, plan: Plan, role: str, out: Path) -> Path:
    part = next(part for part in plan.partitions if part.role == role)
    with image.open("rb") as file:
        file.seek(part.start_bytes)
        out.write_bytes(file.read(part.size_bytes))
    return out


def test_the_same_tree_gives_the_same_image_whenever_and_wherever_it_is_built(
    tree: Path, tmp_path: Path
) -> None:
    built = disk.build(small(), Trees(a=tree), tmp_path / "one.img")
    other = tmp_path / "elsewhere" / "copy"
    shutil.copytree(tree, other, symlinks=True)  # other inode numbers, change times, order in the folder
    other.touch()  # a folder's time says when it was built
    for path in sorted(other.rglob("*"), reverse=True):
        os.utime(path, ns=(time.time_ns(), path.lstat().st_mtime_ns), follow_symlinks=False)
    again = disk.build(small(), Trees(a=other), tmp_path / "two.img")
    assert digest(built.image) == digest(again.image)


@pytest.mark.parametrize("table", ["gpt", "mbr"])
def test_every_partition_holds_what_it_should(tree: Path, tmp_path: Path, table: str) -> None:
    spec = small(f"table = '{table}'\n")
    built = disk.build(spec, Trees(a=tree, recovery=tree), tmp_path / "disk.img")
    plan = built.plan
    for role in ("a", "recovery", "data"):
        image = cut_out(built.image, plan, role, tmp_path / "part.img")
        run(["e2fsck", "-fn", str(image)], package="e2fsprogs")
    image = cut_out(built.image, plan, "a", tmp_path / "part.img")
    shown = run(["debugfs", "-R", "stat /bin/tool", str(image)], package="e2fsprogs")
    assert "Mode:  04755" in shown
    assert "User:     0   Group:     0" in shown
    for name in ("ctime", "atime", "crtime"):  # of the build machine, if nobody had set them
        (stamp,) = re.findall(rf"(?m)^ *{name}: 0x([0-9a-f]{{8}}):([0-9a-f]{{8}})", shown)
        assert (int(stamp[0], 16), stamp[1]) == (filesystems.EPOCH_S, "00000000")
    run(["debugfs", "-R", f"dump /boot/vmlinuz {tmp_path / 'kernel'}", str(image)], package="e2fsprogs")
    assert (tmp_path / "kernel").read_bytes() == (tree / "boot/vmlinuz").read_bytes()
    assert not any(cut_out(built.image, plan, "b", tmp_path / "part.img").read_bytes())
    boot = cut_out(built.image, plan, "boot", tmp_path / "part.img")
    run(["mcopy", "-i", str(boot), "::boot.scr", str(tmp_path / "boot.scr")], package="mtools")
    assert b"twinlock" in (tmp_path / "boot.scr").read_bytes()


def test_no_image_reaches_the_tail_of_its_slot(tree: Path, tmp_path: Path) -> None:
    built = disk.build(small(), Trees(a=tree), tmp_path / "disk.img")
    slot = cut_out(built.image, built.plan, "a", tmp_path / "a.img").read_bytes()
    assert built.plan.slot_image_size_bytes_max == 8 * MIB - 64 * KIB
    assert not any(slot[-64 * KIB :])


@pytest.mark.parametrize(
    ("kind", "decode", "size"), [("uboot", bootenv_uboot.decode, 512), ("grub", bootenv_grub.decode, 1024)]
)
def test_both_records_start_with_slot_a_and_b_marked_unbootable(
    kind: str, decode: type, size: int, tree: Path, tmp_path: Path
) -> None:
    spec = small(f"loader.kind = '{kind}'\n")
    built = disk.build(
        spec, Trees(a=tree), tmp_path / "disk.img", architecture="arm64" if kind == "uboot" else "x86-64"
    )
    with built.image.open("rb") as file:
        for offset in built.plan.record_offsets:
            file.seek(offset)
            assert decode(file.read(size)) == initial("a")


def test_a_tar_archive_and_a_finished_image_serve_as_well(tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as out:
        out.add(tree, arcname=".")
    first = disk.build(small(), Trees(a=archive), tmp_path / "one.img")
    image = cut_out(first.image, first.plan, "a", tmp_path / "a.img")
    with image.open("r+b") as file:
        file.truncate(first.plan.slot_image_size_bytes_max)
    second = disk.build(small(), Trees(a=image), tmp_path / "two.img")
    assert digest(first.image) == digest(second.image)


def test_squashfs_slots(tree: Path, tmp_path: Path) -> None:
    built = disk.build(small("slot.filesystem = 'squashfs'\n"), Trees(a=tree), tmp_path / "disk.img")
    slot = cut_out(built.image, built.plan, "a", tmp_path / "a.img")
    assert slot.read_bytes()[:4] == b"hsqs"
    shown = run(["unsquashfs", "-ll", str(slot)], package="squashfs-tools")
    assert "root/root" in shown
    assert "boot/vmlinuz" in shown


def test_raw_loaders_lie_where_the_rom_looks(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/idb.bin").write_bytes(b"R" * 1000)
    spec = small("raw = [{file = 'idb.bin', offset = '32 KiB'}]\n")
    built = disk.build(spec, Trees(a=tree, raw=tmp_path / "raw"), tmp_path / "disk.img")
    with built.image.open("rb") as file:
        file.seek(32 * KIB)
        assert file.read(1000) == b"R" * 1000


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("raw = [{file = '../secret', offset = '32 KiB'}]\n", "input-invalid"),
        ("raw = [{file = 'missing', offset = '32 KiB'}]\n", "input-missing"),
    ],
)
def test_raw_files_come_from_their_folder_only(tree: Path, tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    with pytest.raises(TwinlockError) as caught:
        disk.build(small(text), Trees(a=tree, raw=tmp_path / "raw"), tmp_path / "disk.img")
    assert caught.value.code == code


def test_a_system_that_does_not_fit_is_refused_and_leaves_no_image(tree: Path, tmp_path: Path) -> None:
    (tree / "large").write_bytes(os.urandom(9 * MIB))
    out = tmp_path / "disk.img"
    for text in ("", "slot.filesystem = 'squashfs'\n"):
        with pytest.raises(TwinlockError) as caught:
            disk.build(small(text), Trees(a=tree), out)
        assert caught.value.code == "image-too-large"
        assert [path.name for path in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize("name", ["missing", "file.txt"])
def test_a_source_that_is_no_system_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_bytes(bytes(9 * MIB))
    with pytest.raises(TwinlockError):
        disk.build(small(), Trees(a=tmp_path / name), tmp_path / "disk.img")


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TwinlockError) as caught:
        find_tool("no-such-program", "some-package")
    assert caught.value.code == "package-missing"
    assert "some-package" in caught.value.hint


def test_a_failing_program_is_shown_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(TwinlockError) as caught:
        run(["e2fsck", "-fn", str(tmp_path)], package="e2fsprogs")
    assert caught.value.code == "io-error"
    assert "e2fsck failed" in caught.value.what
    with pytest.raises(TwinlockError, match="did not end"):
        run(["sleep", "30"], package="coreutils", timeout_s=0.1)


@pytest.mark.parametrize("table", ["gpt", "mbr"])
def test_data_grows_on_a_larger_medium_once(tree: Path, tmp_path: Path, table: str) -> None:
    built = disk.build(small(f"table = '{table}'\n"), Trees(a=tree), tmp_path / "disk.img")
    with built.image.open("r+b") as file:
        file.truncate(built.plan.disk_size_bytes + 40 * MIB)
    data = built.plan.need("data")
    grown = grow.grow_table(built.image, 512)
    assert grown is not None
    number, start, size = grown
    assert (number, start) == (data.number, data.start_bytes)
    assert size >= data.size_bytes + 39 * MIB
    assert grow.grow_table(built.image, 512) is None
    run(["sfdisk", "--verify", str(built.image)], package="fdisk")


def test_growing_something_that_is_no_disk_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grow.main([]) == 2
    assert grow.main([str(tmp_path)]) == 6
    shown = capsys.readouterr().err
    assert "error[slot-unusable]" in shown
    assert "Traceback" not in shown
    blank = tmp_path / "blank.img"
    blank.write_bytes(bytes(MIB))
    with pytest.raises(TwinlockError):
        grow.grow_table(blank, 512)


@pytest.mark.parametrize("data", [b"", bytes(4096), bytes(1024 + 0x38) + b"\x53\xef" + b"\xff" * 2000])
def test_reading_inodes_of_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(TwinlockError):
        ext4.inodes_in_use(file)
