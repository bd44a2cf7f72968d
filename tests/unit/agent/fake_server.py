"""A server in memory for the metadata process: device protocol and repository behind the network port."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from tests.conformance.repository import Repository
from tests.unit.agent.fakes import FakeResponse, Packed
from twinlock.agent.ports import Request
from twinlock.core import manifest, protocol
from twinlock.core.device_key import (
    DevicePublicKey,
    enrolment_bytes,
    evidence_bytes,
    report_bytes,
    session_bytes,
)
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import release_name

NOW_S = 1_800_000_000.0  # the fake clock's


@dataclass
class FakeServer:
    """Is a `ports.Network`. `fail` maps a path to what happens instead of its answer."""

    repository: Repository = field(default_factory=lambda: Repository(datetime.fromtimestamp(NOW_S, UTC)))
    assignment: protocol.Assignment | None = None
    status: str = "accepted"
    fail: dict[str, TwinlockError | FakeResponse | Callable[[Request], FakeResponse]] = field(
        default_factory=dict
    )
    key: DevicePublicKey | None = None
    token: str = ""
    calls: list[str] = field(default_factory=list)
    enrolments: list[protocol.EnrolRequest] = field(default_factory=list)
    polls: list[protocol.PollRequest] = field(default_factory=list)
    reports: dict[int, protocol.Report] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # assignments whose reports are never taken
    keeps: bool = True
    evidence: list[protocol.Evidence] = field(default_factory=list)
    sessions: int = 0

    # --- what an operator does

    def publish(self, packed: Packed, *, bump: bool = True) -> None:
        data = manifest.encode(packed.manifest)
        name = release_name(packed.manifest.product, packed.manifest.version)
        entry = self.repository.add_file(data, name)
        claims = msgspec.to_builtins(packed.manifest.claims)
        entry.unrecognized_fields["custom"] = {"twinlock": claims}
        if bump:
            self.repository.publish("targets", "snapshot", "timestamp")

    def assign(self, packed: Packed, assignment_id: str = "r1") -> None:
        self.assignment = protocol.Assignment(
            id=assignment_id,
            product=packed.manifest.product,
            version=packed.manifest.version,
            payloads=(packed.offer,),
        )

    @property
    def root(self) -> bytes:
        return self.repository.files["metadata/1.root.json"]

    # --- what a device sees

    def open(self, request: Request) -> FakeResponse:
        path = request.url.removeprefix("http://127.0.0.1:1")
        self.calls.append(path.removeprefix("/device/v1/").removeprefix("/repository/"))
        failure = self.fail.get(self.calls[-1])
        if isinstance(failure, TwinlockError):
            raise failure
        if isinstance(failure, FakeResponse):
            return FakeResponse(failure.status, failure.headers, failure.body)
        if failure is not None:
            return failure(request)
        if path.startswith("/repository/"):
            data = self.repository.get(path.removeprefix("/repository/"))
            return FakeResponse(404, {}, b"") if data is None else FakeResponse(200, {}, data)
        try:
            answer = self._answer(path.removeprefix("/device/v1/"), request)
        except TwinlockError as problem:
            status = {"policy": 403, "trust": 422}.get(problem.kind, 400)
            if problem.code in ("unauthorised", "session-expired"):
                status = 401
            body = protocol.ErrorAnswer(error=protocol.ErrorBody(code=problem.code, what=problem.what))
            return FakeResponse(status, {}, protocol.encode(body))
        return FakeResponse(200, {}, protocol.encode(answer))

    def _answer(self, path: str, request: Request) -> msgspec.Struct:
        body = request.body or b""
        match path:
            case "enrol":
                return self._enrol(protocol.decode_request(body, protocol.EnrolRequest))
            case "challenge":
                protocol.decode_request(body, protocol.ChallengeRequest)
                return protocol.ChallengeAnswer(challenge="riddle", expires_s=60)
            case "session":
                return self._session(protocol.decode_request(body, protocol.SessionRequest))
        if request.headers.get("authorization") != f"Bearer {self.token}" or not self.token:
            raise error("session-expired", "open a session")
        if path == "poll":
            self.polls.append(protocol.decode_request(body, protocol.PollRequest))
            return protocol.PollAnswer(wait_s=600, assignment=self.assignment)
        if path == "evidence":
            return self._keep(protocol.decode_request(body, protocol.SignedEvidence, 1 << 20))
        return self._take(protocol.decode_request(body, protocol.ReportBatch))

    def _enrol(self, request: protocol.EnrolRequest) -> protocol.EnrolAnswer:
        self.enrolments.append(request)
        self.key = DevicePublicKey(request.public_key)
        signed = enrolment_bytes(request.device_id, request.hardware, request.public_key)
        self.key.verify(request.proof, signed, "enrolment")
        return msgspec.convert({"status": self.status}, protocol.EnrolAnswer)

    def _session(self, request: protocol.SessionRequest) -> protocol.SessionAnswer:
        if self.key is None or self.status != "accepted":
            raise error("enrolment-pending", "not accepted yet")
        self.key.verify(request.signature, session_bytes(request.device_id, request.challenge), "session")
        self.sessions += 1
        self.token = f"token-{self.sessions}"
        return protocol.SessionAnswer(token=self.token, expires_s=3600)

    def _keep(self, message: protocol.SignedEvidence) -> protocol.EvidenceAnswer:
        assert self.key is not None
        self.key.verify(message.signature, evidence_bytes(message.body), "evidence")
        self.evidence.append(protocol.decode_request(message.body, protocol.Evidence, 1 << 20))
        return protocol.EvidenceAnswer(durable=hashlib.sha256(message.body).hexdigest())

    def _take(self, batch: protocol.ReportBatch) -> protocol.ReportAnswer:
        assert self.key is not None
        taken = []
        for signed in batch.reports:
            self.key.verify(signed.signature, report_bytes(signed.body), "report")
            report = protocol.decode_request(signed.body, protocol.Report)
            if report.assignment_id in self.refused:
                raise error("request-malformed", "never")
            taken.append(report)
        if not self.keeps:
            return protocol.ReportAnswer(durable=())
        for report in taken:
            known = self.reports.setdefault(report.seq, report)
            assert known == report, "a number was used twice"
        return protocol.ReportAnswer(durable=tuple(report.seq for report in taken))


def with_hash(data: bytes, **changes: object) -> bytes:
    """JSON with some top-level fields changed."""
    return json.dumps({**json.loads(data), **changes}).encode()
