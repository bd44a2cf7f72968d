"""What rollouts and reports need of a store, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.server.rollouts.model import (
        AssignmentRow,
        CheckedReport,
        Progress,
        Rollout,
        StoredReport,
    )
    from twinlock.server.rollouts.policy import Candidate, Past
    from twinlock.server.rollouts.state import Summary


class RolloutStore(Protocol):
    """Rollouts and their assignments."""

    def add(self, release_id: int, everyone: bool, now_ms: int, actor: str) -> Rollout:
        """A new active rollout with the next number."""
        ...

    def get(self, number: int, *, lock: bool = False) -> Rollout | None:
        """One rollout."""
        ...

    def halt(self, number: int, now_ms: int) -> None:
        """Marks the rollout, and every open assignment in it, as halted."""
        ...

    def progress(self, number: int) -> Progress | None:
        """One rollout with its counts."""
        ...

    def newest(self, limit: int) -> Sequence[Progress]:
        """Up to `limit` rollouts with their counts, newest first."""
        ...

    def assignments(self, number: int, after: str, limit: int) -> Sequence[AssignmentRow]:
        """Up to `limit` assignments of devices with ids above `after`, in order of id."""
        ...

    def open_to_all(self, above: int) -> Sequence[Candidate]:
        """Active rollouts to all with numbers above this."""
        ...

    def assign(self, number: int, device_id: str, now_ms: int) -> None:
        """Makes this rollout the device's current one; an open assignment before it becomes superseded."""
        ...

    def history(self, device_id: str, limit: int) -> Sequence[Past]:
        """The newest assignments of a device, newest first."""
        ...

    def current_number(self, device_id: str) -> int:
        """The number of the rollout that the device is in now, 0 for none; locks the device."""
        ...

    def considered(self, device_id: str, number: int) -> None:
        """Notes up to which number rollouts to all were matched with the device."""
        ...

    def summary(self, assignment_id: str) -> tuple[str, Summary] | None:
        """Whose assignment it is and its summary; locks it until the transaction ends."""
        ...

    def save(self, assignment_id: str, summary: Summary, now_ms: int) -> None:
        """Keeps a summary."""
        ...


class ReportStore(Protocol):
    """Reports of devices."""

    def floor(self, device_id: str) -> int:
        """Reports up to this `seq` were kept once and then pruned."""
        ...

    def body_sha256(self, device_id: str, seq: int) -> str | None:
        """The hash of the body that is kept under this `seq`."""
        ...

    def add(self, report: CheckedReport, now_ms: int) -> None:
        """Keeps a report."""
        ...

    def prune(self, device_id: str, keep: int) -> None:
        """Forgets all but the `keep` reports with the highest `seq`, and raises the floor."""
        ...

    def of_device(self, device_id: str, limit: int) -> Sequence[StoredReport]:
        """The newest reports of a device, by `seq`, newest first."""
        ...
