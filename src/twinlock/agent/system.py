"""The system around the agent, as the health gate asks for it: units, data space, mounts.

`Unmanaged` is a device without a service manager that the agent knows: what cannot be asked is unknown, which
is neither good nor bad. The real one is `linux.LinuxSystem`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

UnitState = Literal["good", "starting", "bad"]
# How the boot before this one ended; "" when it ended well, or nothing is known of it.
LastEnd = Literal["", "panic", "watchdog", "cut"]


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of the service manager; `what` says in its own words how it is."""

    name: str
    state: UnitState
    what: str


class System(Protocol):
    """Raises TwinlockError `health-failed` when a service manager that is there does not answer."""

    @property
    def has_units(self) -> bool:
        """Whether there is a service manager to ask. Without one the next three are not asked."""
        ...

    def in_maintenance(self) -> bool:
        """Whether the system came up in its rescue or emergency mode."""
        ...

    def failed_units(self) -> tuple[str, ...]:
        """The names of all units that have failed; a bounded number of them."""
        ...

    def unit(self, name: str) -> Unit:
        """How one unit is; one that is not installed is bad."""
        ...

    def free_bytes(self) -> int | None:
        """The space that is left where the agent's state is, in bytes; None when that is unknown."""
        ...

    def is_written(self, slot: str) -> bool:
        """Whether the running system may write to the slot's medium by itself: it is mounted read-write."""
        ...

    def last_end(self) -> LastEnd:
        """How the boot before this one ended, as far as the kernel and the journal tell. Never fails."""
        ...

    def journal(self, *, last: bool) -> str:
        """The end of this boot's journal, or of the `last` boot's; empty where there is none. Never fails."""
        ...

    def panics(self) -> dict[str, str]:
        """The kernel's last words that a panic left behind, by a name that `forget` takes. Never fails."""
        ...

    def forget(self, name: str) -> None:
        """Gives the place of these words back to the kernel, once they are kept elsewhere. Never fails."""
        ...


class Unmanaged:
    """Nothing is known. Is a `System`."""

    has_units = False

    def in_maintenance(self) -> bool:
        return False

    def failed_units(self) -> tuple[str, ...]:
        return ()

    def unit(self, name: str) -> Unit:
        return Unit(name, "bad", "there is no service manager")

    def free_bytes(self) -> int | None:
        return None

    def is_written(self, slot: str) -> bool:
        del slot
        return False

    def last_end(self) -> LastEnd:
        return ""

    def journal(self, *, last: bool) -> str:
        del last
        return ""

    def panics(self) -> dict[str, str]:
        return {}

    def forget(self, name: str) -> None:
        """There is nothing to forget."""
