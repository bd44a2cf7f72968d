"""What the devices feature needs of a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.server.devices.model import CheckIn, Device, Facts, Indicator, InUse, Status


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device with what it last said and did, for people to look at."""

    device: Device
    seen_ms: int | None
    facts: Facts | None
    last_outcome: str
    last_code: str
    last_detail: str
    last_version: str
    last_ms: int | None
    indicators: int


class DeviceStore(Protocol):
    """Devices in one transaction."""

    def get(self, device_id: str, *, lock: bool = False) -> Device | None:
        """The device; `lock` keeps others from changing it until the transaction ends."""
        ...

    def add(self, device: Device) -> None:
        """A new device."""
        ...

    def replace(self, device: Device) -> None:
        """New key, hardware or status of a known device."""
        ...

    def raise_session_floor(self, device_id: str, issued_us: int, now_us: int) -> bool:
        """Whether a challenge of this time is newer than every one answered before; then it is the floor.

        A floor in the future means that the server's clock was set back: it says nothing any more, since
        challenges that claim a time to come are refused anyway.
        """
        ...

    def count(self, status: Status) -> int:
        """How many devices have this status."""
        ...

    def rows(self, status: Status | None, after: str, limit: int) -> Sequence[DeviceRow]:
        """Up to `limit` devices with ids above `after`, in order of id."""
        ...

    def in_use(self, product: str, limit: int) -> Sequence[InUse]:
        """What accepted devices say they run of a product, by how many do, most first."""
        ...

    def row(self, device_id: str) -> DeviceRow | None:
        """One device as `rows` has it."""
        ...

    def note(self, device_id: str, kind: str, key: str, detail: str, now_ms: int, times: int = 1) -> None:
        """Counts an indicator `times` more; of a device at most `INDICATORS_PER_DEVICE_MAX` are kept."""
        ...

    def indicators(self, device_id: str) -> Sequence[Indicator]:
        """What was noted of a device, newest first."""
        ...

    def check_in(self, check_ins: Sequence[CheckIn]) -> None:
        """Notes polls, many at once."""
        ...
