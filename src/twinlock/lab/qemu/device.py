"""A whole virtual device: firmware, real loader, real kernel, real agent, and a disk that can lose its power.

The disk is a file served over NBD with a volatile cache (see `volatile`), so that a power cut loses and tears
what was not flushed. `power_on` and `power_off` may follow each other for as long as one likes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from twinlock.core import bootenv_grub, bootenv_uboot
from twinlock.core.bootrecord import BootRecord, newest
from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.core.limits import MIB
from twinlock.lab import images
from twinlock.lab.qemu.machine import WAIT_CPU_S_MAX, WAIT_WALL_S_MAX, Machine, MachineSpec
from twinlock.lab.qemu.nbd import NbdServer
from twinlock.lab.qemu.rig import watch
from twinlock.lab.qemu.volatile import CutPlan, Loss, VolatileDisk
from twinlock.provision import disk as disks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from twinlock.lab.qemu.machine import Architecture
    from twinlock.provision.layout import Plan

MEMORY_MIB: Final = 256
SPOILED_BYTES: Final = 1 * MIB


class QemuDevice:
    """Use it as a context manager: leaving it ends QEMU."""

    def __init__(
        self,
        architecture: Architecture,
        plan: Plan,
        disk: Path,
        folder: Path,
        *,
        service_port: int = 0,
        more: Sequence[Path] = (),
    ) -> None:
        """`disk` is changed in place, `more` disks come after it, without a cache of ours.

        `folder` gets the console's log and what the firmware keeps.
        """
        self.architecture: Final = architecture
        self.plan: Final = plan
        self.disk: Final = disk
        self._folder: Final = folder
        self._service_port: Final = service_port
        self._more: Final = tuple(more)
        self._machine: Machine | None = None
        self._server: NbdServer | None = None
        self._volatile: VolatileDisk | None = None
        self._cpu_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._machine is not None:
            self.power_off(0)

    @property
    def machine(self) -> Machine:
        """QEMU, while the power is on."""
        assert self._machine is not None, "the power is off"
        return self._machine

    @property
    def volatile(self) -> VolatileDisk:
        """The disk, while the power is on."""
        assert self._volatile is not None, "the power is off"
        return self._volatile

    def power_on(self, cut: CutPlan | None = None) -> Machine:
        """Switches it on; with `cut` the power goes at that write, see `ride`."""
        assert self._machine is None, "the power is on"
        socket = self._folder / "disk.sock"
        with os_errors(f"folder {self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
            socket.unlink(missing_ok=True)
        self._volatile = VolatileDisk(self.disk, cut=cut)
        self._server = NbdServer(self._volatile, socket)
        spec = MachineSpec(
            self.architecture,
            socket,
            nbd=True,
            memory_mib=MEMORY_MIB,
            network=True,
            forward_port=self._service_port,
            more=self._more,
        )
        self._machine = Machine(spec, self._folder)
        return self._machine

    def power_off(self, seed: int) -> Loss | None:
        """Takes the power away; what of the unflushed writes is lost follows from the seed.

        None when the power was gone already. Raises InternalError `internal` for a fault of the disk's
        server.
        """
        loss = None
        if not self.volatile.cut_happened.is_set():
            loss = self.volatile.cut(seed)
        machine, server, volatile = self.machine, self._server, self.volatile
        assert server is not None
        machine.power_off()
        self._cpu_s += machine.cpu_s()
        server.close()
        volatile.close()
        self._machine = self._server = self._volatile = None
        if server.failure is not None:
            raise error("internal", f"the disk's server failed: {server.failure!r}")
        return loss

    def cpu_s(self) -> float:
        """Processor seconds of QEMU over all of its runs."""
        return self._cpu_s + (self._machine.cpu_s() if self._machine is not None else 0.0)

    def wait(
        self,
        holds: Callable[[], bool],
        what: str,
        *,
        cpu_s_max: float = 3 * WAIT_CPU_S_MAX,
        wall_s_max: float = WAIT_WALL_S_MAX,
    ) -> None:
        """Waits for something that the running device brings about.

        Raises DeviceError `lab-timeout` when it used more time of either kind, `lab-ended` when it is gone.
        """
        machine = self.machine
        cpu_start, wall_start = machine.cpu_s(), time.monotonic()

        def give_up() -> bool:
            if not machine.running:
                return True
            return machine.cpu_s() - cpu_start > cpu_s_max or time.monotonic() - wall_start > wall_s_max

        if watch(holds, give_up):
            return
        last = machine.console.text()[-2000:]
        if not machine.running:
            raise error("lab-ended", f"QEMU ended before {what}:\n{last}")
        raise error("lab-timeout", f"no sign of {what} within {cpu_s_max:.0f} s of CPU:\n{last}")

    def ride(self, holds: Callable[[], bool], what: str, *, cpu_s_max: float = 4 * WAIT_CPU_S_MAX) -> bool:
        """Waits until the planned power cut happened (True) or `holds` does (False); see `wait`."""
        cut = self.volatile.cut_happened
        self.wait(lambda: cut.is_set() or holds(), what, cpu_s_max=cpu_s_max)
        return cut.is_set()

    # --- what the medium holds; only while the power is off

    def record(self) -> BootRecord:
        """The boot record that counts. Raises DeviceError `boot-record` when no copy is valid."""
        return newest(self.records())[1]

    def records(self) -> tuple[BootRecord | None, ...]:
        """Both copies of the boot record as the medium has them."""
        decode = bootenv_uboot.decode if self.plan.spec.loader.kind == "uboot" else bootenv_grub.decode
        size = bootenv_uboot.SIZE_BYTES if self.plan.spec.loader.kind == "uboot" else bootenv_grub.SIZE_BYTES
        with os_errors(f"disk {self.disk}"), self.disk.open("rb") as file:
            found = []
            for offset in self.plan.record_offsets:
                file.seek(offset)
                found.append(decode(file.read(size)))
        return tuple(found)

    def write_record(self, record: BootRecord) -> None:
        """Puts a boot record into both places."""
        with os_errors(f"disk {self.disk}"), self.disk.open("r+b") as file:
            for offset, block in disks.record_blocks(self.plan, record):
                file.seek(offset)
                file.write(block)

    def spoil(self, slot: str) -> None:
        """Overwrites the beginning of a slot: it does not load any more."""
        part = self.plan.need("a" if slot == "a" else "b")
        with os_errors(f"disk {self.disk}"), self.disk.open("r+b") as file:
            file.seek(part.start_bytes)
            file.write(bytes(SPOILED_BYTES))

    def slot_sha256(self, slot: str, size_bytes: int) -> str:
        """The SHA-256 (hex) of the first `size_bytes` of a slot."""
        part = self.plan.need("a" if slot == "a" else "b")
        return images.sha256_range(self.disk, part.start_bytes, size_bytes)

    def copy_disk(self, out: Path) -> Path:
        """A copy of the medium, sparse."""
        images.copy_sparse(self.disk, out)
        return out
