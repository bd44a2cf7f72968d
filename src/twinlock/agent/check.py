"""The metadata process: everything that needs keys, signatures or metadata, in one short life.

    session   open a session
    flush     session, then the waiting reports in order
    poll      session, reports, poll; for an assignment: refresh the metadata, verify, decide, write plan.json
    gate      the device's key signs; session, reports, metadata, and the running release's own manifest

`run` starts it with a CheckRequest on its standard input and reads the CheckAnswer from checked.json. It
prints nothing. It does not touch slots or the boot record. Started by hand it asks the boot record itself.
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from twinlock import __version__
from twinlock.agent import decide, evidence, identity, memory, noticed, session, usage
from twinlock.agent import plan as plans
from twinlock.agent.api import DeviceApi
from twinlock.agent.director import Director, is_directed
from twinlock.agent.metadata import MetadataClient
from twinlock.agent.outbox import Outbox
from twinlock.agent.parent import PARENT, end_with
from twinlock.agent.plan import CHECKED, CheckAnswer, CheckRequest, Job, Plan
from twinlock.core import device_key, limits, protocol
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import check_name, check_version, release_name
from twinlock.core.payload.libraries import shared
from twinlock.core.trust.director import check_agreement, check_assigned

if TYPE_CHECKING:
    import argparse
    from pathlib import Path
    from typing import TypeVar

    from twinlock.agent.config import Config
    from twinlock.agent.ports import Ports
    from twinlock.core.trust.director import Directed

    M = TypeVar("M", bound=msgspec.Struct)

# Ways that a payload may come; beside them go the libraries that a delta may ask for.
ABILITIES: Final = ("full", "delta")
ASSIGNMENT_ID_LENGTH_MAX: Final = 128


class Found(NamedTuple):
    """A release that this device takes."""

    assignment: protocol.Assignment
    manifest_bytes: bytes
    job: Job


class Check:
    """One check. `answer` never raises; what fails is in the answer."""

    def __init__(self, ports: Ports, config: Config, request: CheckRequest) -> None:
        self._ports = ports
        self._config = config
        self._request = request
        self._store = ports.store
        self._outbox = Outbox(ports.store)
        self._answer = CheckAnswer(nonce=request.nonce, time_s=ports.clock.now_s())

    def answer(self) -> CheckAnswer:
        """Does what the request's mode says."""
        try:
            self._connect()
            match self._request.mode:
                case "poll":
                    self._send_reports()
                    self._send_evidence()
                    self._poll()
                case "flush":
                    self._send_reports()
                    self._send_evidence()
                case "gate":
                    self._prove_key()
                    self._send_reports()
                    self._prove()
                case "session":
                    self._open_session()
        except TwinlockError as problem:
            noticed.note(self._store, problem)
            self._answer = msgspec.structs.replace(self._answer, code=problem.code, what=problem.what)
        return self._answer

    # --- the session

    def _connect(self) -> None:
        ports = self._ports
        self._identity = identity.load(self._store, self._config)
        self._api = DeviceApi(
            ports.network, ports.clock, ports.random, self._config.network, self._config.server
        )
        self._session = session.load(self._store, ports.clock.now_s())
        self._directed: Directed | None = None
        self._director: Director | None = None
        if is_directed(self._store, self._config):
            self._director = Director(ports, self._config, self._identity.device_id)

    def _open_session(self) -> session.Session:
        """A new session, by signing the server's challenge with the device's key."""
        device_id = self._identity.device_id
        asked = self._api.call(
            "challenge", protocol.ChallengeRequest(device_id=device_id), protocol.ChallengeAnswer
        )
        proof = protocol.SessionRequest(
            device_id=device_id,
            challenge=asked.challenge,
            signature=self._identity.key.sign(device_key.session_bytes(device_id, asked.challenge)),
        )
        opened = self._api.call("session", proof, protocol.SessionAnswer)
        now_s = self._ports.clock.now_s()
        self._session = session.save(self._store, opened.token, opened.expires_s, now_s)
        return self._session

    def _call(self, path: str, message: msgspec.Struct, kind: type[M]) -> M:
        """A call with the session's token; one that the server no longer takes is replaced once."""
        if self._session is not None:
            try:
                return self._api.call(path, message, kind, self._session.token)
            except TwinlockError as problem:
                if problem.code not in ("unauthorised", "session-expired"):
                    raise
        return self._api.call(path, message, kind, self._open_session().token)

    # --- reports

    def _send_reports(self) -> None:
        """Sends what waits, oldest first. What the server holds durably goes, the rest stays."""
        waiting = self._outbox.waiting()
        for start in range(0, len(waiting), limits.REPORTS_PER_BATCH_MAX):
            batch = waiting[start : start + limits.REPORTS_PER_BATCH_MAX]
            if not self._send(batch):
                for report in batch:  # find the one that the server does not take
                    if not self._send([report]):
                        self._outbox.refuse(report)

    def _send(self, batch: list[protocol.Report]) -> bool:
        """False when the server says that these reports can never be taken."""
        message = protocol.ReportBatch(reports=tuple(self._signed(report) for report in batch))
        try:
            durable = self._call("reports", message, protocol.ReportAnswer).durable
        except TwinlockError as problem:
            if problem.code in ("request-malformed", "request-too-large", "signature-invalid", "conflict"):
                return False
            raise
        self._outbox.sent(durable)
        if set(durable) < {report.seq for report in batch}:
            raise error("server-busy", "the server did not keep every report")
        return True

    def _send_evidence(self) -> None:
        """Sends the pieces that wait. A server that does not take them holds up nothing else.

        A piece goes when the server holds it durably, or says that it can never be taken. A server that does
        not know the call yet gets them when it does.
        """
        try:
            for path, piece in evidence.waiting(self._store):
                body = protocol.encode(msgspec.structs.replace(piece, device_id=self._identity.device_id))
                signature = self._identity.key.sign(device_key.evidence_bytes(body))
                message = protocol.SignedEvidence(body=body, signature=signature)
                try:
                    answer = self._call("evidence", message, protocol.EvidenceAnswer)
                    if answer.durable != hashlib.sha256(body).hexdigest():
                        raise error("answer-malformed", "the server acknowledges another piece of evidence")
                except TwinlockError as problem:
                    if problem.code not in ("request-malformed", "request-too-large", "signature-invalid"):
                        raise
                    self._ports.display.note(f"the server refuses evidence for good: {problem}")
                self._store.remove(path)
        except TwinlockError as problem:
            self._ports.display.note(f"evidence waits for the next run: {problem}")

    def _signed(self, report: protocol.Report) -> protocol.SignedReport:
        body = protocol.encode(msgspec.structs.replace(report, device_id=self._identity.device_id))
        return protocol.SignedReport(
            body=body, signature=self._identity.key.sign(device_key.report_bytes(body))
        )

    # --- the poll and what follows from it

    def _poll(self) -> None:
        request, running = self._request, self._request.running
        message = protocol.PollRequest(
            hardware=self._config.hardware,
            slot=request.slot,
            product=running.product,
            version=running.version,
            counter=running.counter,
            image_sha256=running.image_sha256,
            floor=request.floor,
            agent=__version__,
            state=request.phase,
            abilities=(*ABILITIES, *self._wishes(), *shared()),
        )
        answer = self._call("poll", message, protocol.PollAnswer)
        wait_s = min(max(answer.wait_s, limits.POLL_WAIT_S_MIN), limits.POLL_WAIT_S_MAX)
        self._answer = msgspec.structs.replace(self._answer, wait_s=wait_s)
        if self._director is not None:
            self._directed = self._director.take(answer.director)
        if answer.assignment is not None:
            self._take(answer.assignment)

    def _wishes(self) -> tuple[str, ...]:
        return () if self._director is None else (protocol.ABILITY_DIRECTOR,)

    def _take(self, assignment: protocol.Assignment) -> None:
        _check_assignment(assignment)
        self._answer = msgspec.structs.replace(
            self._answer,
            assignment_id=assignment.id,
            product=assignment.product,
            version=assignment.version,
        )
        found = self._verify(assignment)
        if found is None:
            self._answer = msgspec.structs.replace(self._answer, runs_already=True)
            return
        before = plans.load(self._store)
        self._write_plan(found)
        self._answer = msgspec.structs.replace(self._answer, job=found.job)
        if before is None or before.job != found.job:
            self._tell_download(found.job)

    def _verify(self, assignment: protocol.Assignment) -> Found | None:
        """The release that is signed under the assigned name; None if it runs already."""
        request, what = self._request, f"{assignment.product} {assignment.version}"
        failures = memory.failures(self._store)
        decide.check_assignment_is_new(failures, assignment.id)
        client = self._metadata()
        client.refresh()
        signed, claims = client.claims(release_name(assignment.product, assignment.version))
        if self._director is not None:
            assert self._directed is not None
            check_assigned(self._directed, signed)
        runs = self._runs(assignment)
        decide.check_fits(
            claims,
            hardware=self._config.hardware,
            product=self._config.product,
            floor=request.floor,
            inactive=request.slot if runs else request.inactive,
            inactive_size_bytes=claims.image_size_bytes if runs else request.inactive_size_bytes,
            what=what,
        )
        data, manifest = client.manifest(signed, claims)
        digest = hashlib.sha256(data).digest()
        self._answer = msgspec.structs.replace(self._answer, manifest_sha256=digest)
        if runs and manifest.image_sha256 == request.running.image_sha256:
            return None
        decide.check_release_is_new(failures, digest, what)
        slot = request.inactive
        if slot is None:
            raise error("boot-refused", "no slot is free")
        job = Job(
            assignment_id=assignment.id,
            product=manifest.product,
            version=manifest.version,
            counter=manifest.counter,
            slot=slot,
            trial_id=plans.trial_id(assignment.id, digest, slot),
            manifest_sha256=digest,
            image_sha256=manifest.image_sha256,
            image_size_bytes=manifest.image_size_bytes,
        )
        return Found(assignment, data, job)

    def _runs(self, assignment: protocol.Assignment) -> bool:
        """Whether the committed slot is known to hold, and runs, a release of this name."""
        running = self._request.running
        same = (running.product, running.version) == (assignment.product, assignment.version)
        return same and running.image_sha256 is not None and self._request.is_committed

    def _metadata(self) -> MetadataClient:
        ports = self._ports
        config = self._config
        return MetadataClient(ports.network, self._store, ports.clock, config.server, config.root)

    def _write_plan(self, found: Found) -> None:
        assert self._session is not None
        plan = Plan(
            job=found.job,
            manifest=found.manifest_bytes,
            payloads=found.assignment.payloads,
            server=self._config.server,
            token=self._session.token,
            token_expires_s=self._session.expires_s,
        )
        self._store.write(plans.PLAN, msgspec.json.encode(plan))

    def _tell_download(self, job: Job) -> None:
        """Says at once that the download begins; that this cannot be sent does not hold it up."""
        report = protocol.Report(
            device_id=self._identity.device_id,
            seq=0,
            nonce=self._ports.random.token(),
            state="downloading",
            assignment_id=job.assignment_id,
            product=job.product,
            version=job.version,
            slot=job.slot,
            image_sha256=job.image_sha256,
            time_s=int(memory.trusted_s(self._store, self._ports.clock)),
        )
        self._outbox.add(report)
        try:
            self._send_reports()
        except TwinlockError as problem:
            self._ports.display.note(f"the report of the download waits: {problem}")

    # --- the gate

    def _prove_key(self) -> None:
        """Shows that the device's key signs, and that its signature is good, before anybody is asked."""
        text = device_key.session_bytes(self._identity.device_id, self._ports.random.token())
        try:
            device_key.prove(self._identity.key, text)
        except TwinlockError as problem:
            if problem.code != "signature-invalid":
                raise  # a token that cannot be asked says so itself
            raise error("identity-missing", f"this device's key does not sign: {problem.what}") from problem

    def _prove(self) -> None:
        """Shows that this system could take a next release: fresh metadata, and a manifest through it."""
        client = self._metadata()
        client.refresh()
        directed = self._prove_director()
        running = self._request.running
        if not running.version:
            return
        name = release_name(running.product, running.version)
        try:
            signed, claims = client.claims(name)
        except TwinlockError as problem:
            if problem.code == "release-unknown":  # withdrawn meanwhile; the way to it was proven
                return
            raise
        if directed is not None and directed.release is not None and directed.release.path == name:
            check_agreement(signed, directed.release)
        client.manifest(signed, claims)

    def _prove_director(self) -> Directed | None:
        """Shows that this system follows its director: one with a wrong root would take no release again."""
        if self._director is None:
            return None
        try:
            answer = self._call("director", protocol.DirectorRequest(), protocol.DirectorAnswer)
        except TwinlockError as problem:
            if problem.code != "not-found":
                raise
            raise error("director-missing", f"the server has no director: {problem.what}") from problem
        return self._director.take(answer)


def _check_assignment(assignment: protocol.Assignment) -> None:
    """Raises TransportError `answer-malformed` when a field is out of its bounds."""
    try:
        check_name(assignment.product, "product")
        check_version(assignment.version)
        offers = assignment.payloads
        rules = (
            0 < len(assignment.id) <= ASSIGNMENT_ID_LENGTH_MAX and assignment.id.isprintable(),
            0 < len(offers) <= limits.PAYLOAD_OFFERS_MAX,
            all(len(offer.sha256) == hashlib.sha256().digest_size for offer in offers),
            all(0 < offer.size_bytes <= limits.PAYLOAD_SIZE_BYTES_MAX for offer in offers),
            all(0 < offer.index_size_bytes <= limits.INDEX_SIZE_BYTES_MAX for offer in offers),
            all((offer.kind == "full") == (offer.base_sha256 is None) for offer in offers),
        )
    except TwinlockError as problem:
        raise error("answer-malformed", f"the assignment is none: {problem.what}") from problem
    if not all(rules):
        raise error("answer-malformed", f"assignment {assignment.id[:80]!r} is out of bounds")


def command(config_path: Path, args: argparse.Namespace) -> int:
    """`twinlock-agent check`."""
    from twinlock.agent import config as configs
    from twinlock.agent import lock, wiring
    from twinlock.agent.request import made_here

    del args
    config = configs.load(config_path)
    ports = wiring.build_ports(config, config_path)
    parent = os.environ.get(PARENT)
    if parent is None:  # started by hand
        with lock.held(config.state, ports.clock):
            problem = plans.answer_error(Check(ports, config, made_here(ports, "poll")).answer())
        if problem is not None:
            raise problem
        return 0
    end_with(int(parent))
    given = sys.stdin.buffer.read(plans.CHECK_MESSAGE_SIZE_BYTES_MAX)
    answer = Check(ports, config, msgspec.json.decode(given, type=CheckRequest)).answer()
    answer = msgspec.structs.replace(answer, peak_bytes=usage.peak_bytes())
    ports.store.write_volatile(CHECKED, msgspec.json.encode(answer))
    problem = plans.answer_error(answer)
    return 0 if problem is None else problem.exit_code
