"""systemd-boot's entries: names that count, contents that name the slot, kernels beside the loader."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinlock.core.bootloader_systemd import entry_name
from twinlock.core.errors import TwinlockError
from twinlock.provision import disk, filesystems, layout, loader_systemd_boot
from twinlock.provision.tools import run

SPEC = """
align = "1 MiB"
boot.size = "8 MiB"
slot.size = "8 MiB"
recovery.size = "8 MiB"
data.size = "8 MiB"
loader.kind = "systemd-boot"
loader.initrd = "/boot/initrd"
"""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("a",), "twinlock-a.conf"),
        (("b", 3), "twinlock-b+3.conf"),
        (("b", 2, 1), "twinlock-b+2-1.conf"),
        (("b", 0, 3), "twinlock-b+0-3.conf"),
        (("recovery",), "twinlock-recovery.conf"),
    ],
)
def test_the_name_holds_the_count(arguments: tuple[str, int, int], name: str) -> None:
    assert entry_name(*arguments) == name


@pytest.mark.parametrize("arguments", [("c",), ("a", -1), ("a", 8), ("a", 1, 8), ("../x", 1)])
def test_a_name_that_cannot_be_is_refused(arguments: tuple[str, int]) -> None:
    with pytest.raises(TwinlockError) as caught:
        entry_name(*arguments)
    assert caught.value.code == "input-invalid"


def test_an_entry_names_the_slots_own_kernel_and_root() -> None:
    plan = layout.plan(layout.parse_spec(SPEC))
    text = loader_systemd_boot.entry_text(plan, "b", 7, trial=True)
    assert "version 7\n" in text
    assert "linux /twinlock/b/linux\n" in text
    assert "initrd /twinlock/b/initrd\n" in text
    assert f"root=PARTUUID={plan.need('b').partuuid} twinlock.slot=b twinlock.trial\n" in text
    assert "twinlock.trial" not in loader_systemd_boot.entry_text(plan, "b", 7)
    for slot, version in (("c", 1), ("a", -1), ("a", (1 << 32) + 1)):
        with pytest.raises(TwinlockError):
            loader_systemd_boot.entry_text(plan, slot, version)


@pytest.mark.parametrize("filesystem", ["ext4", "squashfs"])
def test_the_boot_partition_holds_the_kernels_of_the_slots_that_have_a_system(
    filesystem: str, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "boot").mkdir(parents=True)
    (tree / "boot/vmlinuz").write_bytes(b"kernel" * 1000)
    (tree / "boot/initrd").write_bytes(b"initrd" * 1000)
    spec = layout.parse_spec(SPEC + f"slot.filesystem = '{filesystem}'")
    built = disk.build(spec, disk.Trees(a=tree, recovery=tree), tmp_path / "disk.img", architecture="x86-64")
    part = built.plan.need("boot")
    boot = tmp_path / "boot.img"
    with built.image.open("rb") as file:
        file.seek(part.start_bytes)
        boot.write_bytes(file.read(part.size_bytes))
    names = run(["mdir", "-/", "-b", "-i", str(boot), "::"], package="mtools").split()
    for name in (
        "EFI/BOOT/BOOTX64.EFI",
        "loader/loader.conf",
        "loader/entries/twinlock-a.conf",
        "twinlock/a/initrd",
    ):
        assert f"::/{name}" in names
    assert "::/loader/entries/twinlock-recovery.conf" in names
    assert "::/loader/entries/twinlock-b.conf" not in names
    run(["mcopy", "-i", str(boot), "::twinlock/a/linux", str(tmp_path / "linux")], package="mtools")
    assert (tmp_path / "linux").read_bytes() == b"kernel" * 1000


@pytest.mark.parametrize("filesystem", ["ext4", "squashfs"])
def test_a_system_without_the_kernel_that_the_loader_needs_is_refused(
    filesystem: str, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "boot").mkdir(parents=True)
    (tree / "boot/vmlinuz").write_bytes(b"kernel")
    (tree / "boot/initrd").symlink_to("/etc/passwd")
    spec = layout.parse_spec(SPEC + f"slot.filesystem = '{filesystem}'")
    with pytest.raises(TwinlockError) as caught:
        disk.build(spec, disk.Trees(a=tree), tmp_path / "disk.img", architecture="x86-64")
    assert caught.value.code in ("input-missing", "io-error")


def test_a_path_with_a_quote_is_not_given_to_the_tool(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    with pytest.raises(TwinlockError) as caught:
        filesystems.read_file(image, '/a" /etc/passwd "')
    assert caught.value.code == "input-missing"


def test_an_unknown_target_is_refused() -> None:
    plan = layout.plan(layout.parse_spec(SPEC))
    with pytest.raises(TwinlockError, match="target"):
        loader_systemd_boot.boot_files(plan, {}, target="vax")
