"""The calls of the operator API. Each is short: the feature decides, `answers` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from twinlock import __version__
from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.names import check_device_id, check_name, check_sha256_hex
from twinlock.core.protocol import PayloadOffer
from twinlock.server.clock import iso, now_ms
from twinlock.server.devices import evidence
from twinlock.server.devices import service as devices
from twinlock.server.devices.model import Status
from twinlock.server.enrolment import tokens
from twinlock.server.http_answers import HANDLERS, fault, refusal
from twinlock.server.http_bodies import BoundedBodies
from twinlock.server.operator_api import answers, models
from twinlock.server.operator_api.guard import Guard
from twinlock.server.operator_api.uploads import receive
from twinlock.server.releases.chain import Offered
from twinlock.server.releases.described import Describer
from twinlock.server.rollouts import service as rollouts

if TYPE_CHECKING:
    from twinlock.server.clock import Clock
    from twinlock.server.ports import Database
    from twinlock.server.releases.ports import PayloadFolder
    from twinlock.server.releases.publish import Publisher
    from twinlock.server.settings import Settings

PREFIX: Final = "/api/v1"
PAGE_MAX: Final = 1000
REPORTS_SHOWN: Final = 50
LIST_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class Parts:
    """What the calls work with."""

    database: Database
    payloads: PayloadFolder
    publisher: Publisher
    settings: Settings
    clock: Clock


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


def _operator(request: Request) -> str:
    """The operator's name, as `Guard` found it."""
    name: str = request.state.operator
    return name


PartsHere = Annotated[Parts, Depends(_parts)]
Operator = Annotated[str, Depends(_operator)]
After = Annotated[str, Query(max_length=limits.DEVICE_ID_LENGTH_MAX)]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]

router = APIRouter()


@router.get("/health")
def health(parts: PartsHere) -> models.Health:
    """Whether the server and its database answer. Needs no token."""
    with parts.database.read() as transaction:
        transaction.operators.all()
    return models.Health(status="ok", version=__version__)


@router.head("/payloads/{sha256}", response_class=Response)
def payload_size(sha256: str, parts: PartsHere) -> Response:
    """Whether a payload is here: its size in Content-Length, or 404."""
    size_bytes = parts.payloads.size_bytes(check_sha256_hex(sha256))
    if size_bytes is None:
        raise error("not-found", f"this server has no payload {sha256}")
    return Response(headers={"Content-Length": str(size_bytes)}, media_type="application/octet-stream")


@router.put("/payloads/{sha256}", status_code=201, responses={200: {"model": models.Uploaded}})
async def put_payload(sha256: str, request: Request, response: Response, parts: PartsHere) -> models.Uploaded:
    """Keeps the body, whose SHA-256 is in the path. 201 when it is new, 200 when it was here."""
    check_sha256_hex(sha256)
    size_bytes, is_new = await receive(request, parts.payloads, sha256, parts.settings.payload_size_bytes_max)
    response.status_code = 201 if is_new else 200
    return models.Uploaded(sha256=sha256, size_bytes=size_bytes)


@router.post("/releases", status_code=201)
def publish_release(body: models.ReleaseBody, parts: PartsHere, operator: Operator) -> models.Release:
    """Publishes a release: everything is verified from the server's pinned root, or nothing is kept."""
    offers = [
        PayloadOffer(
            kind=one.kind,
            sha256=bytes.fromhex(one.sha256),
            size_bytes=one.size_bytes,
            index_size_bytes=one.index_size_bytes,
            base_sha256=None if one.base_sha256 is None else bytes.fromhex(one.base_sha256),
        )
        for one in body.payloads
    ]
    manifest = models.unbase64(body.manifest, "the manifest")
    made = parts.publisher.release(_offered(body.metadata), manifest, offers, operator)
    return release(made.product, made.version, parts)


@router.post("/metadata")
def publish_metadata(body: models.MetadataBody, parts: PartsHere, operator: Operator) -> models.Published:
    """Publishes metadata alone: a refresh before it expires, or new keys."""
    trusted = parts.publisher.metadata(_offered(body), operator).trusted
    assert trusted.timestamp is not None
    assert trusted.snapshot is not None
    assert trusted.targets is not None
    return models.Published(
        root_version=trusted.root.version,
        timestamp_version=trusted.timestamp.version,
        snapshot_version=trusted.snapshot.version,
        targets_version=trusted.targets.version,
    )


def _offered(body: models.MetadataBody) -> Offered:
    return Offered(
        roots=tuple(models.unbase64(one, "a root") for one in body.roots),
        timestamp=models.unbase64(body.timestamp, "the timestamp"),
        snapshot=models.unbase64(body.snapshot, "the snapshot"),
        targets=models.unbase64(body.targets, "the targets"),
        delegated={role: models.unbase64(data, "a list") for role, data in body.delegated.items()},
    )


@router.get("/releases")
def list_releases(parts: PartsHere) -> models.Releases:
    """The newest releases, newest first."""
    with parts.database.read() as transaction:
        found = [
            answers.release(one, transaction.releases.payloads(one.release_id))
            for one in transaction.releases.newest(LIST_MAX)
        ]
    return models.Releases(releases=found)


@router.get("/releases/{product}/{version}")
def release(product: str, version: str, parts: PartsHere) -> models.Release:
    """One release."""
    with parts.database.read() as transaction:
        found = rollouts.known_release(transaction, product, version)
        return answers.release(found, transaction.releases.payloads(found.release_id))


@router.get("/releases/{product}/{version}/details")
def release_details(product: str, version: str, parts: PartsHere) -> models.ReleaseDetails:
    """What is signed of a release for people: its mark, advisory, end of support and SBOM; verified anew."""
    _known_release(parts, product, version)
    found = _describer(parts).describe(product, version)
    if found is None:
        raise error("not-found", f"no details are signed of {product} {version}")
    return answers.release_details(found)


@router.get("/releases/{product}/{version}/sbom")
def release_sbom(product: str, version: str, parts: PartsHere) -> Response:
    """The release's SBOM, byte for byte as it was signed."""
    _known_release(parts, product, version)
    data = _describer(parts).sbom(product, version)
    if data is None:
        raise error("not-found", f"no SBOM is signed of {product} {version}")
    headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type="application/json", headers=headers)


def _known_release(parts: Parts, product: str, version: str) -> None:
    with parts.database.read() as transaction:
        rollouts.known_release(transaction, product, version)


def _describer(parts: Parts) -> Describer:
    return Describer(parts.publisher.folder, parts.payloads, parts.publisher.pinned)


@router.get("/fleet/{product}")
def fleet(product: str, parts: PartsHere, limit: Limit = 100) -> models.Fleet:
    """What the fleet runs of a product: the images from which deltas are worth making."""
    with parts.database.read() as transaction:
        found = transaction.devices.in_use(check_name(product, "product"), limit)
    return models.Fleet(
        product=product,
        images=[
            models.InUse(version=one.version, image_sha256=one.image_sha256, devices=one.devices)
            for one in found
        ],
    )


@router.get("/devices")
def list_devices(
    parts: PartsHere, status: Status | None = None, after: After = "", limit: Limit = 100
) -> models.Devices:
    """Devices in order of id; `next` is what to give as `after` for the next page."""
    with parts.database.read() as transaction:
        rows = transaction.devices.rows(status, after, limit + 1)
    following = rows[limit - 1].device.device_id if len(rows) > limit else None
    return models.Devices(devices=[answers.device(row) for row in rows[:limit]], next=following)


@router.get("/devices/{device_id}")
def device(device_id: str, parts: PartsHere) -> models.DeviceDetail:
    """One device with its last reports and what was noted of it."""
    with parts.database.read() as transaction:
        devices.known(transaction, device_id)
        row = transaction.devices.row(device_id)
        assert row is not None
        reports = transaction.reports.of_device(device_id, REPORTS_SHOWN)
        pieces = transaction.evidence.of_device(device_id)
        return answers.device_detail(row, reports, transaction.devices.indicators(device_id), pieces)


@router.get("/devices/{device_id}/evidence/{name}")
def device_evidence(device_id: str, name: str, parts: PartsHere) -> models.EvidenceText:
    """What a piece of evidence says: text that the device wrote, as it wrote it."""
    check_sha256_hex(name)
    with parts.database.read() as transaction:
        devices.known(transaction, device_id)
        return models.EvidenceText(name=name, text=evidence.text(transaction, device_id, name))


@router.get("/devices/{device_id}/reports")
def device_reports(device_id: str, parts: PartsHere, limit: Limit = 100) -> models.Reports:
    """A device's reports, newest first."""
    with parts.database.read() as transaction:
        devices.known(transaction, device_id)
        found = transaction.reports.of_device(device_id, limit)
    return models.Reports(reports=[answers.report(one) for one in found])


@router.post("/devices/preauthorise")
def preauthorise(body: models.PreauthoriseBody, parts: PartsHere, operator: Operator) -> models.Preauthorised:
    """Names the key of a device that will come; one that waits with this key is accepted at once."""
    with parts.database.write() as transaction:
        found = devices.preauthorise(
            transaction, body.device_id, body.fingerprint, operator, now_ms(parts.clock)
        )
    accepted = found is not None and found.fingerprint == body.fingerprint
    return models.Preauthorised(
        device_id=body.device_id,
        fingerprint=body.fingerprint,
        status=Status.ACCEPTED.value if accepted else "preauthorised",
    )


@router.post("/enrolment-tokens", status_code=201)
def make_enrolment_token(
    body: models.EnrolmentTokenBody, parts: PartsHere, operator: Operator
) -> models.NewEnrolmentToken:
    """Makes a token that one new device shows once when it enrols; the operator still accepts the device."""
    with parts.database.write() as transaction:
        token, expires_ms = tokens.make(
            transaction, body.name, body.lifetime_s, operator, now_ms(parts.clock)
        )
    return models.NewEnrolmentToken(name=body.name, token=token, expires=iso(expires_ms))


@router.get("/enrolment-tokens")
def list_enrolment_tokens(parts: PartsHere) -> models.EnrolmentTokens:
    """The newest enrolment tokens, newest first: their state, and which devices they served."""
    with parts.database.read() as transaction:
        found = tokens.tokens(transaction, LIST_MAX)
    at_ms = now_ms(parts.clock)
    return models.EnrolmentTokens(tokens=[answers.enrolment_token(one, at_ms) for one in found])


@router.post("/enrolment-tokens/{name}/revoke")
def revoke_enrolment_token(name: str, parts: PartsHere, operator: Operator) -> models.EnrolmentToken:
    """Takes a token back that no device has used; one that has served is no longer of use to anybody else."""
    at_ms = now_ms(parts.clock)
    with parts.database.write() as transaction:
        found = tokens.revoke(transaction, name, operator, at_ms)
    return answers.enrolment_token(found, at_ms)


@router.post("/devices/{device_id}/accept")
def accept(device_id: str, parts: PartsHere, operator: Operator) -> models.Device:
    """Lets a device take part."""
    return _decide(device_id, Status.ACCEPTED, parts, operator)


@router.post("/devices/{device_id}/reject")
def reject(device_id: str, parts: PartsHere, operator: Operator) -> models.Device:
    """Shuts a device out, from its next request on; an accepted one too."""
    return _decide(device_id, Status.REJECTED, parts, operator)


def _decide(device_id: str, status: Status, parts: Parts, operator: str) -> models.Device:
    check_device_id(device_id)
    with parts.database.write() as transaction:
        devices.decide(transaction, device_id, status, operator, now_ms(parts.clock))
        row = transaction.devices.row(device_id)
    assert row is not None
    return answers.device(row)


@router.post("/rollouts", status_code=201)
def create_rollout(body: models.RolloutBody, parts: PartsHere, operator: Operator) -> models.Rollout:
    """Brings a release to devices; a newer rollout takes the place of one that a device has not ended."""
    with parts.database.write() as transaction:
        made = rollouts.create(
            transaction, body.product, body.version, body.devices, operator, now_ms(parts.clock)
        )
        progress = transaction.rollouts.progress(made.number)
    assert progress is not None
    return answers.rollout(progress)


@router.get("/rollouts")
def list_rollouts(parts: PartsHere) -> models.Rollouts:
    """The newest rollouts, newest first."""
    with parts.database.read() as transaction:
        found = transaction.rollouts.newest(LIST_MAX)
    return models.Rollouts(rollouts=[answers.rollout(one) for one in found])


@router.get("/rollouts/{rollout_id}")
def rollout(
    rollout_id: str, parts: PartsHere, after: After = "", limit: Limit = PAGE_MAX
) -> models.RolloutDetail:
    """One rollout with its assignments in order of device id."""
    number = rollouts.number_of(rollout_id)
    with parts.database.read() as transaction:
        found = transaction.rollouts.progress(number)
        if found is None:
            raise error("not-found", f"no rollout is called {rollout_id!r}")
        rows = transaction.rollouts.assignments(number, after, limit + 1)
    following = rows[limit - 1].device_id if len(rows) > limit else None
    return answers.rollout_detail(found, rows[:limit], following)


@router.post("/rollouts/{rollout_id}/halt")
def halt(rollout_id: str, parts: PartsHere, operator: Operator) -> models.Rollout:
    """Stops a rollout for good: no device is offered the release any more."""
    with parts.database.write() as transaction:
        halted = rollouts.halt(transaction, rollout_id, operator, now_ms(parts.clock))
        progress = transaction.rollouts.progress(halted.number)
    assert progress is not None
    return answers.rollout(progress)


@router.get("/audit")
def audit(
    parts: PartsHere, after: Annotated[int, Query(ge=0, le=1 << 31)] = 0, limit: Limit = 100
) -> models.Audit:
    """Who did what, oldest first; each entry's hash covers the one before."""
    with parts.database.read() as transaction:
        entries = transaction.audit.entries(after, limit + 1)
    following = entries[limit - 1].number if len(entries) > limit else None
    return models.Audit(entries=[answers.audit_entry(one) for one in entries[:limit]], next=following)


async def _on_invalid(request: Request, problem: Exception) -> Response:
    """What pydantic found, in one line, without echoing what was sent."""
    assert isinstance(problem, RequestValidationError)
    first = problem.errors()[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    more = len(problem.errors()) - 1
    text = f"{where}: {first['msg'][:200]}" + (f" (and {more} more)" if more else "")
    return refusal(error("request-malformed", text))


async def _on_fault(request: Request, problem: Exception) -> Response:
    return fault()


def operator_app(parts: Parts) -> FastAPI:
    """The application under /api/v1; its description is at /api/v1/openapi.json."""
    handlers: dict[Any, Any] = {**HANDLERS, RequestValidationError: _on_invalid, Exception: _on_fault}
    app = FastAPI(
        title="Twinlock operator API",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=handlers,
        default_response_class=JSONResponse,
        responses={"4XX": {"model": models.Error}, "5XX": {"model": models.Error}},
    )
    app.state.parts = parts
    app.include_router(router)
    app.add_middleware(BoundedBodies, size_bytes_max=models.PUBLICATION_SIZE_BYTES_MAX)
    app.add_middleware(Guard, database=parts.database)
    return app
