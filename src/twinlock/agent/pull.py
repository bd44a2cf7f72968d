"""The missing parts of a payload, in as few requests as possible, each checked before anybody sees it.

Parts that lie side by side in the payload are one request. A part whose bytes are wrong is asked for again,
twice; a part that is right but does not decode to its signed segment is the payload's fault, and final.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from twinlock.agent import progress as kept
from twinlock.agent.fetch import Payload, RangeReader, Source
from twinlock.agent.session import SessionCredentials
from twinlock.core import limits, protocol
from twinlock.core.errors import TwinlockError, error
from twinlock.core.payload import container, parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from twinlock.agent.config import Config
    from twinlock.agent.plan import Plan
    from twinlock.agent.ports import Ports, Store
    from twinlock.agent.progress import Progress
    from twinlock.core.manifest import Manifest
    from twinlock.core.protocol import PayloadOffer

INDEX: Final = "index"
REFETCHES_MAX: Final = 2
_TAIL: Final = 0xFFFFFFFF  # the number under which an incomplete tail is kept
_TAIL_SIZE_BYTES_MAX: Final = limits.INDEX_SIZE_BYTES_MAX + container.TRAILER_SIZE_BYTES


class Puller:
    """Delivers segments of one plan's image."""

    def __init__(
        self, ports: Ports, config: Config, plan: Plan, manifest: Manifest, progress: Progress
    ) -> None:
        self._store = ports.store
        self._display = ports.display
        self._manifest = manifest
        self._progress = progress
        self._offer = _choose(plan)
        source = Source(
            url=f"{plan.server.rstrip('/')}{protocol.PREFIX}/payloads/{self._offer.sha256.hex()}",
            sha256=self._offer.sha256.hex(),
            size_bytes=self._offer.size_bytes,
        )
        credentials = SessionCredentials(ports, plan.token)
        self._payload = Payload(
            ports.network, ports.clock, ports.random, config.network, source, credentials, progress.tally
        )
        self._encoded = memoryview(bytearray(limits.PART_SIZE_BYTES_MAX))

    def pull(self, numbers: list[int], deliver: Callable[[int, bytes | bytearray], None]) -> None:
        """Calls `deliver(number, segment)` for each of `numbers`, which ascend, in that order."""
        index = self._index()
        offsets = index.offsets()
        total = sum(index.parts[number].length for number in numbers)
        done = 0
        for run in _runs(numbers, index, offsets):
            reader: RangeReader | None = None
            try:
                for number in run:
                    reader = self._right_part(reader, index, offsets, number, offsets[run[-1] + 1])
                    part = index.parts[number]
                    deliver(number, self._decode(part, number))
                    done += part.length
                    self._display.progress("fetch", done, total)
            finally:
                if reader is not None:
                    reader.close()

    def _right_part(
        self, reader: RangeReader | None, index: container.Index, offsets: list[int], number: int, end: int
    ) -> RangeReader | None:
        """Has the bytes of part `number` in the buffer, checked; reads on with `reader`, or a new one."""
        part = index.parts[number]
        for attempt in range(1 + REFETCHES_MAX):
            if part.length:
                reader = self._receive(reader, number, offsets[number], end, part.length)
            try:
                parts.check_encoded(part, self._encoded[: part.length], number)
                break
            except TwinlockError:
                if reader is not None:
                    reader.close()
                    reader = None
                if attempt == REFETCHES_MAX:
                    raise
        return reader

    def _receive(
        self, reader: RangeReader | None, number: int, start: int, end: int, length: int
    ) -> RangeReader:
        """Receives the whole part, less what an earlier run kept of it."""
        encoded = self._encoded[:length]
        again = self._progress.was_received(number)
        known = 0
        if reader is None and not again:
            known = kept.load_partial(self._store, self._offer.sha256, number, encoded)
        reader = reader or self._payload.reader(start + known, end)
        try:
            reader.fill(encoded[known:])
        except TwinlockError:
            self._give_up(reader, number, encoded[: known + reader.filled], again=again)
            raise
        if again:
            self._progress.tally.again_bytes += reader.filled
        self._progress.received(number)
        return reader

    def _give_up(self, reader: RangeReader, number: int, came: memoryview, *, again: bool) -> None:
        """Keeps what can be kept of a part that did not come whole; the failure itself matters more."""
        reader.close()
        if again:
            self._progress.tally.again_bytes += reader.filled
        with suppress(TwinlockError):
            if not again:
                kept.save_partial(self._store, self._offer.sha256, number, came)
            self._progress.save_tally()

    def _decode(self, part: parts.Part, number: int) -> bytes | bytearray:
        encoded = self._encoded[: part.length]
        data = parts.decode_part(part, encoded, self._manifest.segment_length_bytes(number), number)
        if hashlib.sha256(data).digest() != self._manifest.segment_sha256(number):
            raise error("segment-hash", f"segment {number} of {self._manifest.name} is not the signed one")
        return data

    # --- the index

    def _index(self) -> container.Index:
        """The payload's index, kept in the state folder so that it travels once."""
        index = load_index(self._store, self._offer) or self._fetch_index()
        container.check_fit(index, self._manifest, self._offer.size_bytes)
        return index

    def _fetch_index(self) -> container.Index:
        tail = memoryview(bytearray(tail_size_bytes(self._offer)))
        for attempt in range(1 + REFETCHES_MAX):
            self._receive_tail(tail, again=attempt > 0)
            try:
                index = decode_tail(tail)
                break
            except TwinlockError:
                if attempt == REFETCHES_MAX:
                    raise
        self._store.write(INDEX, self._offer.sha256 + tail)
        return index

    def _receive_tail(self, tail: memoryview, *, again: bool) -> None:
        known = 0 if again else kept.load_partial(self._store, self._offer.sha256, _TAIL, tail)
        end = self._offer.size_bytes
        reader = self._payload.reader(end - len(tail) + known, end)
        try:
            reader.fill(tail[known:])
        except TwinlockError:
            self._give_up(reader, _TAIL, tail[: known + reader.filled], again=again)
            raise
        reader.close()
        if again:
            self._progress.tally.again_bytes += reader.filled
        self._progress.save_tally()


def _choose(plan: Plan) -> PayloadOffer:
    """The offer to use: so far, full payloads."""
    for offer in plan.payloads:
        if offer.kind == "full":
            return offer
    raise error("format-unknown", f"no payload of {plan.job.product} {plan.job.version} is for this agent")


def _runs(numbers: list[int], index: container.Index, offsets: list[int]) -> list[list[int]]:
    """`numbers` cut where the payload has bytes in between that are not wanted."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and offsets[runs[-1][-1] + 1] == offsets[number]:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def tail_size_bytes(offer: PayloadOffer) -> int:
    """How long the end of the payload is that holds the index. Raises TrustError `payload-malformed`."""
    size_bytes = offer.index_size_bytes + container.TRAILER_SIZE_BYTES
    if not container.TRAILER_SIZE_BYTES < size_bytes <= min(offer.size_bytes, _TAIL_SIZE_BYTES_MAX):
        raise error("payload-malformed", f"an index of {offer.index_size_bytes} bytes is offered")
    return size_bytes


def decode_tail(tail: bytes | memoryview) -> container.Index:
    """The index in the end of a payload. Raises TrustError `payload-malformed`, `payload-index-hash`."""
    cut = len(tail) - container.TRAILER_SIZE_BYTES
    trailer = container.decode_trailer(bytes(tail[cut:]))
    return container.decode_index(bytes(tail[:cut]), trailer)


def load_index(store: Store, offer: PayloadOffer) -> container.Index | None:
    """The index that was kept for this payload; None when there is none or it is not whole."""
    try:
        data = store.read(INDEX, len(offer.sha256) + _TAIL_SIZE_BYTES_MAX) or b""
        return decode_tail(data[len(offer.sha256) :]) if data.startswith(offer.sha256) else None
    except TwinlockError:
        return None
