"""What the agent asks of boot control, whatever the bootloader.

Every call that changes the record is one write (see `twinlock.core.bootrecord` for what a power cut at each
leaves behind), is repeatable, reads the stored record again afterwards and returns it. Failures are
DeviceErrors: `boot-record` (no valid copy), `boot-refused` (the transition is not allowed now),
`boot-control` (the record's storage cannot be read or written).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from twinlock.core.bootrecord import BootRecord


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. `tries_max` is how many boots a trial can have at most."""

    name: str
    tries_max: int
    keeps_reason: bool


@dataclass(frozen=True, slots=True)
class Booted:
    """What runs now: a slot's name (or `recovery`), and an id that differs for every boot."""

    slot: str
    boot_id: str


class BootControl(Protocol):
    """One device's boot control."""

    @property
    def capabilities(self) -> Capabilities: ...

    def booted(self) -> Booted: ...

    def read(self) -> BootRecord: ...

    def mend(self) -> list[str]:
        """Makes the loader follow the record again, at the start of a run; names of what had to be mended.

        Writes nothing when nothing differs.
        """
        ...

    def before_reboot(self) -> bool:
        """Prepares the loader for the reboot that follows at once: what the record says is what boots.

        A loader that cannot count is asked for one boot of a pending trial here, and a try is taken off. True
        when the reboot itself has to carry that wish (`Power.reboot` with `trial`).
        """
        ...

    def invalidate(self, slot: str) -> BootRecord: ...

    def arm(self, slot: str, tries: int, trial_id: str) -> BootRecord: ...

    def commit(self, trial_id: str) -> BootRecord: ...

    def roll_back(self, trial_id: str, reason: str) -> BootRecord: ...

    def abandon(self, slot: str) -> BootRecord:
        """Only from recovery: gives up the default, so that it is the slot to be written next."""
        ...

    def restore(self, default: str, failed: frozenset[str]) -> BootRecord:
        """Only from recovery, where both copies are lost: writes both anew, one after the other.

        Where a copy is valid nothing is written, and its record comes back.
        """
        ...

    def self_test(self) -> None:
        """Proves by doing that the record can be written and read back, without changing its meaning."""
        ...
