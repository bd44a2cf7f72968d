"""Two real devices, built once and copied for each test: every boot of a trial changes the disk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from twinlock.core.bootrecord import BootRecord
from twinlock.lab.qemu import guests
from twinlock.lab.qemu.machine import ARCHITECTURES, Architecture, Machine, MachineSpec
from twinlock.provision import disk, layout
from twinlock.provision.layout import Plan

LOADERS = {"arm64": "uboot", "x86-64": "grub"}


@dataclass(frozen=True, slots=True)
class Board:
    """A pristine image of one architecture, and the system that each of its slots holds."""

    architecture: Architecture
    plan: Plan
    image: Path

    def copy(self, folder: Path, records: list[BootRecord | bytes | None] | None = None) -> Path:
        """A disk of its own; `records` puts other copies of the boot record on it (None: damaged)."""
        path = folder / "disk.img"
        subprocess.run(["cp", "--sparse=always", str(self.image), str(path)], check=True)
        if records is not None:
            with path.open("r+b") as file:
                for number, record in enumerate(records):
                    offset, block = self.block(number, record)
                    file.seek(offset)
                    file.write(block)
        return path

    def block(self, number: int, record: BootRecord | bytes | None) -> tuple[int, bytes]:
        """Where copy `number` is, and its bytes."""
        offset = self.plan.record_offsets[number]
        if isinstance(record, bytes):
            return offset, record
        if record is None:
            return offset, bytes(1024)
        return disk.record_blocks(self.plan, record)[number]

    def copies(self, path: Path) -> list[bytes]:
        """Both copies of the record as the disk has them."""
        size = len(disk.record_blocks(self.plan, BootRecord(seq=1, default="a"))[0][1])
        with path.open("rb") as file:
            found = []
            for offset in self.plan.record_offsets:
                file.seek(offset)
                found.append(file.read(size))
        return found


def description(architecture: Architecture) -> str:
    return f"""
        name = "lab-{architecture}"
        align = "1 MiB"
        slot.size = "64 MiB"
        recovery.size = "64 MiB"
        data.size = "16 MiB"
        [loader]
        kind = "{LOADERS[architecture]}"
        kernel_args = "console={guests.CONSOLES[architecture]} panic=5 quiet"
    """


@pytest.fixture(scope="session", params=ARCHITECTURES)
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Board:
    architecture: Architecture = request.param
    folder = tmp_path_factory.mktemp(f"board-{architecture}")
    trees = {name: guests.tiny(architecture, folder / name, name) for name in ("one", "two", "rescue")}
    built = disk.build(
        layout.parse_spec(description(architecture)),
        disk.Trees(a=trees["one"], b=trees["two"], recovery=trees["rescue"]),
        folder / "disk.img",
        architecture=architecture,
    )
    return Board(architecture, built.plan, built.image)


class Power(Protocol):
    """Switches a device on: from an image file, or from a disk served over NBD."""

    def __call__(self, disk: Path, *, nbd: bool = False, network: bool = False) -> Machine: ...


@pytest.fixture
def power(board: Board, tmp_path: Path) -> Iterator[Power]:
    """Switches a device on; whatever the test does, its QEMU is ended."""
    machines: list[Machine] = []

    def switch_on(disk: Path, *, nbd: bool = False, network: bool = False) -> Machine:
        machine = Machine(MachineSpec(board.architecture, disk, nbd=nbd, network=network), tmp_path)
        machines.append(machine)
        return machine

    yield switch_on
    for machine in machines:
        machine.power_off()
        assert not machine.running
