"""Loaders that cannot hold the boot record: what they read instead, and how that follows from the record.

systemd-boot, the Raspberry Pi's firmware and EFI's boot manager read files of their own. The record stays the
truth: two CRC'd copies in a raw partition (`bootrecord`). What the loader reads is derived from it, step by
step, so that a cut between any two steps leaves a loader that boots what the record allowed before or what it
allows after. Pure: states in, steps out; `agent/boot/beside.py` performs them.

A state is a mapping of names to bytes: paths on the loader's FAT partition, and `efivars/NAME` for EFI
variables (the data without its attributes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from twinlock.core.names import RECOVERY, SLOTS

if TYPE_CHECKING:
    from twinlock.core.bootrecord import BootRecord

Files = Mapping[str, bytes]
TRIAL_WORD: Final = "twinlock.trial"  # on the kernel's command line of a trial's boots
SLOT_WORD: Final = "twinlock.slot="
VARIABLES: Final = "efivars/"


@dataclass(frozen=True, slots=True)
class Put:
    """A file gets this content, under a temporary name first. A cut leaves it as it was, new, or gone."""

    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Patch:
    """A file of the same size is written over in place, within one sector: a cut leaves old or new bytes."""

    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """A file goes away. A cut leaves it there, or not."""

    path: str


Step = Put | Patch | Drop


class LoaderRules(Protocol):
    """One loader: what it reads, how that follows from the record, and what it boots."""

    @property
    def name(self) -> str: ...

    @property
    def counts(self) -> bool:
        """Whether the loader counts a trial's tries down itself; else the agent does, before each one."""
        ...

    def watches(self, path: str) -> bool:
        """Whether this file belongs to the state that `follow` looks at."""
        ...

    def follow(self, files: Files, record: BootRecord) -> list[Step]:
        """The steps after which the loader boots what the record says; none when it does so already."""
        ...

    def tries_left(self, files: Files, record: BootRecord) -> int:
        """How many boots the record's trial has left."""
        ...

    def one_shot(self, files: Files, record: BootRecord) -> list[Step] | None:
        """The steps for one boot of the trial; None when the reboot itself has to carry the wish."""
        ...

    def boots(self, files: Files, *, flag: bool) -> tuple[str | None, dict[str, bytes]]:
        """What the loader does: the slot that it starts (None: nothing), and the state that it leaves.

        `flag` is the wish for a trial that a reboot carried. The truth for tests and the lab; not used on
        devices.
        """
        ...


def applied(files: Files, step: Step) -> dict[str, bytes]:
    """The state after a step."""
    rest = {path: data for path, data in files.items() if path != step.path}
    return rest if isinstance(step, Drop) else rest | {step.path: step.data}


def slot_folder(slot: str) -> str:
    """Where a slot's kernel and what goes with it lie on the loader's partition."""
    return f"twinlock/{slot}"


def slot_of(arguments: str) -> str | None:
    """The slot that a kernel command line names."""
    for word in arguments.split():
        name = word.removeprefix(SLOT_WORD)
        if name != word:
            return name if name in (*SLOTS, RECOVERY) else None
    return None


def committed(record: BootRecord, *, recovery: bool) -> str:
    """The slot that boots when there is no trial. A device without recovery keeps what it has."""
    return RECOVERY if record.default in record.failed and recovery else record.default
