"""Enrolling a device and opening its sessions: what `decide` and `sessions` say, in a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twinlock.core.device_key import DevicePublicKey, enrolment_bytes, session_bytes
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import check_device_id, check_name
from twinlock.server.audit.chain import append
from twinlock.server.devices.model import INDICATOR_ENROLMENT, Device, Status
from twinlock.server.enrolment import tokens
from twinlock.server.enrolment.decide import Action, Applicant, decide

if TYPE_CHECKING:
    from twinlock.core.protocol import EnrolRequest, SessionRequest
    from twinlock.server.enrolment.sessions import Challenge
    from twinlock.server.ports import Transaction

PENDING_DEVICES_MAX: Final = 10_000
ACTOR_DEVICE: Final = "device"


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The outcome of an enrolment: a status to be told, or a refusal to be raised once it is noted."""

    status: Status
    refused: TwinlockError | None = None


def check_proof(request: EnrolRequest) -> DevicePublicKey:
    """The applicant's key, its proof checked: whoever sent this holds the private half.

    Raises InputError `input-invalid` for bad names or keys, TrustError `signature-invalid`.
    """
    check_device_id(request.device_id)
    check_name(request.hardware, "hardware id")
    key = DevicePublicKey(request.public_key)
    signed = enrolment_bytes(request.device_id, request.hardware, request.public_key)
    key.verify(request.proof, signed, f"the enrolment of {request.device_id}")
    return key


def enrol(
    transaction: Transaction,
    request: EnrolRequest,
    key: DevicePublicKey,
    now_ms: int,
    *,
    needs_token: bool = False,
    certified: bool = False,
) -> Enrolled:
    """Makes the applicant a device, or finds that it is one; see the table in `decide`.

    `certified`: the fleet's CA spoke for this key and device id.

    Raises PolicyError `unauthorised` for a token that is not good, and for none where a new device needs one;
    TransportError `server-busy` when too many devices wait for the operator.
    """
    device_id = request.device_id
    applicant = Applicant(device_id, request.hardware, key.fingerprint, certified)
    shown = None
    if request.token is not None:
        shown = tokens.check(transaction, request.token, device_id, now_ms)
    present = transaction.devices.get(device_id, lock=True)
    preauthorised = transaction.enrolment.preauthorised(device_id)
    verdict = decide(present, preauthorised, applicant)
    if verdict.action is Action.KEEP:
        return Enrolled(verdict.status)
    if verdict.action is Action.CONFLICT:
        detail = f"hardware {applicant.hardware}: {verdict.why}"
        transaction.devices.note(device_id, INDICATOR_ENROLMENT, key.fingerprint, detail, now_ms)
        refused = error("enrolment-conflict", f"{device_id}: {verdict.why}")
        return Enrolled(Status.REJECTED, refused)
    if needs_token and shown is None and verdict.status is Status.PENDING:
        raise error(
            "unauthorised",
            f"{device_id} is new here and showed no enrolment token",
            hint="give it one: `twinlock device token`, then `twinlock-agent enrol --token`",
        )
    if verdict.status is Status.PENDING and transaction.devices.count(Status.PENDING) >= PENDING_DEVICES_MAX:
        raise error("server-busy", "too many devices wait for the operator", hint="accept or reject some")
    accepted = verdict.status is Status.ACCEPTED
    device = Device(
        device_id,
        request.hardware,
        key.pem,
        key.fingerprint,
        verdict.status,
        enrolled_ms=now_ms,
        decided_ms=now_ms if accepted else None,
    )
    if verdict.action is Action.ADD:
        transaction.devices.add(device)
    else:
        transaction.devices.replace(device)
    if accepted:
        transaction.enrolment.use_preauthorisation(device_id)
    how = ""
    if shown is not None:
        transaction.enrolment.use_token(shown.name, device_id, now_ms)
        how = f"; token {shown.name}"
    action = "device-enrolled"
    if accepted:
        action += "-preauthorised" if preauthorised is not None else "-certified"
    append(transaction.audit, now_ms, ACTOR_DEVICE, action, device_id, f"key {key.fingerprint}{how}")
    return Enrolled(verdict.status)


def check_status(status: Status, device_id: str) -> None:
    """Raises PolicyError `enrolment-pending` or `enrolment-rejected` unless the device is accepted."""
    if status is Status.PENDING:
        raise error("enrolment-pending", f"{device_id} waits for the operator")
    if status is Status.REJECTED:
        raise error("enrolment-rejected", f"{device_id} was rejected by the operator")


def open_session(
    transaction: Transaction, request: SessionRequest, challenge: Challenge, now_us: int
) -> Device:
    """The accepted device that answered a challenge made for it. Each challenge serves once.

    Raises PolicyError `unauthorised` for an unknown device and for a signature that is not its own (the two
    look the same, so that ids cannot be probed), `enrolment-pending`, `enrolment-rejected`, and
    `session-expired` for a challenge that was answered before.
    """
    device = transaction.devices.get(request.device_id)
    stranger = error("unauthorised", f"{request.device_id} did not prove that it is enrolled here")
    if device is None:
        raise stranger
    signed = session_bytes(request.device_id, request.challenge)
    try:
        DevicePublicKey(device.public_key).verify(request.signature, signed, "the session")
    except TwinlockError as problem:
        raise stranger from problem
    check_status(device.status, device.device_id)
    if not transaction.devices.raise_session_floor(device.device_id, challenge.issued_us, now_us):
        raise error(
            "session-expired", "this challenge, or a newer one, was answered", hint="ask for a new challenge"
        )
    return device
