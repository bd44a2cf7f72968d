"""Power cuts on real boots: the disk has a volatile cache, and the loader's own writes are in it."""

from __future__ import annotations

import random
from pathlib import Path

from tests.e2e.qemu.conftest import Board, Power
from tests.e2e.qemu.test_boot_choice import ARMED, STABLE, booted, decoded
from twinlock.core.bootrecord import newest, next_boot
from twinlock.lab.qemu import writelog
from twinlock.lab.qemu.nbd import NbdServer
from twinlock.lab.qemu.volatile import VolatileDisk
from twinlock.lab.qemu.writelog import Entry, Kind, LogWriter


def test_a_cut_after_the_loader_counted_costs_one_try_at_most(
    board: Board, power: Power, tmp_path: Path, rng: random.Random
) -> None:
    """Whatever of the loader's write reached the medium, the record stays whole and says trial."""
    image = board.copy(tmp_path, [STABLE, ARMED])
    with (tmp_path / "writes.log").open("wb") as file:
        log = LogWriter(file)
        disk = VolatileDisk(image, log=log.add)
        with NbdServer(disk, tmp_path / "nbd.sock") as server:
            machine = power(tmp_path / "nbd.sock", nbd=True)
            assert booted(machine) == ("b", "two")
            assert disk.writes > 0
            disk.cut(rng.randrange(2**32))
            machine.power_off()
            assert server.failure is None
        disk.close()
    found = decoded(board, image)
    once = next_boot(ARMED)[1]
    assert found[1] == ARMED  # the newer copy is never written over
    assert newest(tuple(found))[1] in (ARMED, once)
    with (tmp_path / "writes.log").open("rb") as file:
        entries = list(writelog.parse(file))
    assert entries[-1] == Entry(Kind.CUT)
    offset = board.plan.record_offsets[0]
    counted = [
        entry
        for entry in entries
        if entry.is_write and entry.offset <= offset < entry.offset + len(entry.data)
    ]
    assert len(counted) == 1, "the loader writes its record once, into the older copy"
    assert not [entry for entry in entries if entry.is_write and entry not in counted], "and nothing else"
