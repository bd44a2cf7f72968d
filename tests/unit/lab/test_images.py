"""Images: real file systems, the same bytes each time, health checks that do what their version says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.lab import ext4, images

SMALL = 6 * MIB


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [images.build(images.sized(recipe, SMALL), folder) for recipe in images.STANDARD]


def run_check(image: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the health check of an image as a booted device would."""
    (folder / "etc").mkdir()
    assert ext4.extract(image, images.OS_RELEASE, folder / "etc")
    assert ext4.extract(image, "/etc/twinlock", folder / "etc")
    script = folder / "etc/twinlock/health/required.d/10-app"
    assert os.access(script, os.X_OK)
    return subprocess.run([script], capture_output=True, text=True)


def test_an_image_is_a_whole_clean_ext4(built: list[Path]) -> None:
    for image in built:
        assert image.stat().st_size == SMALL
        assert ext4.is_ext4(image.read_bytes()[:2048])
        checked = subprocess.run([ext4.find_tool("e2fsck"), "-fn", image], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


def test_a_second_build_elsewhere_gives_the_same_bytes(built: list[Path], tmp_path: Path) -> None:
    again = images.build(images.sized(images.STANDARD[1], SMALL), tmp_path / "made/here")
    assert again.name == built[1].name
    assert again.read_bytes() == built[1].read_bytes()


def test_owner_and_times_come_from_the_recipe_not_from_the_host(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"data")
    os.utime(tree / "file", (ext4.EPOCH_S, ext4.EPOCH_S))
    ext4.make(tree, tmp_path / "one.img", 4 * MIB)
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    (copy / "file").rename(copy / "moved")  # a younger change time
    (copy / "moved").rename(copy / "file")
    ext4.make(copy, tmp_path / "two.img", 4 * MIB)
    assert (tmp_path / "one.img").read_bytes() == (tmp_path / "two.img").read_bytes()


def test_versions_differ_in_some_segments_and_share_some(built: list[Path]) -> None:
    data = [image.read_bytes() for image in built]
    assert len({image.name for image in built}) == 3
    same = [
        data[0][at : at + 4096] == data[1][at : at + 4096]
        for at in range(0, SMALL, 4096)
        if data[0][at : at + 4096].count(0) < 4096
    ]
    assert 0.05 < sum(same) / len(same) < 0.95


def test_most_of_an_image_is_data(built: list[Path]) -> None:
    data = built[0].read_bytes()
    used = sum(data[at : at + 4096].count(0) < 4096 for at in range(0, SMALL, 4096))
    assert used * 4096 > SMALL * 0.7


def test_the_good_ones_are_healthy_and_the_bad_one_says_why(built: list[Path], tmp_path: Path) -> None:
    results = []
    for number, image in enumerate(built):
        folder = tmp_path / str(number)
        folder.mkdir()
        results.append(run_check(image, folder))
    assert [result.returncode for result in results] == [0, 0, 1]
    assert [result.stdout.strip() for result in results] == [
        "app 1.0: ready",
        "app 1.1: ready",
        "app 1.2: cannot open its database: found schema 7, need schema 8",
    ]


def test_the_health_check_notices_another_system(built: list[Path], tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert ext4.extract(built[0], "/etc/twinlock", tmp_path / "etc")
    (tmp_path / "etc/os-release").write_text("VERSION_ID=0.9\n")
    done = subprocess.run(
        [tmp_path / "etc/twinlock/health/required.d/10-app"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "app 1.0: the system says it is version 0.9\n")


def test_extraction_at_an_offset_and_of_nothing(built: list[Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB) + built[0].read_bytes())
    assert ext4.extract(disk, images.OS_RELEASE, tmp_path, offset_bytes=MIB)
    assert "VERSION_ID=1.0" in (tmp_path / "os-release").read_text()
    assert not ext4.extract(disk, "/nothing/here", tmp_path, offset_bytes=MIB)


@pytest.mark.parametrize("size_bytes", [0, 3 * MIB, 6 * MIB + 4096])
def test_a_size_that_makes_no_image_is_refused(tmp_path: Path, size_bytes: int) -> None:
    with pytest.raises(TwinlockError) as refused:
        images.build(images.sized(images.STANDARD[0], size_bytes), tmp_path)
    assert refused.value.code == "input-invalid"
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_does_not_fit_is_an_error_and_leaves_no_image(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(5 * MIB))
    with pytest.raises(TwinlockError) as refused:
        ext4.make(tree, tmp_path / "image", 4 * MIB)
    assert refused.value.code == "io-error"
    assert not (tmp_path / "image").exists()


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(ext4, "SYSTEM_PATH", ())
    with pytest.raises(TwinlockError) as refused:
        ext4.find_tool("mke2fs")
    assert (refused.value.code, refused.value.hint) == ("package-missing", "install the package e2fsprogs")


def test_a_flipped_bit_is_one_bit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(16)))
    images.flip_bit(path, 5, bit=7)
    data = path.read_bytes()
    assert [number for number in range(16) if data[number] != number] == [5]
    assert data[5] == 5 ^ 0x80


@pytest.mark.parametrize(
    "data", [b"", b"x", bytes(200_000), bytes(70_000) + b"end", b"start" + bytes(131_072)]
)
def test_a_sparse_copy_is_a_copy(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "from").write_bytes(data)
    images.copy_sparse(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == data
