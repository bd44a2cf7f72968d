"""systemd-boot: entries with boot counting in their file names, derived from the boot record.

    loader/entries/twinlock-a.conf        committed: no counter
    loader/entries/twinlock-b+3.conf      on trial, three tries left; after one boot twinlock-b+2-1.conf
    loader/entries/twinlock-b+0-3.conf    tried and found bad: sorted behind all others

The loader counts by renaming the file before it starts the kernel, boots the first entry in its order, and an
entry without tries comes last; among the others the higher `version` comes first. An entry's version is one
more than the record's number when it was made, so that a newer entry is always before an older one. A slot
that must not boot has no entry.

Sources: systemd 252 (src/boot/efi/boot.c), systemd.io Automatic Boot Assessment, UAPI Group's Boot Loader
Specification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twinlock.core.bootloader import TRIAL_WORD, Drop, Files, Put, Step, committed, slot_folder, slot_of
from twinlock.core.errors import error
from twinlock.core.limits import TRIES_MAX
from twinlock.core.names import RECOVERY, SLOTS

if TYPE_CHECKING:
    from twinlock.core.bootrecord import BootRecord

ENTRIES: Final = "loader/entries"
ENTRY_SIZE_BYTES_MAX: Final = 4096
VERSION_MAX: Final = 1 << 32
PROGRAMS: Final = ("linux", "initrd", "devicetree")
_NAME: Final = re.compile(
    rf"{ENTRIES}/twinlock-(a|b|recovery)(?:\+([0-9]{{1,3}})(?:-([0-9]{{1,3}}))?)?\.conf", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One of our entries: the slot that its name says, its counter (None: none), its version."""

    path: str
    slot: str
    tries_left: int | None
    tries_done: int
    version: int
    data: bytes


def entry_name(slot: str, tries_left: int | None = None, tries_done: int = 0) -> str:
    """The file name of a slot's entry; `tries_left` is None for a committed one.

    Raises InputError `input-invalid` for an unknown slot or a count out of range.
    """
    if slot not in (*SLOTS, RECOVERY):
        raise error("input-invalid", f"there is no slot {slot!r}")
    if tries_left is None:
        return f"twinlock-{slot}.conf"
    if not 0 <= tries_left <= TRIES_MAX or not 0 <= tries_done <= TRIES_MAX:
        raise error("input-invalid", f"{tries_left} tries left and {tries_done} done are not a trial's")
    done = f"-{tries_done}" if tries_done else ""
    return f"twinlock-{slot}+{tries_left}{done}.conf"


def entry_text(
    slot: str, arguments: str, programs: tuple[str, ...], version: int, *, trial: bool = False
) -> str:
    """The content of a slot's entry: `arguments` is the kernel's command line, `programs` what it loads.

    Raises InputError `input-invalid` for a version out of range.
    """
    if not 0 <= version <= VERSION_MAX:
        raise error("input-invalid", f"entry version {version} is out of range")
    folder = slot_folder(slot)
    lines = [
        f"title Twinlock {slot}",
        # One key for all, so that only the version decides; recovery is 0 and comes last.
        "sort-key twinlock",
        f"version {version}",
        *(f"{name} /{folder}/{name}" for name in PROGRAMS if name in programs),
        f"options {arguments}{' ' + TRIAL_WORD if trial else ''}",
    ]
    return "\n".join([*lines, ""])


def _value(data: bytes, key: str) -> str | None:
    """The last value of a key, as the loader takes it."""
    found = None
    for line in data.decode("utf-8", "replace").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == key:
            found = value.strip()
    return found


def entries(files: Files) -> list[Entry]:
    """Our entries in the order in which the loader considers them. Those of others are left out."""
    found = []
    for path, data in files.items():
        match = _NAME.fullmatch(path)
        if match is None:
            continue
        version = _value(data, "version") or ""
        number = int(version) if version.isascii() and version.isdigit() and len(version) <= 10 else -1
        left = None if match[2] is None else int(match[2])
        found.append(Entry(path, match[1], left, int(match[3] or 0), number, data))
    return sorted(
        found,
        # No counter reads as an endless one.
        key=lambda one: (one.tries_left == 0, -one.version, -(one.tries_left or 1 << 32), one.path),
    )


@dataclass(frozen=True, slots=True)
class SystemdBoot:
    """Is a `LoaderRules`. `arguments` are the kernel command lines by slot; `programs` what entries load."""

    arguments: Mapping[str, str]
    programs: tuple[str, ...] = ("linux",)

    @property
    def name(self) -> str:
        return "systemd-boot"

    @property
    def counts(self) -> bool:
        return True

    def watches(self, path: str) -> bool:
        return path.startswith(f"{ENTRIES}/") and path.endswith(".conf")

    def _text(self, slot: str, version: int, *, trial: bool = False) -> bytes:
        text = entry_text(slot, self.arguments[slot], self.programs, version, trial=trial)
        return text.encode("utf-8")

    def recovery_entry(self) -> dict[str, bytes]:
        """The entry of recovery, which a device has from the start and which never changes."""
        return {f"{ENTRIES}/{entry_name(RECOVERY)}": self._text(RECOVERY, 0)}

    def follow(self, files: Files, record: BootRecord) -> list[Step]:
        """What must boot is made first, what must not boot is removed last: there is always an entry."""
        ours = entries(files)
        default = committed(record, recovery=RECOVERY in self.arguments)
        steps: list[Step] = []
        keep: set[str] = set()
        # Entries that stay beside the default's and may not come before it
        others = [
            one.version
            for one in ours
            if one.slot not in (default, record.trying) and one.slot not in record.failed
        ]
        path = f"{ENTRIES}/{entry_name(default)}"
        found = next((one for one in ours if one.path == path), None)
        lowest = max(others, default=-1)
        if found is None or found.version <= lowest or found.data != self._text(default, found.version):
            version = 0 if default == RECOVERY else max(record.seq + 1, lowest + 1)
            steps.append(Put(path, self._text(default, version)))
        else:
            version = found.version
        keep.add(path)
        if record.trying is not None and record.trying != default:
            steps += self._trial(ours, record, version, keep)
        good = {slot for slot in SLOTS if slot not in record.failed and slot != record.trying}
        for one in ours:
            second = one.slot in good and one.slot != default and one.tries_left is None
            if one.slot != RECOVERY and one.path not in keep and not second:
                steps.append(Drop(one.path))
        return steps

    def _trial(self, ours: list[Entry], record: BootRecord, version: int, keep: set[str]) -> list[Step]:
        slot = record.trying
        assert slot is not None
        counted = [one for one in ours if one.slot == slot and one.tries_left is not None]
        good = [
            one
            for one in counted
            if one.version > version and one.data == self._text(slot, one.version, trial=True)
        ]
        if good:
            # Of two names that a torn rename left, the one that says fewer tries is right.
            keep.add(min(good, key=lambda one: one.tries_left or 0).path)
            return []
        if record.tries_left == 0:
            return []
        number = max(record.seq + 1, version + 1)
        path = f"{ENTRIES}/{entry_name(slot, record.tries_left)}"
        keep.add(path)
        return [Put(path, self._text(slot, number, trial=True))]

    def tries_left(self, files: Files, record: BootRecord) -> int:
        """What the entry's name says; the record's number when there is no entry with a counter."""
        left = [
            one.tries_left
            for one in entries(files)
            if one.slot == record.trying and one.tries_left is not None
        ]
        return min(record.tries_left, *left) if left else record.tries_left

    def one_shot(self, files: Files, record: BootRecord) -> list[Step] | None:
        """Nothing: the entry is there already."""
        del files, record
        return []

    def boots(self, files: Files, *, flag: bool = False) -> tuple[str | None, dict[str, bytes]]:
        """An entry whose kernel is not there is passed over; a counted one is renamed before it starts."""
        del flag
        for one in entries(files):
            needed = [_value(one.data, name) for name in PROGRAMS]
            paths = [path.lstrip("/") for path in needed if path]
            if needed[0] is None or any(path not in files for path in paths):
                continue
            after = dict(files)
            if one.tries_left is not None:
                left = max(0, one.tries_left - 1)
                del after[one.path]
                after[f"{ENTRIES}/twinlock-{one.slot}+{left}-{one.tries_done + 1}.conf"] = one.data
            return slot_of(_value(one.data, "options") or ""), after
        return None, dict(files)
