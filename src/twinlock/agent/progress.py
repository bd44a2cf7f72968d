"""How far an install is: an append-only log of segments, and what a broken transfer left of one part.

`progress` begins with a header of 64 bytes that ties it to slot, image and assignment, followed by records of
16 bytes: kind and segment (u32), value (u64), CRC-32 over the header's CRC and both; all little endian. A
torn or foreign tail ends it. The log is a hint, not trust: what it does not name is read and hashed again,
what it names wrongly is found when the whole slot is read back before it is armed. So it is never flushed by
itself: a kill loses nothing, a loss of power may take its last records, and the bytes they count with them.

`partial` keeps the first bytes of a part whose transfer was given up, so that they are not sent again. They
count for nothing until the whole part has its hash.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import TYPE_CHECKING, Final

from twinlock.agent.fetch import Tally
from twinlock.core import limits
from twinlock.core.errors import TwinlockError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.agent.plan import Job
    from twinlock.agent.ports import Store

PROGRESS: Final = "progress"
PARTIAL: Final = "partial"
_MAGIC: Final = b"TWLKPROG"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sHcxI32s8sI4x")  # magic, version, slot, segments, image, assignment, CRC
_BODY: Final = struct.Struct("<IQ")
_CRC: Final = struct.Struct("<I")
RECORD_SIZE_BYTES: Final = _BODY.size + _CRC.size
RECORDS_PER_SEGMENT_MAX: Final = 16  # far more than an install can need, with the following for small ones
RECORDS_EXTRA_MAX: Final = 4096
_PARTIAL_HEADER: Final = struct.Struct("<32sII")

_OF_IMAGE: Final = 48  # the header's bytes before the assignment

_HELD, _LOST, _RECEIVED, _FETCHED, _AGAIN, _REFUSED = range(1, 7)
_IS_HELD, _WAS_RECEIVED, _IS_REFUSED = 1, 2, 4


class Progress:
    """The log of one install. Make it with `open`."""

    def __init__(self, store: Store, header: bytes, count: int) -> None:
        self._store = store
        self._header = header
        self._crc = zlib.crc32(header)
        self._flags = bytearray(count)
        self.tally: Final = Tally()

    @classmethod
    def open(cls, store: Store, job: Job, count: int) -> Progress:
        """The log for `job` with `count` segments: the one that is there, if it is for this slot and image.

        For another assignment of the same image the segments stay and the tally starts from 0.
        """
        progress = cls(store, _header(job, count), count)
        if not progress._load():
            progress.tally.fetched_bytes = progress.tally.again_bytes = 0
            for number in range(count):
                progress._flags[number] &= _IS_HELD
        progress._rewrite()
        return progress

    def is_held(self, number: int) -> bool:
        """Whether the slot is believed to hold segment `number`."""
        return bool(self._flags[number] & _IS_HELD)

    def was_received(self, number: int) -> bool:
        """Whether the part of segment `number` came whole before, for this assignment."""
        return bool(self._flags[number] & _WAS_RECEIVED)

    def is_refused(self, number: int) -> bool:
        """Whether a delta's part of segment `number` came, and did not give what was signed."""
        return bool(self._flags[number] & _IS_REFUSED)

    def missing(self) -> Iterator[int]:
        """The segments that the slot does not hold, in order."""
        return (number for number, flags in enumerate(self._flags) if not flags & _IS_HELD)

    def received(self, number: int) -> None:
        """The part of segment `number` came whole, right or wrong; the tally holds its bytes."""
        self._flags[number] |= _WAS_RECEIVED
        self._append((_RECEIVED, number, self.tally.fetched_bytes), *self._again())

    def held(self, number: int) -> None:
        """Segment `number` is in the slot, durably."""
        self._flags[number] |= _IS_HELD
        self._append((_HELD, number, 0))

    def refused(self, number: int) -> None:
        """A delta's part of segment `number` is of no use here; the full payload's did not come yet."""
        self._flags[number] = self._flags[number] & ~_WAS_RECEIVED | _IS_REFUSED
        self._append((_REFUSED, number, 0))

    def lost(self, number: int) -> None:
        """Segment `number` is not in the slot after all."""
        self._flags[number] &= ~_IS_HELD
        self._append((_LOST, number, 0))

    def save_tally(self) -> None:
        """Notes the tally between two parts."""
        self._append((_FETCHED, 0, self.tally.fetched_bytes), *self._again())

    def _again(self) -> tuple[tuple[int, int, int], ...]:
        return ((_AGAIN, 0, self.tally.again_bytes),) if self.tally.again_bytes else ()

    def _append(self, *records: tuple[int, int, int]) -> None:
        self._store.append(PROGRESS, b"".join(_record(self._crc, *record) for record in records))

    def _rewrite(self) -> None:
        records = []
        for number, flags in enumerate(self._flags):
            if flags & _IS_REFUSED:
                records.append((_REFUSED, number, 0))
            if flags & _WAS_RECEIVED:
                records.append((_RECEIVED, number, self.tally.fetched_bytes))
            if flags & _IS_HELD:
                records.append((_HELD, number, 0))
        records += [(_FETCHED, 0, self.tally.fetched_bytes), *self._again()]
        self._store.write(PROGRESS, self._header + b"".join(_record(self._crc, *one) for one in records))

    def _load(self) -> bool:
        """Takes over what the log says of this slot and image; True if it is this assignment's too."""
        count = len(self._flags)
        size_bytes_max = (count * RECORDS_PER_SEGMENT_MAX + RECORDS_EXTRA_MAX) * RECORD_SIZE_BYTES
        try:
            data = self._store.read(PROGRESS, size_bytes_max) or b""
        except TwinlockError:
            return False  # unreadable or too long: start over, every segment is read again
        old = data[: _HEADER.size]
        if len(old) < _HEADER.size or old[:_OF_IMAGE] != self._header[:_OF_IMAGE]:
            return False
        self._replay(old, data[_HEADER.size :])
        return old == self._header

    def _replay(self, header: bytes, data: bytes) -> None:
        crc = zlib.crc32(header)
        for start in range(0, len(data) - RECORD_SIZE_BYTES + 1, RECORD_SIZE_BYTES):
            record = data[start : start + RECORD_SIZE_BYTES]
            word, value = _BODY.unpack_from(record)
            kind, number = word >> 24, word & 0xFFFFFF
            if record != _record(crc, kind, number, value) or number >= len(self._flags):
                return
            self._apply(kind, number, value)

    def _apply(self, kind: int, number: int, value: int) -> None:
        if kind == _HELD:
            self._flags[number] |= _IS_HELD
        elif kind == _LOST:
            self._flags[number] &= ~_IS_HELD
        elif kind == _RECEIVED:
            self._flags[number] |= _WAS_RECEIVED
        elif kind == _REFUSED:
            self._flags[number] = self._flags[number] & ~_WAS_RECEIVED | _IS_REFUSED
        if kind in (_RECEIVED, _FETCHED):
            self.tally.fetched_bytes = max(self.tally.fetched_bytes, value)
        elif kind == _AGAIN:
            self.tally.again_bytes = max(self.tally.again_bytes, value)


def tally_of(store: Store, job: Job) -> Tally:
    """What was fetched for this job so far, without touching anything; 0 when its log is gone."""
    count = -(-job.image_size_bytes // limits.SEGMENT_SIZE_BYTES)
    progress = Progress(store, _header(job, count), count)
    return progress.tally if progress._load() else Tally()


def _header(job: Job, count: int) -> bytes:
    assignment = hashlib.sha256(job.assignment_id.encode()).digest()[:8]
    fields = (_MAGIC, _VERSION, job.slot.encode(), count, job.image_sha256, assignment)
    body = _HEADER.pack(*fields, 0)[: _HEADER.size - 8]
    return _HEADER.pack(*fields, zlib.crc32(body))


def _record(crc: int, kind: int, number: int, value: int) -> bytes:
    body = _BODY.pack(kind << 24 | number, value)
    return body + _CRC.pack(zlib.crc32(body, crc))


def save_partial(store: Store, payload_sha256: bytes, number: int, data: memoryview) -> None:
    """Keeps the first bytes of part `number` for the next run. Durable."""
    if not 0 < len(data) <= limits.PART_SIZE_BYTES_MAX:
        return
    head = _PARTIAL_HEADER.pack(payload_sha256, number, zlib.crc32(data))
    store.write(PARTIAL, head + bytes(data))


def load_partial(store: Store, payload_sha256: bytes, number: int, into: memoryview) -> int:
    """Puts what `save_partial` kept of this part into the start of `into`; gives how many bytes that is.

    0 when there is nothing, it is damaged, or it is not shorter than the part.
    """
    try:
        data = store.read(PARTIAL, _PARTIAL_HEADER.size + limits.PART_SIZE_BYTES_MAX) or b""
    except TwinlockError:
        return 0
    kept = memoryview(data)[_PARTIAL_HEADER.size :]
    if not data.startswith(_PARTIAL_HEADER.pack(payload_sha256, number, zlib.crc32(kept))):
        return 0
    if len(kept) >= len(into):
        return 0
    into[: len(kept)] = kept
    return len(kept)
