"""Every loader as a function of what the medium holds: what boots, and what the loader leaves there.

Also what a power cut during each kind of write can leave. Both are what crash tests stand on, so they say no
more than the loaders promise: a sector of the record may be written in part, a file that is replaced on FAT
may be gone, an EFI variable too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from twinlock.core import bootenv_grub, bootenv_uboot, bootrecord
from twinlock.core.bootloader import Drop, Files, LoaderRules, Patch, Put, Step, applied
from twinlock.core.bootloader_efi import BootPartition, EfiBoot
from twinlock.core.bootloader_systemd import SystemdBoot
from twinlock.core.bootloader_tryboot import Tryboot
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import RECOVERY, SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from twinlock.core.bootrecord import BootRecord

KINDS: Final = ("file", "uboot", "grub", "systemd-boot", "tryboot", "efi")
ARGUMENTS: Final = {slot: f"console=ttyS0 ro twinlock.slot={slot}" for slot in (*SLOTS, RECOVERY)}
PARTITION: Final = BootPartition(1, 2048, 131072, "5d7b2c5e-6a0f-4d0c-9a55-0f4d1b6f7a11")
SECTOR_SIZE_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Form:
    """How a loader's kind keeps the record, and the rules of one that keeps it beside itself."""

    encode: Callable[[BootRecord], bytes]
    decode: Callable[[bytes], BootRecord | None]
    spend: Callable[[bytes], bytes]
    rules: LoaderRules | None = None


def _spend_plain(block: bytes) -> bytes:
    record = bootrecord.decode(block)
    if record is None:
        raise error("boot-record", "no try can be taken off this block")
    return bootrecord.encode(bootrecord.next_boot(record)[1])


def form(kind: str) -> Form:
    """Raises InputError `input-invalid` for a kind of loader that there is not."""
    match kind:
        case "uboot":
            return Form(bootenv_uboot.encode, bootenv_uboot.decode, bootenv_uboot.spend)
        case "grub":
            return Form(bootenv_grub.encode, bootenv_grub.decode, bootenv_grub.spend)
    beside: Mapping[str, LoaderRules | None] = {
        "file": None,
        "systemd-boot": SystemdBoot(ARGUMENTS),
        "tryboot": Tryboot({slot: ARGUMENTS[slot] for slot in SLOTS}),
        "efi": EfiBoot(ARGUMENTS, PARTITION),
    }
    if kind not in beside:
        raise error("input-invalid", f"loader {kind!r} is not known: {', '.join(KINDS)}")
    return Form(bootrecord.encode, bootrecord.decode, _spend_plain, beside[kind])


@dataclass(frozen=True, slots=True)
class Medium:
    """What survives a power cut: both copies of the record, and the loader's files and variables."""

    copies: tuple[bytes, bytes]
    files: Files


@dataclass(frozen=True, slots=True)
class RecordWrite:
    """One copy of the record is written."""

    copy: int
    data: bytes


Write = RecordWrite | Step


def boots(
    kind: str,
    medium: Medium,
    *,
    flag: bool = False,
    loads: Callable[[str], bool] = lambda slot: True,
) -> tuple[str | None, Medium]:
    """What the loader starts on this medium (None: nothing), and the medium that it leaves.

    `flag` is the wish for a trial that a reboot carried (tryboot); a power cut loses it. `loads` says whether
    a slot's kernel can be loaded, for loaders that read it from the slot.
    """
    used = form(kind)
    if used.rules is not None:
        slot, files = used.rules.boots(medium.files, flag=flag)
        return slot, replace(medium, files=files)
    copies = tuple(map(used.decode, medium.copies))
    try:
        number, record = bootrecord.newest(copies)
    except TwinlockError:
        return (RECOVERY if loads(RECOVERY) else None), medium
    if record.trying is not None and record.tries_left > 0:
        place = bootrecord.copy_to_spend(copies)
        medium = written(medium, RecordWrite(place, used.spend(medium.copies[number])))
    for slot in _chain(record):
        if loads(slot):
            return slot, medium
    return None, medium


def _chain(record: BootRecord) -> Iterator[str]:
    """The slots in the order in which the scripts of U-Boot and GRUB try them."""
    if record.trying is not None and record.tries_left > 0:
        yield record.trying
    if record.default not in record.failed:
        yield record.default
        yield bootrecord.next_when_unbootable(record, record.default)
    yield RECOVERY


def written(medium: Medium, write: Write) -> Medium:
    """The medium once the write is done."""
    if isinstance(write, RecordWrite):
        first, second = medium.copies
        return replace(medium, copies=(first, write.data) if write.copy else (write.data, second))
    return replace(medium, files=applied(medium.files, write))


def outcomes(medium: Medium, write: Write) -> list[Medium]:
    """Every medium that a cut during the write may leave: as before, as after, and in between."""
    before, after = medium, written(medium, write)
    between: list[Medium] = []
    match write:
        case RecordWrite(copy, data):
            old = medium.copies[copy]
            cuts = {1, 100, 200, 256, 511, 512, 600} & set(range(1, len(data)))
            torn = [data[:at] + old[at:] for at in sorted(cuts)]
            torn += [old[:at] + data[at:] for at in sorted(cuts)]
            torn.append(bytes(len(data)))
            between = [written(medium, RecordWrite(copy, block)) for block in torn]
        case Patch(path, data):
            old = medium.files.get(path, b"").ljust(len(data), b"\0")
            halves = [data[:256] + old[256:], old[:256] + data[256:], data[:65] + old[65:]]
            between = [written(medium, Patch(path, half)) for half in halves]
        case Put(path, data):
            # The temporary file may be there as well; no loader looks at it.
            between = [written(before, Put(f"{path}.tmp", data[: len(data) // 2]))]
            if path in medium.files:
                between.append(written(medium, Drop(path)))
        case Drop():
            between = []
    unique = {(one.copies, tuple(sorted(one.files.items()))): one for one in (before, *between, after)}
    return list(unique.values())


def first_files(kind: str) -> dict[str, bytes]:
    """What the loader reads on a freshly built device whose slot a holds a system, kernels left out."""
    rules = form(kind).rules
    files: dict[str, bytes] = {}
    if rules is None:
        return files
    if isinstance(rules, SystemdBoot | EfiBoot):
        entries = SystemdBoot(ARGUMENTS)
        files |= entries.recovery_entry()
        rules = entries
    for step in rules.follow(files, bootrecord.initial()):
        files = applied(files, step)
    return files
