"""What the boot before this one left behind on Linux: kernel's last words, watchdog's mark, journal.

Sources: Documentation/ABI/testing/pstore, Documentation/watchdog/watchdog-api (WDIOF_CARDRESET),
systemd-pstore.service(8), journalctl(1). Nothing here fails: what cannot be read is not there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from twinlock.agent.hooks import run_bounded

if TYPE_CHECKING:
    from pathlib import Path

    from twinlock.agent.ports import Clock
    from twinlock.agent.system import LastEnd

PSTORE: Final = "sys/fs/pstore"
ARCHIVE: Final = "var/lib/systemd/pstore"  # where systemd-pstore.service moves them, each boot's to a folder
PANICS_MAX: Final = 16
PANIC_SIZE_BYTES_MAX: Final = 128 * 1024
JOURNAL_SIZE_BYTES_MAX: Final = 384 * 1024
ERRORS_SIZE_BYTES_MAX: Final = 64 * 1024
ENTRIES_MAX: Final = 3000
TIMEOUT_S: Final = 30.0
CARD_RESET: Final = 0x20
# What systemd and journald write last in an orderly shutdown.
_ENDINGS: Final = ("Journal stopped", "Reached target reboot.target", "Reached target poweroff.target")
_LAST_LINES: Final = 40


def panics(root: Path) -> dict[str, str]:
    """The kernel's records of panics and oopses: name (relative to `root`) -> text, a bounded number."""
    found: dict[str, str] = {}
    for folder, pattern in ((PSTORE, "dmesg-*"), (ARCHIVE, "*/dmesg*"), (ARCHIVE, "dmesg*")):
        with suppress(OSError):
            for path in sorted((root / folder).glob(pattern))[: PANICS_MAX - len(found)]:
                with suppress(OSError):
                    if path.is_file():
                        found[path.relative_to(root).as_posix()] = _text(path)
    return found


def forget(root: Path, name: str) -> None:
    """Removes one record that `panics` named."""
    with suppress(OSError):
        (root / name).unlink()


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(PANIC_SIZE_BYTES_MAX).decode("utf-8", "replace")


def was_watchdog(root: Path) -> bool:
    """Whether a watchdog says that it reset the machine."""
    with suppress(OSError):
        for path in sorted((root / "sys/class/watchdog").glob("*/bootstatus")):
            with suppress(OSError, ValueError):
                if int(path.read_text("ascii").strip()) & CARD_RESET:
                    return True
    return False


def last_end(root: Path, journalctl: str, clock: Clock) -> LastEnd:
    """How the boot before this one ended: the surest sign counts."""
    if any("Kernel panic" in text or "Panic#" in text for text in panics(root).values()):
        return "panic"
    if was_watchdog(root):
        return "watchdog"
    lines = _ask(journalctl, clock, ("--boot=-1", f"--lines={_LAST_LINES}"), 16 * 1024)
    ended_well = not lines or any(ending in lines for ending in _ENDINGS)
    return "" if ended_well else "cut"


def journal(journalctl: str, clock: Clock, *, last: bool) -> str:
    """Its errors, then its last entries; empty when there is no journal of that boot."""
    boot = "--boot=-1" if last else "--boot=0"
    end = _ask(journalctl, clock, (boot, f"--lines={ENTRIES_MAX}"), JOURNAL_SIZE_BYTES_MAX)
    if not end:
        return ""
    errors = _ask(journalctl, clock, (boot, "--priority=err", "--lines=300"), ERRORS_SIZE_BYTES_MAX)
    return f"Errors:\n{errors or 'none'}\n\nLast entries:\n{end}\n"


def _ask(journalctl: str, clock: Clock, args: tuple[str, ...], size_bytes_max: int) -> str:
    argv = [journalctl, "--quiet", "--no-pager", "--output=short-iso-precise", *args]
    done = run_bounded(argv, "journalctl", TIMEOUT_S, clock, size_bytes_max)
    return "" if done.exit_code or done.timed_out else done.output
