"""Bodies and answers of the operator API, version 1. Unknown fields are refused; times are ISO 8601, UTC."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.server.enrolment import tokens
from twinlock.server.releases.chain import DELEGATED_PER_PUBLICATION_MAX, ROOTS_PER_PUBLICATION_MAX
from twinlock.server.releases.publish import PAYLOADS_PER_RELEASE_MAX
from twinlock.server.rollouts.model import DEVICES_PER_ROLLOUT_MAX

# Metadata and manifest travel as base64 inside JSON.
PUBLICATION_SIZE_BYTES_MAX: Final = 32 * limits.MIB
_TEXT_MAX: Final = 256


class Body(BaseModel):
    """What a program sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Answer(BaseModel):
    """What a program gets."""

    model_config = ConfigDict(frozen=True)


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Base64 = Annotated[str, Field(max_length=PUBLICATION_SIZE_BYTES_MAX)]
Size = Annotated[int, Field(ge=0, le=limits.PAYLOAD_SIZE_BYTES_MAX)]
Name = Annotated[str, Field(min_length=1, max_length=limits.NAME_LENGTH_MAX)]


def unbase64(text: str, what: str) -> bytes:
    """The bytes. Raises InputError `request-malformed`."""
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as problem:
        raise error("request-malformed", f"{what} is not base64") from problem


class MetadataBody(Body):
    """Signed metadata, each file as base64 of its bytes; `roots` in any order."""

    roots: Annotated[list[Base64], Field(max_length=ROOTS_PER_PUBLICATION_MAX)] = []
    timestamp: Base64
    snapshot: Base64
    targets: Base64
    delegated: Annotated[
        dict[Annotated[str, Field(max_length=limits.ROLE_FILE_NAME_LENGTH_MAX)], Base64],
        Field(max_length=DELEGATED_PER_PUBLICATION_MAX),
    ] = {}


class PayloadBody(Body):
    """A payload that was uploaded before."""

    kind: Literal["full", "delta"]
    sha256: Sha256
    size_bytes: Size
    index_size_bytes: Size
    base_sha256: Sha256 | None = None


class ReleaseBody(Body):
    """A release to be published: the metadata that lists it, its manifest (base64), its payloads."""

    metadata: MetadataBody
    manifest: Base64
    payloads: Annotated[list[PayloadBody], Field(min_length=1, max_length=PAYLOADS_PER_RELEASE_MAX)]


class PreauthoriseBody(Body):
    """The key that a device will enrol with: SHA-256 of its public key's DER form, in hex."""

    device_id: Annotated[str, Field(min_length=1, max_length=limits.DEVICE_ID_LENGTH_MAX)]
    fingerprint: Sha256


class EnrolmentTokenBody(Body):
    """A one-time enrolment token to be made: what to call it, and how long it may be used."""

    name: Name
    lifetime_s: Annotated[int, Field(ge=tokens.LIFETIME_S_MIN, le=tokens.LIFETIME_S_MAX)]


class RolloutBody(Body):
    """A release for the named devices, or for all that it fits."""

    product: Name
    version: Name
    devices: (
        Literal["all"]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=limits.DEVICE_ID_LENGTH_MAX)]],
            Field(min_length=1, max_length=DEVICES_PER_ROLLOUT_MAX),
        ]
    )


class Health(Answer):
    """The server answers, and its database does."""

    status: Literal["ok"]
    version: str


class Payload(Answer):
    kind: str
    sha256: str
    size_bytes: int
    index_size_bytes: int
    base_sha256: str | None


class Release(Answer):
    """A published release; `unlisted` is since when the signed metadata names it no more."""

    product: str
    version: str
    counter: int
    hardware: list[str]
    manifest_sha256: str
    image_sha256: str
    image_size_bytes: int
    notes: str
    published: str
    published_by: str
    unlisted: str | None
    payloads: list[Payload]


class Sbom(Answer):
    """A software bill of materials; the file itself is a call of its own."""

    kind: str
    spec_version: str
    sha256: str
    size_bytes: int
    components: int


class ReleaseDetails(Answer):
    """What is signed of a release for people; `support_ends` is a day, `kind` security or feature."""

    product: str
    version: str
    kind: str
    support_ends: str | None
    advisory: str
    sbom: Sbom | None
    details_sha256: str


class Published(Answer):
    """What is served now."""

    root_version: int
    timestamp_version: int
    snapshot_version: int
    targets_version: int


class Uploaded(Answer):
    sha256: str
    size_bytes: int


class Running(Answer):
    """What a device said of itself in its last poll."""

    product: str
    version: str
    counter: int
    image_sha256: str
    slot: str
    floor: int
    agent: str
    state: str
    abilities: list[str]


class InUse(Answer):
    """How many accepted devices say that they run an image."""

    version: str
    image_sha256: str
    devices: int


class Fleet(Answer):
    """What the fleet runs of one product, the most used image first."""

    product: str
    images: list[InUse]


class Outcome(Answer):
    """A device's last final report."""

    state: str
    version: str
    code: str
    detail: str
    received: str


class Device(Answer):
    device_id: str
    hardware: str
    status: str
    fingerprint: str
    enrolled: str
    decided: str | None
    last_seen: str | None
    running: Running | None
    last_outcome: Outcome | None
    indicators: int


class Indicator(Answer):
    """Something that an honest device does not do."""

    kind: str
    key: str
    detail: str
    first: str
    last: str
    count: int


class Report(Answer):
    seq: int
    assignment_id: str
    state: str
    code: str
    detail: str
    product: str
    version: str
    slot: str
    bytes_fetched: int
    bytes_again: int
    duration_s: float
    device_time_s: int
    received: str


class Evidence(Answer):
    """What a trial or a panic left behind; its text is at /devices/ID/evidence/NAME."""

    name: str
    kind: str
    assignment_id: str
    product: str
    version: str
    slot: str
    device_time_s: int
    received: str


class EvidenceText(Answer):
    name: str
    text: str


class DeviceDetail(Device):
    reports: list[Report]
    evidence: list[Evidence]
    attack_indicators: list[Indicator]


class Preauthorised(Answer):
    device_id: str
    fingerprint: str
    status: str


class NewEnrolmentToken(Answer):
    """`token` is shown this once."""

    name: str
    token: str
    expires: str


class EnrolmentToken(Answer):
    """`used_by` is the device that it served. `state` is open, used, revoked, or ended unused."""

    name: str
    created: str
    created_by: str
    expires: str
    state: tokens.State
    used_by: str | None
    used: str | None
    revoked: str | None


class EnrolmentTokens(Answer):
    tokens: list[EnrolmentToken]


class Assignment(Answer):
    assignment_id: str
    device_id: str
    state: str
    code: str
    detail: str
    bytes_fetched: int
    bytes_again: int
    duration_s: float
    changed: str


class Rollout(Answer):
    """`counts` has the number of assignments per state; `waiting` counts devices that will be matched.

    `finished`: every named device has an outcome; `superseded`: a newer rollout to all takes its devices.
    """

    rollout_id: str
    product: str
    version: str
    devices: Literal["all", "named"]
    status: Literal["active", "finished", "superseded", "halted"]
    created: str
    created_by: str
    halted: str | None
    counts: dict[str, int]
    waiting: int


class RolloutDetail(Rollout):
    assignments: list[Assignment]
    next: str | None


class AuditEntry(Answer):
    number: int
    at: str
    actor: str
    action: str
    subject: str
    detail: str
    hash: str


class Releases(Answer):
    releases: list[Release]


class Devices(Answer):
    devices: list[Device]
    next: str | None


class Reports(Answer):
    reports: list[Report]


class Rollouts(Answer):
    rollouts: list[Rollout]


class Audit(Answer):
    entries: list[AuditEntry]
    next: int | None


class ErrorDetail(Answer):
    code: str
    what: str
    hint: str


class Error(Answer):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail
