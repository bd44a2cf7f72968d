"""Messages between device and server, version 1: JSON bodies under `/device/v1/`.

| call                                | body             | answer                                    |
|-------------------------------------|------------------|-------------------------------------------|
| POST /device/v1/enrol               | EnrolRequest     | EnrolAnswer                               |
| POST /device/v1/challenge           | ChallengeRequest | ChallengeAnswer                           |
| POST /device/v1/session             | SessionRequest   | SessionAnswer                             |
| POST /device/v1/poll                | PollRequest      | PollAnswer          (bearer token)        |
| POST /device/v1/reports             | ReportBatch      | ReportAnswer        (bearer token)        |
| POST /device/v1/evidence            | SignedEvidence   | EvidenceAnswer      (bearer token)        |
| POST /device/v1/director            | DirectorRequest  | DirectorAnswer      (bearer token)        |
| GET  /device/v1/payloads/SHA256     |                  | payload bytes, ranges (bearer token)      |
| GET  /repository/metadata/NAME.json |                  | signed metadata                           |
| GET  /repository/targets/PATH       |                  | manifests, named by hash                  |
| GET  /director/metadata/N.root.json |                  | the director's roots                      |

Every failure is answered with `ErrorAnswer` and a code of `twinlock.core.errors`. Unknown fields are refused
in both directions: a field with a meaning that one side does not know must not be ignored by it. So what
came later is sent only to who asks for it: a poll's answer has `director` for a device with that ability.
"""

from __future__ import annotations

from typing import Final, Literal, TypeVar

import msgspec

from twinlock.core import limits
from twinlock.core.errors import error

PREFIX: Final = "/device/v1"
REPOSITORY: Final = "/repository"
DIRECTOR: Final = "/director"
ABILITY_DIRECTOR: Final = "director"

Outcome = Literal["succeeded", "failed", "rolled_back", "lost"]
ReportState = Literal["downloading", "armed", "trial", "succeeded", "failed", "rolled_back", "idle"]
FINAL_STATES: Final[frozenset[str]] = frozenset({"succeeded", "failed", "rolled_back"})


class EnrolRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A device asks to be known. `proof` signs the first three (see `device_key.enrolment_bytes`).

    `certificate` is PEM: that of a fleet's CA for this key and device id, then those between it and a root.
    """

    device_id: str
    hardware: str
    public_key: str
    proof: bytes
    token: str | None = None
    certificate: str | None = None


class EnrolAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """`wait_s` is how long to wait before asking again while pending."""

    status: Literal["pending", "accepted", "rejected"]
    wait_s: int = 60


class ChallengeRequest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """First half of opening a session."""

    device_id: str


class ChallengeAnswer(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """An opaque challenge to be signed (see `device_key.session_bytes`)."""

    challenge: str
    expires_s: int


class SessionRequest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """Second half: the challenge, and the device key's signature over it."""

    device_id: str
    challenge: str
    signature: bytes


class SessionAnswer(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """A bearer token, opaque to the device, good for `expires_s` seconds."""

    token: str
    expires_s: int


class PollRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What the device runs now. `image_sha256` is of the committed slot, as its manifest said."""

    hardware: str
    slot: str
    product: str = ""
    version: str = ""
    counter: int = 0
    image_sha256: bytes | None = None
    floor: int = 0
    agent: str = ""
    state: str = "idle"
    abilities: tuple[str, ...] = ()


class PayloadOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One way to get the image: a payload file, where its index starts, and what base it needs."""

    kind: Literal["full", "delta"]
    sha256: bytes
    size_bytes: int
    index_size_bytes: int
    base_sha256: bytes | None = None


class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What the device shall run. The device trusts only what signed metadata says of this release."""

    id: str
    product: str
    version: str
    payloads: tuple[PayloadOffer, ...]


class DirectorRequest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """A device asks for the director's answer alone, as its health gate does."""


class DirectorAnswer(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What the director signed for this device: three metadata files, byte for byte (see `trust.director`).

    `root_version` is the director's newest root that the server has. It is not signed, and only spares the
    device the question whether there is a newer one than its own.
    """

    targets: bytes
    snapshot: bytes
    timestamp: bytes
    root_version: int = 0


class PollAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What to do now, and when to ask again. `director` is for devices with the ability of that name."""

    wait_s: int
    assignment: Assignment | None = None
    director: DirectorAnswer | None = None


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a device tells. `seq` rises by one for each report of a device, for ever; it never repeats.

    `bytes_fetched` counts body bytes received for this assignment, `bytes_again` those of them that had been
    received before. `time_s` is the device's trusted time in seconds since 1970, 0 when it has none.
    `noticed` counts, by error code, what the device refused since its last report because it was not what was
    signed.
    """

    device_id: str
    seq: int
    nonce: str
    state: ReportState
    assignment_id: str = ""
    product: str = ""
    version: str = ""
    slot: str = ""
    image_sha256: bytes | None = None
    code: str = ""
    detail: str = ""
    bytes_fetched: int = 0
    bytes_again: int = 0
    duration_s: float = 0.0
    time_s: int = 0
    noticed: dict[str, int] = {}  # msgspec copies it for each instance


class SignedReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """`body` is the JSON of a Report, `signature` the device key's over `device_key.report_bytes(body)`."""

    body: bytes
    signature: bytes


class ReportBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Reports in the order of their `seq`; at most `REPORTS_PER_BATCH_MAX`."""

    reports: tuple[SignedReport, ...]


class ReportAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The `seq` of every report in the batch that is durable on the server now, new or known before."""

    durable: tuple[int, ...]


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a boot left behind: the end of its journal, or the kernel's last words (pstore).

    `data` is one zstd frame of UTF-8 text, at most `EVIDENCE_SIZE_BYTES_MAX`, unpacked at most
    `EVIDENCE_TEXT_SIZE_BYTES_MAX`. `product`, `version`, `slot` and `assignment_id` say which trial it is
    about, as far as that is known. `time_s` is when it was collected, on the device's trusted time. The name
    of a piece is the SHA-256 of the message's bytes: the same piece sent twice is kept once.
    """

    device_id: str
    kind: Literal["journal", "pstore"]
    data: bytes
    assignment_id: str = ""
    product: str = ""
    version: str = ""
    slot: str = ""
    time_s: int = 0


class SignedEvidence(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """`body` is the JSON of an Evidence, `signature` the device key's over `device_key.evidence_bytes`."""

    body: bytes
    signature: bytes


class EvidenceAnswer(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """The name of the piece that is durable on the server now: lower-case hex, 64 digits."""

    durable: str


class ErrorBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One failure, as `twinlock.core.errors` describes it."""

    code: str
    what: str
    hint: str = ""


class ErrorAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The body of every answer with a status of 400 or more."""

    error: ErrorBody


M = TypeVar("M", bound=msgspec.Struct)


def encode(message: msgspec.Struct) -> bytes:
    """The message as JSON."""
    return msgspec.json.encode(message)


def decode_request(data: bytes, kind: type[M], size_bytes_max: int = limits.MESSAGE_SIZE_BYTES_MAX) -> M:
    """A message that a device sent. Raises InputError `request-too-large`, `request-malformed`."""
    if len(data) > size_bytes_max:
        raise error("request-too-large", f"the body has more than {size_bytes_max} bytes")
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("request-malformed", f"the body is no {kind.__name__}: {problem}") from problem


def decode_answer(data: bytes, kind: type[M], size_bytes_max: int = limits.MESSAGE_SIZE_BYTES_MAX) -> M:
    """A message that a server sent. Raises TransportError `answer-malformed`."""
    if len(data) > size_bytes_max:
        raise error("answer-malformed", f"the answer has more than {size_bytes_max} bytes")
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("answer-malformed", f"the answer is no {kind.__name__}: {problem}") from problem
