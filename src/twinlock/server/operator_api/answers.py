"""From what the features know to what the operator API answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.server.clock import iso
from twinlock.server.operator_api import models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.core.protocol import PayloadOffer
    from twinlock.server.audit.chain import Entry
    from twinlock.server.devices.evidence import StoredEvidence
    from twinlock.server.devices.model import Indicator
    from twinlock.server.devices.ports import DeviceRow
    from twinlock.server.enrolment.tokens import EnrolmentToken
    from twinlock.server.releases.described import Described
    from twinlock.server.releases.ports import Release
    from twinlock.server.rollouts.model import AssignmentRow, Progress, StoredReport


def _iso(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms)


def enrolment_token(one: EnrolmentToken, now_ms: int) -> models.EnrolmentToken:
    return models.EnrolmentToken(
        name=one.name,
        created=iso(one.created_ms),
        created_by=one.created_by,
        expires=iso(one.expires_ms),
        state=one.state(now_ms),
        used_by=one.used_by or None,
        used=_iso(one.used_ms),
        revoked=_iso(one.revoked_ms),
    )


def release_details(found: Described) -> models.ReleaseDetails:
    made, sbom = found.details, found.details.sbom
    return models.ReleaseDetails(
        product=made.product,
        version=made.version,
        kind=made.kind,
        support_ends=made.support_ends,
        advisory=made.advisory,
        sbom=None
        if sbom is None
        else models.Sbom(
            kind=sbom.kind,
            spec_version=sbom.spec_version,
            sha256=sbom.sha256.hex(),
            size_bytes=sbom.size_bytes,
            components=sbom.components,
        ),
        details_sha256=found.sha256,
    )


def release(found: Release, offers: Sequence[PayloadOffer]) -> models.Release:
    payloads = [
        models.Payload(
            kind=one.kind,
            sha256=one.sha256.hex(),
            size_bytes=one.size_bytes,
            index_size_bytes=one.index_size_bytes,
            base_sha256=None if one.base_sha256 is None else one.base_sha256.hex(),
        )
        for one in offers
    ]
    return models.Release(
        product=found.product,
        version=found.version,
        counter=found.counter,
        hardware=list(found.hardware),
        manifest_sha256=found.manifest_sha256,
        image_sha256=found.image_sha256,
        image_size_bytes=found.image_size_bytes,
        notes=found.notes,
        published=iso(found.published_ms),
        published_by=found.published_by,
        unlisted=None if found.unlisted_ms is None else iso(found.unlisted_ms),
        payloads=payloads,
    )


def _device_fields(row: DeviceRow) -> dict[str, object]:
    known, facts = row.device, row.facts
    running = facts and models.Running(
        product=facts.product,
        version=facts.version,
        counter=facts.counter,
        image_sha256=facts.image_sha256,
        slot=facts.slot,
        floor=facts.floor,
        agent=facts.agent,
        state=facts.state,
        abilities=list(facts.abilities),
    )
    outcome = None
    if row.last_ms is not None:
        outcome = models.Outcome(
            state=row.last_outcome,
            version=row.last_version,
            code=row.last_code,
            detail=row.last_detail,
            received=iso(row.last_ms),
        )
    return {
        "device_id": known.device_id,
        "hardware": known.hardware,
        "status": known.status.value,
        "fingerprint": known.fingerprint,
        "enrolled": iso(known.enrolled_ms),
        "decided": _iso(known.decided_ms),
        "last_seen": _iso(row.seen_ms),
        "running": running,
        "last_outcome": outcome,
        "indicators": row.indicators,
    }


def device(row: DeviceRow) -> models.Device:
    return models.Device.model_validate(_device_fields(row))


def device_detail(
    row: DeviceRow,
    reports: Sequence[StoredReport],
    noted: Sequence[Indicator],
    evidence: Sequence[StoredEvidence],
) -> models.DeviceDetail:
    return models.DeviceDetail.model_validate(
        {
            **_device_fields(row),
            "reports": [report(one) for one in reports],
            "evidence": [
                models.Evidence(
                    name=one.name,
                    kind=one.kind,
                    assignment_id=one.assignment_id,
                    product=one.product,
                    version=one.version,
                    slot=one.slot,
                    device_time_s=one.time_s,
                    received=iso(one.received_ms),
                )
                for one in evidence
            ],
            "attack_indicators": [
                models.Indicator(
                    kind=one.kind,
                    key=one.key,
                    detail=one.detail,
                    first=iso(one.first_ms),
                    last=iso(one.last_ms),
                    count=one.count,
                )
                for one in noted
            ],
        }
    )


def report(one: StoredReport) -> models.Report:
    return models.Report(
        seq=one.seq,
        assignment_id=one.assignment_id,
        state=one.state,
        code=one.code,
        detail=one.detail,
        product=one.product,
        version=one.version,
        slot=one.slot,
        bytes_fetched=one.bytes_fetched,
        bytes_again=one.bytes_again,
        duration_s=one.duration_s,
        device_time_s=one.time_s,
        received=iso(one.received_ms),
    )


def _rollout_fields(found: Progress) -> dict[str, object]:
    one = found.rollout
    return {
        "rollout_id": one.rollout_id,
        "product": one.product,
        "version": one.version,
        "devices": "all" if one.everyone else "named",
        "status": found.status,
        "created": iso(one.created_ms),
        "created_by": one.created_by,
        "halted": _iso(one.halted_ms),
        "counts": dict(found.counts),
        "waiting": found.waiting,
    }


def rollout(found: Progress) -> models.Rollout:
    return models.Rollout.model_validate(_rollout_fields(found))


def rollout_detail(
    found: Progress, rows: Sequence[AssignmentRow], following: str | None
) -> models.RolloutDetail:
    assignments = [
        models.Assignment(
            assignment_id=one.assignment_id,
            device_id=one.device_id,
            state=one.summary.state,
            code=one.code,
            detail=one.detail,
            bytes_fetched=one.bytes_fetched,
            bytes_again=one.bytes_again,
            duration_s=one.duration_s,
            changed=iso(one.updated_ms),
        )
        for one in rows
    ]
    return models.RolloutDetail.model_validate(
        {**_rollout_fields(found), "assignments": assignments, "next": following}
    )


def audit_entry(one: Entry) -> models.AuditEntry:
    return models.AuditEntry(
        number=one.number,
        at=iso(one.at_ms),
        actor=one.actor,
        action=one.action,
        subject=one.subject,
        detail=one.detail,
        hash=one.hash,
    )
