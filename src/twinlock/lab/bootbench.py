"""Boot control on a medium in memory: the agent's own code, a power cut at any write, any loader."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.agent.boot.base import Booted
from twinlock.agent.boot.beside import Asked, BesideBootControl
from twinlock.agent.boot.file import FileBootControl
from twinlock.agent.boot.grub import GrubBootControl
from twinlock.agent.boot.uboot import UbootBootControl
from twinlock.core import bootrecord
from twinlock.core.bootloader import Put, applied, slot_folder
from twinlock.lab import loaders
from twinlock.lab.loaders import Medium, RecordWrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twinlock.core.bootloader import LoaderRules, Step
    from twinlock.core.bootrecord import BootRecord
    from twinlock.lab.loaders import Write

_NOWHERE: Final = Path("/nonexistent")


class PowerCut(BaseException):
    """The power went."""


@dataclass
class Bench:
    """One device: `medium` outlives a power cut, `asked` and `running` do not.

    `kernels` holds the kernel of the system that each slot contains; a loader on FAT starts the copy in that
    slot's folder. `cut` sees every write with the medium before it; the medium that it returns is what a
    power cut leaves, None lets the write happen.
    """

    kind: str
    medium: Medium
    kernels: dict[str, bytes] = field(default_factory=dict)
    running: Booted = field(default_factory=lambda: Booted("a", "boot-0"))
    asked: Asked | None = None
    log: list[Write] = field(default_factory=list)
    cut: Callable[[Medium, Write], Medium | None] = lambda medium, write: None
    flag: bool = False
    boots_done: int = 0

    @classmethod
    def fresh(cls, kind: str, record: BootRecord | None = None, *, recovery: bool = True) -> Bench:
        """A device as `twinlock disk build` makes it: slot a holds a system, recovery too."""
        record = record or bootrecord.initial()
        used = loaders.form(kind)
        block = used.encode(record)
        kernels = {"a": b"kernel of one", "b": b"", "recovery": b"kernel of recovery"}
        if not recovery:
            del kernels["recovery"]
        files: dict[str, bytes] = {}
        if used.rules is not None:
            for slot, kernel in kernels.items():
                if kernel:
                    files[f"{slot_folder(slot)}/linux"] = kernel
            files |= loaders.first_files(kind)
        return cls(kind, Medium((block, block), files), kernels)

    def write(self, write: Write) -> None:
        """Raises PowerCut when the power goes during it."""
        self.log.append(write)
        left = self.cut(self.medium, write)
        if left is not None:
            self.medium = left
            raise PowerCut
        self.medium = loaders.written(self.medium, write)

    def control(self) -> FileBootControl:
        """A boot control as a new process makes it."""
        rules = loaders.form(self.kind).rules
        if rules is not None:
            return _Beside(self, rules)
        return {"file": _File, "uboot": _Uboot, "grub": _Grub}[self.kind](self)

    def boot(self) -> str | None:
        """The loader starts the device; the slot that runs then, None when nothing does."""
        flag, self.flag, self.asked = self.flag, False, None

        def loads(slot: str) -> bool:
            return bool(self.kernels.get(slot))

        slot, self.medium = loaders.boots(self.kind, self.medium, flag=flag, loads=loads)
        self.boots_done += 1
        self.running = Booted(slot or "", f"boot-{self.boots_done}")
        return slot

    def power_cycle(self) -> str | None:
        """As `boot`, after a power cut: what a reboot would have carried is lost."""
        self.flag = False
        return self.boot()

    def reboot(self) -> str | None:
        """The agent's reboot."""
        self.flag = self.control().before_reboot()
        return self.boot()

    def kernel_started(self) -> bytes:
        """The kernel that the loader started: from the slot, or the copy in the slot's folder."""
        if loaders.form(self.kind).rules is None:
            return self.kernels[self.running.slot]
        return self.medium.files[f"{slot_folder(self.running.slot)}/linux"]


class _InMemory(FileBootControl):
    """The record's two copies on the bench."""

    _bench: Bench

    def booted(self) -> Booted:
        return self._bench.running

    def _blocks(self) -> list[bytes]:
        return list(self._bench.medium.copies)

    def _write(self, copy: int, sector: bytes) -> None:
        self._bench.write(RecordWrite(copy, sector))


class _File(_InMemory):
    def __init__(self, bench: Bench) -> None:
        super().__init__(_NOWHERE, (0, 1), _NOWHERE)
        self._bench = bench


class _Uboot(_InMemory, UbootBootControl):
    def __init__(self, bench: Bench) -> None:
        super().__init__(_NOWHERE, (0, 1), _NOWHERE)
        self._bench = bench


class _Grub(_InMemory, GrubBootControl):
    def __init__(self, bench: Bench) -> None:
        super().__init__(_NOWHERE, (0, 1), _NOWHERE)
        self._bench = bench


class _Beside(_InMemory, BesideBootControl):
    def __init__(self, bench: Bench, rules: LoaderRules) -> None:
        BesideBootControl.__init__(self, _NOWHERE, (0, 1), _NOWHERE, rules, _Place(bench))
        self._bench = bench

    def _note_asked(self, asked: Asked) -> None:
        self._bench.asked = asked

    def _last_asked(self) -> Asked | None:
        return self._bench.asked


class _Place:
    """Is a `beside.Place` and `beside.OpenPlace`."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    @contextmanager
    def open(self, *, write: bool) -> Iterator[_Place]:
        del write
        yield self

    def read(self, watches: Callable[[str], bool]) -> dict[str, bytes]:
        return {path: data for path, data in self._bench.medium.files.items() if watches(path)}

    def perform(self, step: Step) -> None:
        # Firmware does not write a variable that has this value already.
        if applied(self._bench.medium.files, step) != self._bench.medium.files:
            self._bench.write(step)

    def install(self, slot: str) -> None:
        path = f"{slot_folder(slot)}/linux"
        self.perform(Put(path, self._bench.kernels[slot]))
