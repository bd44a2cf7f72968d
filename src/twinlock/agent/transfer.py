"""One payload of a plan: its index, and the parts that are wanted, in as few requests as possible.

Parts that lie side by side in the payload are one request. A part whose bytes are wrong is asked for again,
twice. What came of a part or an index when the link broke is kept for the next run.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Final

from twinlock.agent import noticed
from twinlock.agent import progress as kept
from twinlock.agent.fetch import Payload, RangeReader, Source
from twinlock.core import limits, protocol
from twinlock.core.errors import TwinlockError, error
from twinlock.core.payload import container, parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from twinlock.agent.config import Config
    from twinlock.agent.fetch import Credentials
    from twinlock.agent.plan import Plan
    from twinlock.agent.ports import Ports, Store
    from twinlock.agent.progress import Progress
    from twinlock.core.manifest import Manifest
    from twinlock.core.protocol import PayloadOffer

# Where the index of a payload is kept in the state folder, by the payload's kind.
INDEX_NAMES: Final = {"full": "index", "delta": "index.delta"}
REFETCHES_MAX: Final = 2
_TAIL: Final = 0xFFFFFFFF  # the number under which an incomplete tail is kept
_TAIL_SIZE_BYTES_MAX: Final = limits.INDEX_SIZE_BYTES_MAX + container.TRAILER_SIZE_BYTES


class Transfer:
    """Delivers parts of one offered payload."""

    def __init__(
        self,
        ports: Ports,
        config: Config,
        plan: Plan,
        manifest: Manifest,
        progress: Progress,
        credentials: Credentials,
        offer: PayloadOffer,
    ) -> None:
        self._store = ports.store
        self._display = ports.display
        self._manifest = manifest
        self._progress = progress
        self._offer: Final = offer
        self._name: Final = INDEX_NAMES[offer.kind]
        source = Source(
            url=f"{plan.server.rstrip('/')}{protocol.PREFIX}/payloads/{offer.sha256.hex()}",
            sha256=offer.sha256.hex(),
            size_bytes=offer.size_bytes,
        )
        self._payload = Payload(
            ports.network, ports.clock, ports.random, config.network, source, credentials, progress.tally
        )

    def pull(self, numbers: list[int], use: Callable[[int, parts.Part, memoryview], None]) -> None:
        """Calls `use(number, part, its bytes)` for each of `numbers`, which ascend, in that order.

        The bytes have the part's hash, and are good until `use` returns.
        """
        buffer = memoryview(bytearray(limits.PART_SIZE_BYTES_MAX))
        index, offsets = self.index, self._offsets
        total = sum(index.parts[number].length for number in numbers)
        done = 0
        for run in _runs(numbers, index, offsets):
            reader: RangeReader | None = None
            try:
                for number in run:
                    part = index.parts[number]
                    encoded = buffer[: part.length]
                    reader = self._right_part(reader, number, encoded, offsets[run[-1] + 1])
                    use(number, part, encoded)
                    done += part.length
                    self._display.progress("fetch", done, total)
            finally:
                if reader is not None:
                    reader.close()

    def pull_block_hashes(self, first: int, last: int) -> bytes:
        """The block hashes of the segments `first` to `last`, in one request; needs some to be there."""
        starts = self._block_offsets
        start, end = starts[first], starts[last + 1]
        behind = self._offsets[-1]
        data = self._payload.read(behind + start, behind + end) if start < end else b""
        self._progress.save_tally()
        return data

    def block_hashes_of(self, number: int, first: int, data: bytes) -> bytes:
        """Those of segment `number` out of what `pull_block_hashes` gave for a stretch from `first` on."""
        starts = self._block_offsets
        return data[starts[number] - starts[first] : starts[number + 1] - starts[first]]

    def _right_part(
        self, reader: RangeReader | None, number: int, encoded: memoryview, end: int
    ) -> RangeReader | None:
        """Fills `encoded` with part `number`, checked; reads on with `reader`, or a new one up to `end`."""
        part = self.index.parts[number]
        for attempt in range(1 + REFETCHES_MAX):
            if part.length:
                reader = self._receive(reader, number, encoded, end)
            try:
                parts.check_encoded(part, encoded, number)
                break
            except TwinlockError as problem:
                if reader is not None:
                    reader.close()
                    reader = None
                if attempt == REFETCHES_MAX:
                    raise
                noticed.note(self._store, problem)
        return reader

    def _receive(self, reader: RangeReader | None, number: int, encoded: memoryview, end: int) -> RangeReader:
        """Receives the whole part, less what an earlier run kept of it."""
        again = self._progress.was_received(number)
        known = 0
        if reader is None and not again:
            known = kept.load_partial(self._store, self._offer.sha256, number, encoded)
        reader = reader or self._payload.reader(self._offsets[number] + known, end)
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

    # --- the index

    @cached_property
    def index(self) -> container.Index:
        """The payload's index, kept in the state folder so that it travels once."""
        index = load_index(self._store, self._offer) or self._fetch_index()
        container.check_fit(index, self._manifest, self._offer.size_bytes)
        if index.base_sha256 != self._offer.base_sha256:
            raise error("payload-unfit", "the payload is for another base than it was offered for")
        return index

    @cached_property
    def _offsets(self) -> list[int]:
        return self.index.offsets()

    @cached_property
    def _block_offsets(self) -> list[int]:
        return self.index.block_offsets()

    def _fetch_index(self) -> container.Index:
        tail = memoryview(bytearray(tail_size_bytes(self._offer)))
        for attempt in range(1 + REFETCHES_MAX):
            self._receive_tail(tail, again=attempt > 0)
            try:
                index = decode_tail(tail)
                break
            except TwinlockError as problem:
                if attempt == REFETCHES_MAX:
                    raise
                noticed.note(self._store, problem)
        self._store.write(self._name, self._offer.sha256 + tail)
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


def forget_indexes(store: Store) -> None:
    """Removes every index that was kept."""
    for name in INDEX_NAMES.values():
        store.remove(name)


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
        data = store.read(INDEX_NAMES[offer.kind], len(offer.sha256) + _TAIL_SIZE_BYTES_MAX) or b""
        return decode_tail(data[len(offer.sha256) :]) if data.startswith(offer.sha256) else None
    except TwinlockError:
        return None
