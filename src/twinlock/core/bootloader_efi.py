"""EFI's boot manager: an option for each slot, `BootOrder` for the default, `BootNext` for one trial boot.

    Boot7100, Boot7101, Boot7102   slot a, slot b, recovery
    Boot7103                       the slot on trial, with `twinlock.trial` on the kernel's command line
    BootOrder                      default slot, the other if it is good, recovery, then options of others
    BootNext                       Boot7103, set by the agent for one boot; the firmware removes it first

The kernel is an EFI program itself (EFI stub), the option's data is its command line. Firmware may lose its
variables; it then starts `EFI/BOOT/BOOT*.EFI`, systemd-boot, whose entries follow the same record
(`bootloader_systemd`), so a device without variables boots its default slot as well.

Sources: UEFI 2.10, 3.1.3 (load options), 3.3 (globally defined variables), 10.3.5 (media device path); Linux,
Documentation/admin-guide/efi-stub.rst.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from twinlock.core.bootloader import VARIABLES, Drop, Files, Put, Step, committed, slot_folder, slot_of
from twinlock.core.bootloader_systemd import SystemdBoot
from twinlock.core.errors import error
from twinlock.core.names import RECOVERY, SLOTS

if TYPE_CHECKING:
    from twinlock.core.bootrecord import BootRecord

NUMBERS: Final = {"a": 0x7100, "b": 0x7101, RECOVERY: 0x7102}
TRIAL_NUMBER: Final = 0x7103
BOOT_ORDER: Final = f"{VARIABLES}BootOrder"
BOOT_NEXT: Final = f"{VARIABLES}BootNext"
OPTIONS_MAX: Final = 512
_ACTIVE: Final = 1
_HEAD: Final = struct.Struct("<IH")
_DISK: Final = struct.Struct("<BBHIQQ16sBB")
_NODE: Final = struct.Struct("<BBH")
_MEDIA: Final = 4
_END: Final = _NODE.pack(0x7F, 0xFF, 4)
_WATCHED: Final = frozenset(f"{VARIABLES}Boot{number:04X}" for number in (*NUMBERS.values(), TRIAL_NUMBER))


@dataclass(frozen=True, slots=True)
class BootPartition:
    """The EFI system partition, as a device path names it: places in sectors, `partuuid` as Linux has it."""

    number: int
    start_sectors: int
    size_sectors: int
    partuuid: str


def option_name(number: int) -> str:
    """The variable that holds the load option."""
    return f"{VARIABLES}Boot{number:04X}"


def _disk_node(part: BootPartition) -> bytes:
    """Hard drive media device path. Raises InputError `input-invalid` for an id that is none."""
    try:
        if len(part.partuuid) == 11:  # MBR: the disk's signature, a dash, the partition's number
            signature, form = bytes.fromhex(part.partuuid[:8])[::-1].ljust(16, b"\0"), 1
        else:
            signature, form = uuid.UUID(part.partuuid).bytes_le, 2
    except ValueError as problem:
        raise error("input-invalid", f"{part.partuuid!r} is no partition id") from problem
    size = _DISK.size
    return _DISK.pack(
        _MEDIA, 1, size, part.number, part.start_sectors, part.size_sectors, signature, form, form
    )


def _text(value: str) -> bytes:
    return value.encode("utf-16-le") + b"\0\0"


def load_option(description: str, part: BootPartition, program: str, arguments: str) -> bytes:
    """An active EFI_LOAD_OPTION for the file `program` (path with `/`) on the partition."""
    name = _text("\\" + program.replace("/", "\\"))
    path = _disk_node(part) + _NODE.pack(_MEDIA, 4, _NODE.size + len(name)) + name + _END
    return _HEAD.pack(_ACTIVE, len(path)) + _text(description) + path + _text(arguments)


def read_option(data: bytes) -> tuple[str, str] | None:
    """The program (path with `/`) and arguments of an active load option; None for anything else."""
    if len(data) < _HEAD.size:
        return None
    attributes, length = _HEAD.unpack_from(data)
    at = _HEAD.size
    while data[at : at + 2] not in (b"\0\0", b"", data[-1:]):
        at += 2
    at += 2
    path, optional = data[at : at + length], data[at + length :]
    program = ""
    while len(path) >= _NODE.size:
        kind, form, size = _NODE.unpack_from(path)
        if (kind, form) == (_MEDIA, 4):
            program = path[_NODE.size : size].decode("utf-16-le", "replace").rstrip("\0")
        if size < _NODE.size:
            return None
        path = path[size:]
    if not attributes & _ACTIVE or not program:
        return None
    return program.replace("\\", "/").lstrip("/"), optional.decode("utf-16-le", "replace").rstrip("\0")


def order_of(data: bytes) -> list[int]:
    """The numbers in `BootOrder`, or in `BootNext`."""
    return [number for (number,) in struct.iter_unpack("<H", data[: len(data) // 2 * 2])][:OPTIONS_MAX]


def order_data(numbers: list[int]) -> bytes:
    """The same as a variable's data."""
    return struct.pack(f"<{len(numbers)}H", *numbers)


@dataclass(frozen=True, slots=True)
class EfiBoot:
    """Is a `LoaderRules`. `fallback` is the loader that the firmware starts without any variable."""

    arguments: Mapping[str, str]
    partition: BootPartition
    programs: tuple[str, ...] = ("linux",)

    @property
    def name(self) -> str:
        return "efi"

    @property
    def counts(self) -> bool:
        return False

    @property
    def fallback(self) -> SystemdBoot:
        return SystemdBoot(self.arguments, self.programs)

    def watches(self, path: str) -> bool:
        return path in (BOOT_ORDER, BOOT_NEXT) or path in _WATCHED or self.fallback.watches(path)

    def option(self, slot: str, *, trial: bool = False) -> bytes:
        """The load option of a slot, or of a trial of it."""
        folder = slot_folder(slot)
        arguments = self.arguments[slot]
        if "initrd" in self.programs:
            arguments += f" initrd=\\{folder}\\initrd".replace("/", "\\")
        if trial:
            return load_option(
                "Twinlock trial", self.partition, f"{folder}/linux", f"{arguments} twinlock.trial"
            )
        return load_option(f"Twinlock {slot}", self.partition, f"{folder}/linux", arguments)

    def follow(self, files: Files, record: BootRecord) -> list[Step]:
        """The loader without variables, the options, the order; a wish for a trial that is over goes first.

        Raises DeviceError `boot-control` when another system's option has a number of ours.
        """
        settled = record
        if record.trying is not None:
            settled = replace(record, trying=None, tries_left=0, failed=record.failed | {record.trying})
        recovery = RECOVERY in self.arguments
        default = committed(record, recovery=recovery)
        steps: list[Step] = []
        if self._wish_is_over(files, record, settled):
            steps.append(Drop(BOOT_NEXT))
        steps += self.fallback.follow(files, settled)
        good = [slot for slot in SLOTS if slot not in settled.failed and slot != default]
        wanted = [default, *good, *([RECOVERY] if recovery and default != RECOVERY else [])]
        for slot in wanted:
            steps += self._option_step(files, NUMBERS[slot], self.option(slot))
        if record.trying is not None:
            steps += self._option_step(files, TRIAL_NUMBER, self.option(record.trying, trial=True))
        order = [NUMBERS[slot] for slot in wanted]
        ours = {*NUMBERS.values(), TRIAL_NUMBER}
        found = order_of(files.get(BOOT_ORDER, b""))
        data = order_data(order + [number for number in found if number not in ours])
        if files.get(BOOT_ORDER) != data:
            steps.append(Put(BOOT_ORDER, data))
        return steps

    def _wish_is_over(self, files: Files, record: BootRecord, settled: BootRecord) -> bool:
        """Whether `BootNext` asks for a slot that must not boot, or for a trial that is not pending."""
        wish = order_of(files.get(BOOT_NEXT, b""))[:1]
        if wish == [TRIAL_NUMBER]:
            slot = record.trying
            return slot is None or files.get(option_name(TRIAL_NUMBER)) != self.option(slot, trial=True)
        return wish in [[NUMBERS[slot]] for slot in settled.failed]

    def _option_step(self, files: Files, number: int, data: bytes) -> list[Step]:
        found = files.get(option_name(number))
        if found == data:
            return []
        if found is not None and not found[_HEAD.size :].startswith("Twinlock ".encode("utf-16-le")):
            raise error(
                "boot-control",
                f"the firmware's Boot{number:04X} is of another system",
                hint="delete that option in the firmware's setup, or with efibootmgr",
            )
        return [Put(option_name(number), data)]

    def tries_left(self, files: Files, record: BootRecord) -> int:
        """The record's: the agent counts."""
        del files
        return record.tries_left

    def one_shot(self, files: Files, record: BootRecord) -> list[Step] | None:
        """`BootNext`, which the firmware follows once."""
        del record
        data = order_data([TRIAL_NUMBER])
        return [] if files.get(BOOT_NEXT) == data else [Put(BOOT_NEXT, data)]

    def boots(self, files: Files, *, flag: bool = False) -> tuple[str | None, dict[str, bytes]]:
        """`BootNext` is removed before anything starts; an option that does not load is passed over."""
        del flag
        after = dict(files)
        numbers = order_of(after.pop(BOOT_NEXT, b""))[:1] + order_of(files.get(BOOT_ORDER, b""))
        for number in numbers:
            option = read_option(files.get(option_name(number), b""))
            if option is not None and option[0] in files:
                return slot_of(option[1]), after
        return self.fallback.boots(after)
