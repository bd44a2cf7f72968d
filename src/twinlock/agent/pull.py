"""From missing segments to their bytes, by the ways that the plan and the configuration allow, best first.

 1. delta: parts that are made from the current slot. A segment that does not come out as it was signed is
    noted and taken from the full payload, for good; a delta that fails more often than it works is left.
 2. adaptive: without a delta, what the current slot holds is taken from there (see `reuse`).
 3. full: the rest, from the full payload. What it decodes to and was not signed is the payload's fault.

Every segment has its signed hash before anybody sees it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from twinlock.agent import memory, noticed
from twinlock.agent.plan import Running
from twinlock.agent.reuse import Held
from twinlock.agent.session import SessionCredentials
from twinlock.agent.transfer import Transfer
from twinlock.core.bootrecord import other
from twinlock.core.errors import Kind, TwinlockError, error
from twinlock.core.payload import parts
from twinlock.core.payload.heap import keep_free_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from twinlock.agent.config import Config
    from twinlock.agent.plan import Plan
    from twinlock.agent.ports import BlockDevice, Ports
    from twinlock.agent.progress import Progress
    from twinlock.core.manifest import Manifest
    from twinlock.core.payload.base import Base
    from twinlock.core.protocol import PayloadOffer

    Deliver = Callable[[int, bytes | bytearray | memoryview], None]

REFUSED_MAX: Final = 8  # segments that a delta does not give before it is compared with those that it gave
HASHES_AT_ONCE: Final = 32  # segments whose block hashes are one request: at most 64 KiB
_SERVED_BADLY: Final = frozenset({"server-error", "transfer-changed"})


class SlotBase:
    """The current slot as the base of a delta."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device

    def read_into(self, into: memoryview, offset: int) -> int:
        """As `core.payload.base.Base` has it; what lies behind the slot's end is missing."""
        length = max(min(len(into), self._device.size_bytes - offset), 0)
        self._device.read_into(into[:length], offset)
        return length


class Puller:
    """Delivers segments of one plan's image."""

    def __init__(
        self, ports: Ports, config: Config, plan: Plan, manifest: Manifest, progress: Progress
    ) -> None:
        self._ports = ports
        self._config = config
        self._plan = plan
        self._manifest = manifest
        self._progress = progress
        self._credentials = SessionCredentials(ports, plan.token)
        self._full = self._transfer(_full(plan))

    def _transfer(self, offer: PayloadOffer) -> Transfer:
        return Transfer(
            self._ports,
            self._config,
            self._plan,
            self._manifest,
            self._progress,
            self._credentials,
            offer,
        )

    def pull(self, numbers: list[int], deliver: Deliver) -> None:
        """Calls `deliver(number, segment)` for each of `numbers`, which ascend, in any order."""
        rest = set(numbers)

        def delivered(number: int, data: bytes | bytearray | memoryview) -> None:
            deliver(number, data)
            rest.remove(number)

        ways = self._config.network.ways
        slot = other(self._plan.job.slot)
        held = memory.slots(self._ports.store).get(slot, Running())
        delta = _delta(self._plan, held.image_sha256) if "delta" in ways else None
        if delta is not None or "adaptive" in ways:
            self._from_slot(slot, delta, rest, delivered)
        if rest:
            self._full.pull(
                sorted(rest), lambda number, part, data: delivered(number, self._decode(part, data, number))
            )

    def _from_slot(self, slot: str, delta: PayloadOffer | None, rest: set[int], deliver: Deliver) -> None:
        """What the current slot helps with, by the delta or without one."""
        try:
            device = self._ports.slots.look(slot)
        except TwinlockError as problem:
            self._ports.display.note(f"slot {slot} cannot be read: {problem.what}")
            return
        try:
            helped = delta is not None and self._by_delta(delta, SlotBase(device), rest, deliver)
            if not helped and "adaptive" in self._config.network.ways:
                self._by_reuse(device, rest, deliver)
        finally:
            device.close()

    # --- delta

    def _by_delta(self, offer: PayloadOffer, base: Base, rest: set[int], deliver: Deliver) -> bool:
        """Whether the delta was of use; what it did not give stays in `rest`."""
        keep_free_memory()
        wanted = sorted(number for number in rest if not self._progress.is_refused(number))
        refused = delivered = 0

        def use(number: int, part: parts.Part, encoded: memoryview) -> None:
            nonlocal refused, delivered
            try:
                data = self._decode(part, encoded, number, base)
            except TwinlockError as problem:
                if problem.kind not in (Kind.TRUST, Kind.COMPATIBILITY) and problem.code != "io-error":
                    raise
                noticed.note(self._ports.store, problem)
                self._progress.refused(number)
                self._ports.display.note(f"segment {number} comes from the full payload: {problem.what}")
                refused += 1
                if refused > max(REFUSED_MAX, delivered):
                    raise error("delta-base", "it does not fit what the current slot holds") from problem
                return
            deliver(number, data)
            delivered += 1

        try:
            self._transfer(offer).pull(wanted, use)
        except TwinlockError as problem:
            if problem.kind not in (Kind.TRUST, Kind.COMPATIBILITY) and problem.code not in _SERVED_BADLY:
                raise
            self._ports.display.note(f"the delta is given up: {problem.what}")
            return False
        return True

    # --- adaptive

    def _by_reuse(self, device: BlockDevice, rest: set[int], deliver: Deliver) -> None:
        held = Held(device, self._manifest)
        held.look(
            sorted(rest), deliver, lambda done, total: self._ports.display.progress("look", done, total)
        )
        if not rest or not self._full.index.blocks_size_bytes:
            return
        numbers = sorted(rest)
        for start in range(0, len(numbers), HASHES_AT_ONCE):
            some = numbers[start : start + HASHES_AT_ONCE]
            if not self._by_blocks(held, some, deliver) and start == 0 and len(numbers) > HASHES_AT_ONCE:
                break  # nothing of the first ones: the slot holds something else

    def _by_blocks(self, held: Held, numbers: list[int], deliver: Deliver) -> int:
        """How many of these segments were put together from blocks."""
        count = 0
        for run in _stretches(numbers):
            hashes = self._full.pull_block_hashes(run[0], run[-1])
            for number in run:
                data = held.of_blocks(number, self._full.block_hashes_of(number, run[0], hashes))
                if data is not None:
                    deliver(number, data)
                    count += 1
        return count

    def _decode(
        self, part: parts.Part, encoded: memoryview, number: int, base: Base | None = None
    ) -> bytes | bytearray:
        length = self._manifest.segment_length_bytes(number)
        data = parts.decode_part(part, encoded, length, number, base)
        if hashlib.sha256(data).digest() != self._manifest.segment_sha256(number):
            raise error("segment-hash", f"segment {number} of {self._manifest.name} is not the signed one")
        return data


def _full(plan: Plan) -> PayloadOffer:
    for offer in plan.payloads:
        if offer.kind == "full":
            return offer
    raise error("format-unknown", f"no payload of {plan.job.product} {plan.job.version} is for this agent")


def _delta(plan: Plan, image_sha256: bytes | None) -> PayloadOffer | None:
    """The smallest delta from the image that the current slot is known to hold."""
    found = [offer for offer in plan.payloads if offer.kind == "delta" and offer.base_sha256 == image_sha256]
    if image_sha256 is None or not found:
        return None
    return min(found, key=lambda offer: offer.size_bytes)


def _stretches(numbers: list[int]) -> list[list[int]]:
    """Ascending numbers, cut where some are missing in between."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] + 1 == number:
            found[-1].append(number)
        else:
            found.append([number])
    return found
