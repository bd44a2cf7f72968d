"""Disks for loaders that read FAT only: build, configuration of the agent and loader fit together."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from twinlock.agent import config as agent_config
from twinlock.agent.boot.choose import loader_rules
from twinlock.core import bootrecord
from twinlock.core.bootloader import applied
from twinlock.core.errors import TwinlockError
from twinlock.provision import disk, layout, rootfs
from twinlock.provision.rootfs import AgentOptions, RootfsOptions
from twinlock.provision.tools import run

AGENT = AgentOptions(server="https://updates.example.com", product="gateway", hardware="board-1")
SPEC = """
align = "1 MiB"
boot.size = "8 MiB"
slot.size = "8 MiB"
recovery.size = "8 MiB"
data.size = "8 MiB"
loader.kind = "{kind}"
{more}
"""
MORE = {
    "systemd-boot": "loader.initrd = '/boot/initrd'",
    "efi": "loader.initrd = '/boot/initrd'",
    "tryboot": """
        table = "mbr"
        loader.files = "/boot/firmware"
        loader.device_tree = "/boot/bcm2711-rpi-4-b.dtb"
    """,
}


def system(folder: Path, name: str) -> Path:
    tree = folder / name
    for path in ("vmlinuz", "initrd", "bcm2711-rpi-4-b.dtb", "firmware/overlays/x.dtbo"):
        (tree / "boot" / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / "boot" / path).write_text(f"{path} of {name}")
    return tree


def boot_partition(image: Path, plan: layout.Plan, folder: Path) -> dict[str, bytes]:
    """The files of the built boot partition."""
    where = f"{image}@@{plan.need('boot').start_bytes}"
    names = run(["mdir", "-/", "-b", "-i", where, "::"], package="mtools").split()
    files = {}
    for number, name in enumerate(names):
        if not name.endswith("/"):
            run(["mcopy", "-i", where, name, str(folder / f"out-{number}")], package="mtools")
            files[name.removeprefix("::/")] = (folder / f"out-{number}").read_bytes()
    return files


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("filesystem", ["ext4", "squashfs"])
@pytest.mark.parametrize("kind", sorted(MORE))
def test_a_built_disk_boots_slot_a_and_the_agent_has_nothing_to_mend(
    kind: str, filesystem: str, both: bool, tmp_path: Path
) -> None:
    spec = layout.parse_spec(SPEC.format(kind=kind, more=MORE[kind]) + f"\nslot.filesystem = '{filesystem}'")
    trees = disk.Trees(
        a=system(tmp_path, "one"), b=system(tmp_path, "two") if both else None, recovery=system(tmp_path, "r")
    )
    if kind == "tryboot":
        (tmp_path / "given").mkdir()
        (tmp_path / "given/board.txt").write_text("dtoverlay=disable-bt\n")
        (tmp_path / "given/start4.elf").write_text("firmware")
        trees = disk.Trees(a=trees.a, b=trees.b, recovery=trees.recovery, boot=tmp_path / "given")
    built = disk.build(spec, trees, tmp_path / "disk.img", architecture="x86-64")
    files = boot_partition(built.image, built.plan, tmp_path)
    table = tomllib.loads(rootfs.agent_config(RootfsOptions(plan=built.plan, agent=AGENT)))
    config = agent_config.parse(table)
    assert config.boot.loader is not None
    rules = loader_rules(kind, config.boot.loader)
    assert rules.boots(files, flag=False)[0] == "a"
    steps = rules.follow(files, built.record)
    assert all(step.path.startswith("efivars/") for step in steps), "the agent would write at its first start"
    for step in steps:
        files = applied(files, step)
    assert rules.boots(files, flag=False)[0] == "a"
    assert files["twinlock/a/linux"] == b"vmlinuz of one"
    assert ("twinlock/b/linux" in files) is both
    if kind == "tryboot":
        assert files["board.txt"] == b"dtoverlay=disable-bt\n"
        assert files["start4.elf"] == b"firmware"
        assert files["twinlock/a/overlays/x.dtbo"] == b"firmware/overlays/x.dtbo of one"
        assert files["twinlock/a/bcm2711-rpi-4-b.dtb"] == b"bcm2711-rpi-4-b.dtb of one"
    with built.image.open("rb") as image:
        for offset in built.plan.record_offsets:
            image.seek(offset)
            assert bootrecord.decode(image.read(512)) == built.record


def test_the_agent_copies_what_the_build_copied() -> None:
    plan = layout.plan(layout.parse_spec(SPEC.format(kind="tryboot", more=MORE["tryboot"])))
    table = tomllib.loads(rootfs.agent_config(RootfsOptions(plan=plan, agent=AGENT)))
    assert table["boot"]["loader"]["copies"] == {
        "/boot/vmlinuz": "linux",
        "/boot/bcm2711-rpi-4-b.dtb": "bcm2711-rpi-4-b.dtb",
        "/boot/firmware": "",
    }
    assert set(table["boot"]["loader"]["arguments"]) == {"a", "b"}


def test_a_boot_partition_without_room_for_the_next_kernel_is_refused(tmp_path: Path) -> None:
    tree = system(tmp_path, "one")
    (tree / "boot/vmlinuz").write_bytes(bytes(range(256)) * 12 * 1024)
    spec = layout.parse_spec(SPEC.format(kind="efi", more=MORE["efi"]))
    with pytest.raises(TwinlockError) as caught:
        disk.build(spec, disk.Trees(a=tree), tmp_path / "disk.img", architecture="x86-64")
    assert caught.value.code == "image-too-large"
    assert "boot.size" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "loader.kind = 'tryboot'\nloader.initrd = '/boot/initrd'",
        "loader.kind = 'efi'\nloader.files = '/boot/firmware'",
        "loader.kind = 'tryboot'\nloader.files = 'boot'",
    ],
)
def test_what_a_loader_cannot_do_is_refused(text: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        layout.plan(layout.parse_spec(text))
    assert caught.value.code == "input-invalid"


@pytest.mark.parametrize("filesystem", ["ext4", "squashfs"])
def test_a_folder_that_the_system_lacks_is_refused(filesystem: str, tmp_path: Path) -> None:
    tree = system(tmp_path, "one")
    text = SPEC.format(kind="tryboot", more="loader.files = '/boot/none'")
    spec = layout.parse_spec(f"{text}\nslot.filesystem = '{filesystem}'")
    with pytest.raises(TwinlockError) as caught:
        disk.build(spec, disk.Trees(a=tree), tmp_path / "disk.img", architecture="arm64")
    assert caught.value.code in ("input-missing", "io-error")
