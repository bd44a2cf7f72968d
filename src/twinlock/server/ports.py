"""What the edges need of the store: transactions, the poll's one lookup, and durable writes in groups."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.core.protocol import PayloadOffer
    from twinlock.server.audit.chain import AuditStore
    from twinlock.server.devices.evidence import EvidenceStore
    from twinlock.server.devices.model import CheckIn, Status
    from twinlock.server.devices.ports import DeviceStore
    from twinlock.server.director.answers import DirectorStore, Kept
    from twinlock.server.enrolment.ports import EnrolmentStore
    from twinlock.server.releases.ports import ReleaseStore
    from twinlock.server.rollouts.ports import ReportStore, RolloutStore

T = TypeVar("T")


class Operators(Protocol):
    """Operators' tokens, kept as hashes."""

    def all(self) -> Sequence[tuple[str, str]]:
        """Name and token hash (hex) of every operator."""
        ...

    def add(self, name: str, token_sha256: str, now_ms: int) -> None:
        """A new operator, or a new token for one."""
        ...


class Transaction(Protocol):
    """Every store, in one transaction that is kept whole or not at all."""

    @property
    def devices(self) -> DeviceStore: ...
    @property
    def enrolment(self) -> EnrolmentStore: ...
    @property
    def releases(self) -> ReleaseStore: ...
    @property
    def rollouts(self) -> RolloutStore: ...
    @property
    def reports(self) -> ReportStore: ...
    @property
    def evidence(self) -> EvidenceStore: ...
    @property
    def director(self) -> DirectorStore: ...
    @property
    def audit(self) -> AuditStore: ...
    @property
    def operators(self) -> Operators: ...


class PollView(msgspec.Struct, frozen=True, gc=False):
    """All that a poll's answer is made from. `newest_to_all` is the newest open rollout to all devices.

    `session_floor_us` is the time of the newest challenge that the device answered (microseconds since 1970);
    `entry_sha256` is of what the image repository signed of the release; `directed` is what the director
    said last.
    """

    status: Status
    hardware: str
    fingerprint: str
    considered: int
    newest_to_all: int
    assignment_id: str | None
    state: str
    rollout_open: bool
    release_id: int
    product: str
    version: str
    image_sha256: str
    session_floor_us: int = 0
    entry_sha256: str = ""
    directed: Kept | None = None


class Database(Protocol):
    """The store as the edges use it. All of it may be called from any thread unless it says otherwise."""

    def read(self) -> AbstractContextManager[Transaction]:
        """A transaction that only looks. Blocks: not for the event loop."""
        ...

    def write(self) -> AbstractContextManager[Transaction]:
        """A transaction that is durable when the block has ended. Blocks: not for the event loop."""
        ...

    async def poll_view(self, device_id: str) -> PollView | None:
        """One indexed lookup, for the event loop; None for an unknown device."""
        ...

    async def offers(self, release_id: int) -> tuple[PayloadOffer, ...]:
        """The payloads of a release, for the event loop."""
        ...

    async def public_key(self, device_id: str) -> str | None:
        """A device's key (PEM), for the event loop; None for an unknown device."""
        ...

    async def is_published(self, payload_sha256: str) -> bool:
        """Whether a payload belongs to a release, for the event loop."""
        ...

    async def submit(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a group with others'; when this returns its result, it is durable.

        What `work` raises undoes its own changes alone. Raises TransportError `server-busy` when too much
        waits, and what the database raised when the group could not be committed.
        """
        ...

    def check_in(self, check_in: CheckIn) -> None:
        """Notes a poll soon; never waits."""
        ...
