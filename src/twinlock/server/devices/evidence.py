"""Evidence that devices send: what a trial or a panic left behind. Kept as it came, bounded for each device.

A piece is kept whole or refused: its signature, its bounds and that it unpacks are checked first. One that is
known already is acknowledged again. Beyond `KEPT_PER_DEVICE` the oldest goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from twinlock.core import limits
from twinlock.core.device_key import DevicePublicKey, evidence_bytes
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import RECOVERY, SLOTS, check_name, check_version
from twinlock.core.protocol import Evidence, SignedEvidence
from twinlock.core.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

if TYPE_CHECKING:
    from twinlock.server.ports import Transaction

KEPT_PER_DEVICE: Final = 16
BODY_SIZE_BYTES_MAX: Final = limits.EVIDENCE_SIZE_BYTES_MAX * 3 // 2 + 4096  # base64, and the other fields
MESSAGE_SIZE_BYTES_MAX: Final = BODY_SIZE_BYTES_MAX * 3 // 2 + 4096
_ASSIGNMENT_ID_LENGTH_MAX: Final = limits.DEVICE_ID_LENGTH_MAX + 24
_WINDOW_LOG_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class CheckedEvidence:
    """A piece whose signature was checked; `name` is the SHA-256 of `body` in hex."""

    name: str
    said: Evidence
    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class StoredEvidence:
    """A piece as people list it; times as in `model`."""

    name: str
    kind: str
    assignment_id: str
    product: str
    version: str
    slot: str
    time_s: int
    received_ms: int


class EvidenceStore(Protocol):
    """Pieces of evidence in one transaction."""

    def add(self, piece: CheckedEvidence, now_ms: int) -> None:
        """Keeps a piece; one that is there already stays as it is."""
        ...

    def prune(self, device_id: str, keep: int) -> None:
        """Forgets all but the `keep` pieces that came last."""
        ...

    def of_device(self, device_id: str) -> Sequence[StoredEvidence]:
        """All pieces of a device, newest first."""
        ...

    def body(self, device_id: str, name: str) -> bytes | None:
        """One piece as it came."""
        ...


def check(message: SignedEvidence, device_id: str, public_key: str) -> CheckedEvidence:
    """The piece, signed by this device's key and within its bounds.

    Raises TrustError `signature-invalid`, InputError `request-malformed`, `request-too-large`.
    """
    if len(message.body) > BODY_SIZE_BYTES_MAX:
        raise error("request-too-large", f"the evidence has more than {BODY_SIZE_BYTES_MAX} bytes")
    DevicePublicKey(public_key).verify(message.signature, evidence_bytes(message.body), "the evidence")
    try:
        said = msgspec.json.decode(message.body, type=Evidence, strict=True)
        if said.product:
            check_name(said.product, "product")
        if said.version:
            check_version(said.version)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TwinlockError) as problem:
        raise error("request-malformed", f"the evidence does not parse: {problem}") from problem
    rules = (
        (said.device_id == device_id, "it is of another device than its session"),
        (len(said.data) <= limits.EVIDENCE_SIZE_BYTES_MAX, "it is too large"),
        (len(said.assignment_id) <= _ASSIGNMENT_ID_LENGTH_MAX, "the assignment's id is too long"),
        (said.slot in (*SLOTS, RECOVERY, ""), "it names no slot"),
        (0 <= said.time_s <= 1 << 40, "time_s is out of bounds"),
    )
    for holds, what in rules:
        if not holds:
            raise error("request-malformed", f"evidence: {what}")
    text_of(said)
    return CheckedEvidence(hashlib.sha256(message.body).hexdigest(), said, message.body, message.signature)


def text_of(piece: Evidence) -> str:
    """What a piece says, unpacked in bounded memory. Raises InputError `request-malformed`."""
    unpacker = ZstdDecompressor(options={DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})
    most = limits.EVIDENCE_TEXT_SIZE_BYTES_MAX
    try:
        data = unpacker.decompress(piece.data, max_length=most + 1)
    except ZstdError as problem:
        raise error("request-malformed", f"the evidence does not unpack: {problem}") from problem
    if len(data) > most or not unpacker.eof or unpacker.unused_data:
        raise error("request-malformed", f"the evidence is not one frame of at most {most} bytes of text")
    return data.decode("utf-8", "replace")


def record(transaction: Transaction, device_id: str, piece: CheckedEvidence, now_ms: int) -> str:
    """Keeps a piece; its name."""
    transaction.devices.get(device_id, lock=True)
    transaction.evidence.add(piece, now_ms)
    transaction.evidence.prune(device_id, KEPT_PER_DEVICE)
    return piece.name


def text(transaction: Transaction, device_id: str, name: str) -> str:
    """What one piece of a device says. Raises InputError `not-found`."""
    body = transaction.evidence.body(device_id, name)
    if body is None:
        raise error("not-found", f"{device_id} has sent no evidence called {name[:64]!r}")
    return text_of(msgspec.json.decode(body, type=Evidence))
