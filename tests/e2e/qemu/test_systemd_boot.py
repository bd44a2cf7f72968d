"""systemd-boot under OVMF: its own counting in file names decides between the slots."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.qemu.conftest import Board, Power
from tests.e2e.qemu.test_boot_choice import booted, reset
from twinlock.core.bootloader_systemd import entry_name
from twinlock.lab.qemu import guests
from twinlock.lab.qemu.machine import Architecture
from twinlock.provision import disk, layout, loader_systemd_boot
from twinlock.provision.tools import run


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    architecture: Architecture = "x86-64"
    folder = tmp_path_factory.mktemp("board-systemd-boot")
    spec = layout.parse_spec("""
        name = "lab-systemd-boot"
        align = "1 MiB"
        boot.size = "64 MiB"
        slot.size = "64 MiB"
        recovery.size = 0
        data.size = "16 MiB"
        [loader]
        kind = "systemd-boot"
        kernel_args = "console=ttyS0 panic=5 quiet"
    """)
    trees = {name: guests.tiny(architecture, folder / name, name) for name in ("one", "two")}
    built = disk.build(
        spec, disk.Trees(a=trees["one"], b=trees["two"]), folder / "disk.img", architecture=architecture
    )
    return Board(architecture, built.plan, built.image)


def entries(board: Board, image: Path) -> list[str]:
    where = f"{image}@@{board.plan.need('boot').start_bytes}"
    listed = run(["mdir", "-b", "-i", where, "::loader/entries"], package="mtools")
    return sorted(line.rpartition("/")[2] for line in listed.split())


def test_a_trial_boots_while_it_has_tries_and_then_the_default(
    board: Board, power: Power, tmp_path: Path
) -> None:
    image = board.copy(tmp_path)
    where = f"{image}@@{board.plan.need('boot').start_bytes}"
    entry = tmp_path / "entry"
    entry.write_text(loader_systemd_boot.entry_text(board.plan, "b", 3, trial=True), "ascii")
    name = entry_name("b", 2)
    run(["mdel", "-i", where, "::loader/entries/twinlock-b.conf"], package="mtools")
    run(["mcopy", "-i", where, str(entry), f"::loader/entries/{name}"], package="mtools")
    machine = power(image)
    assert booted(machine) == ("b", "two")
    assert entries(board, image) == ["twinlock-a.conf", entry_name("b", 1, 1)]
    assert reset(machine) == ("b", "two")
    assert entries(board, image) == ["twinlock-a.conf", entry_name("b", 0, 2)]
    assert reset(machine) == ("a", "one")
    assert entries(board, image) == ["twinlock-a.conf", entry_name("b", 0, 2)]
