"""The Raspberry Pi's firmware: `config.txt`, `tryboot.txt`, and a flag for one boot.

The firmware reads config.txt, or tryboot.txt when the reboot asked for `tryboot`; the flag is cleared before
anything of the system starts, so whatever the trial does, the next boot reads config.txt again. Both files
are ours, have 512 bytes, and name the folder of the slot whose kernel, device trees and command line count:

    # Twinlock writes this file; what the board needs belongs into board.txt
    include board.txt
    os_prefix=twinlock/a/
    kernel=linux
    (newlines up to 512 bytes)

They are written over in place. Two versions of a file differ in the one letter of the slot, so that even a
sector that is written in part holds the old text or the new. Outside of a trial tryboot.txt names the default
slot: a stray flag changes nothing.

Sources: Raspberry Pi documentation, "config.txt" (os_prefix, include, cmdline), "autoboot.txt", "Fail-safe OS
updates (tryboot)".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twinlock.core.bootloader import TRIAL_WORD, Files, Patch, Put, Step, slot_folder, slot_of
from twinlock.core.errors import error
from twinlock.core.names import SLOTS

if TYPE_CHECKING:
    from twinlock.core.bootrecord import BootRecord

CONFIG: Final = "config.txt"
TRYBOOT: Final = "tryboot.txt"
AUTOBOOT: Final = "autoboot.txt"
BOARD: Final = "board.txt"
COMMAND_LINE: Final = "cmdline.txt"
TRIAL_COMMAND_LINE: Final = "cmdtrial.txt"
SIZE_BYTES: Final = 512
HEADER: Final = "# Twinlock writes this file; what the board needs belongs into board.txt\n"


def config_text(slot: str, *, trial: bool = False) -> bytes:
    """config.txt, or tryboot.txt (`trial`), that starts this slot: 512 bytes."""
    lines = [HEADER, f"include {BOARD}\n", f"os_prefix={slot_folder(slot)}/\n", "kernel=linux\n"]
    if trial:
        lines.append(f"cmdline={TRIAL_COMMAND_LINE}\n")
    return "".join(lines).encode("ascii").ljust(SIZE_BYTES, b"\n")


def _setting(data: bytes, name: str) -> str | None:
    """The last value of a setting outside conditional sections, as the firmware takes it."""
    value, counts = None, True
    for line in data.decode("ascii", "replace").splitlines():
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            counts = text == "[all]"
        elif counts and text.startswith(f"{name}="):
            value = text.partition("=")[2].strip()
    return value


@dataclass(frozen=True, slots=True)
class Tryboot:
    """Is a `LoaderRules`. `arguments` are the kernel command lines by slot."""

    arguments: Mapping[str, str]

    @property
    def name(self) -> str:
        return "tryboot"

    @property
    def counts(self) -> bool:
        return False

    def watches(self, path: str) -> bool:
        named = {
            f"{slot_folder(slot)}/{name}" for slot in SLOTS for name in (COMMAND_LINE, TRIAL_COMMAND_LINE)
        }
        return path in (CONFIG, TRYBOOT, AUTOBOOT) or path in named

    def follow(self, files: Files, record: BootRecord) -> list[Step]:
        """The command lines of what may boot, then the default, then the trial.

        The default comes before the trial's end: between the two, both files name good slots. Raises
        DeviceError `boot-control` when the files are not ours to write.
        """
        _check(files)
        trying = record.trying or record.default
        steps: list[Step] = []
        for slot in (record.default, trying):
            steps += self._command_lines(files, slot)
        for path, data in (
            (TRYBOOT, config_text(trying, trial=True)),
            (CONFIG, config_text(record.default)),
        ):
            found = files.get(path)
            if found is None or len(found) != SIZE_BYTES:
                steps.append(Put(path, data))
            elif found != data:
                steps.append(Patch(path, data))
        return list(dict.fromkeys(steps))

    def _command_lines(self, files: Files, slot: str) -> list[Step]:
        text = self.arguments[slot]
        wanted = {COMMAND_LINE: f"{text}\n", TRIAL_COMMAND_LINE: f"{text} {TRIAL_WORD}\n"}
        return [
            Put(f"{slot_folder(slot)}/{name}", line.encode("utf-8"))
            for name, line in wanted.items()
            if files.get(f"{slot_folder(slot)}/{name}") != line.encode("utf-8")
        ]

    def tries_left(self, files: Files, record: BootRecord) -> int:
        """The record's: the agent counts."""
        del files
        return record.tries_left

    def one_shot(self, files: Files, record: BootRecord) -> list[Step] | None:
        """None: the reboot carries the flag."""
        del files, record
        return None

    def boots(self, files: Files, *, flag: bool = False) -> tuple[str | None, dict[str, bytes]]:
        """Which slot's kernel starts, if its files are there."""
        by_partition = _setting(files.get(AUTOBOOT, b""), "tryboot_a_b") == "1"
        config = files.get(TRYBOOT if flag and not by_partition else CONFIG, b"")
        prefix = _setting(config, "os_prefix") or ""
        line = files.get(prefix + (_setting(config, "cmdline") or COMMAND_LINE), b"")
        if prefix + (_setting(config, "kernel") or "kernel8.img") not in files:
            return None, dict(files)
        return slot_of(line.decode("utf-8", "replace")), dict(files)


def _check(files: Files) -> None:
    if _setting(files.get(AUTOBOOT, b""), "tryboot_a_b") == "1":
        raise error(
            "boot-control",
            f"{AUTOBOOT} sets tryboot_a_b=1: the firmware would not read {TRYBOOT}",
            hint=f"remove that line from {AUTOBOOT}",
        )
    for path in (CONFIG, TRYBOOT):
        if path in files and not files[path].startswith(HEADER.encode("ascii")):
            raise error(
                "boot-control",
                f"{path} on the boot partition was not written by Twinlock, and is left alone",
                hint=f"move its settings to {BOARD} and remove it",
            )
