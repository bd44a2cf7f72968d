"""Real loaders choose what boots: U-Boot on ARM64, GRUB under OVMF on x86-64.

Each boot costs several seconds of processor time, so one test follows one disk through as many boots as
belong together.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.e2e.qemu.conftest import Board, Power
from twinlock.core import bootenv_grub, bootenv_uboot
from twinlock.core.bootrecord import BootRecord, arm, next_boot
from twinlock.lab.qemu.guests import MARK
from twinlock.lab.qemu.machine import WAIT_CPU_S_MAX, Machine, ending_with
from twinlock.lab.qemu.nbd import NbdServer

STABLE = BootRecord(seq=9, default="a")
ARMED = arm(STABLE, "b", 2, "trial-1")


def booted(machine: Machine, since: int = 0, cpu_s_max: float = WAIT_CPU_S_MAX) -> tuple[str, str]:
    """(slot, system) that came up."""
    match = machine.wait_for(rf"{MARK} system=(\w+) slot=(\w+) end", since=since, cpu_s_max=cpu_s_max)
    return match[2], match[1]


def reset(machine: Machine) -> tuple[str, str]:
    since = machine.console.position()
    machine.reset()
    return booted(machine, since)


def decoded(board: Board, image: Path) -> list[BootRecord | None]:
    decode = bootenv_uboot.decode if board.architecture == "arm64" else bootenv_grub.decode
    return [decode(block) for block in board.copies(image)]


def test_a_stable_device_boots_its_default_and_writes_nothing(
    board: Board, power: Power, tmp_path: Path
) -> None:
    image = board.copy(tmp_path)
    before = board.copies(image)
    machine = power(image)
    assert booted(machine) == ("a", "one")
    machine.power_off()
    assert board.copies(image) == before


def test_a_trial_boots_while_it_has_tries_and_then_the_default(
    board: Board, power: Power, tmp_path: Path
) -> None:
    image = board.copy(tmp_path, [STABLE, ARMED])
    machine = power(image)
    assert booted(machine) == ("b", "two")
    once = next_boot(ARMED)[1]
    assert decoded(board, image) == [once, ARMED]
    assert reset(machine) == ("b", "two")
    twice = next_boot(once)[1]
    assert decoded(board, image) == [twice, ARMED], "the agent's copy is never written over"
    assert reset(machine) == ("a", "one")
    assert decoded(board, image) == [twice, ARMED]


def test_two_bad_slots_boot_recovery(board: Board, power: Power, tmp_path: Path) -> None:
    image = board.copy(tmp_path, [STABLE, replace(STABLE, seq=10, failed=frozenset("ab"), reason="both bad")])
    assert booted(power(image)) == ("recovery", "rescue")


def test_a_torn_newer_copy_is_ignored(board: Board, power: Power, tmp_path: Path) -> None:
    _, new = board.block(1, replace(STABLE, seq=10, default="b"))
    _, old = board.block(1, replace(STABLE, seq=8))
    torn = new[:60] + old[60:]
    assert torn not in (old, new)
    image = board.copy(tmp_path, [STABLE, torn])
    assert decoded(board, image) == [STABLE, None]
    assert booted(power(image)) == ("a", "one")


def test_without_a_valid_record_no_slot_is_trusted(board: Board, power: Power, tmp_path: Path) -> None:
    assert booted(power(board.copy(tmp_path, [None, None]))) == ("recovery", "rescue")


def test_a_default_that_does_not_load_gives_way_to_the_other_slot(
    board: Board, power: Power, tmp_path: Path
) -> None:
    image = board.copy(tmp_path, [replace(STABLE, default="b"), None])
    with image.open("r+b") as file:  # slot b loses its file system
        file.seek(board.plan.need("b").start_bytes)
        file.write(bytes(64 * 1024))
    assert booted(power(image)) == ("a", "one")


class WriteProtected:
    """A disk that has worn out: it reads, and refuses every write."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self.size_bytes = len(self._data)
        self.refused = 0

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def write(self, offset: int, data: bytes, *, through: bool = False) -> None:
        self.refused += 1
        raise OSError(errno.EIO, "worn out")

    def flush(self) -> None:
        """Nothing to do."""


def test_a_trial_that_cannot_be_counted_is_not_booted(board: Board, power: Power, tmp_path: Path) -> None:
    worn = WriteProtected(board.copy(tmp_path, [STABLE, ARMED]))
    with NbdServer(worn, tmp_path / "nbd.sock"):
        machine = power(tmp_path / "nbd.sock", nbd=True)
        assert booted(machine) == ("a", "one")
        assert worn.refused > 0
        machine.power_off()


def test_no_virtual_machine_outlives_the_process_that_started_it(board: Board, tmp_path: Path) -> None:
    """A run that is killed leaves no orphan behind to hold a disk or a port."""
    image = board.copy(tmp_path)
    code = """if True:
        import sys, time
        from pathlib import Path
        from twinlock.lab.qemu.machine import Machine, MachineSpec
        machine = Machine(MachineSpec(sys.argv[1], Path(sys.argv[2])), Path(sys.argv[3]))
        print(machine.pid, flush=True)
        time.sleep(600)
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", code, board.architecture, image, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    gone(pid)


def test_a_virtual_machine_whose_starter_is_gone_already_does_not_start(tmp_path: Path) -> None:
    """The kernel watches a parent from the moment it is asked; one that ended before would be missed."""
    started = tmp_path / "started"
    for parent, runs in ((os.getppid(), False), (os.getpid(), True)):
        ended = subprocess.run(ending_with(parent, ["touch", str(started)]))
        assert (ended.returncode == 0, started.exists()) == (runs, runs)


def gone(pid: int) -> None:
    """Waits until a process that is not our child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 30)[0], f"process {pid} still runs"
    finally:
        os.close(fd)
