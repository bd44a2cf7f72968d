"""The calls of `twinlock.core.protocol`, each one decoded, decided by a feature, encoded."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.names import check_device_id
from twinlock.core.protocol import (
    Assignment,
    ChallengeAnswer,
    ChallengeRequest,
    DirectorAnswer,
    DirectorRequest,
    EnrolAnswer,
    EnrolRequest,
    EvidenceAnswer,
    PollAnswer,
    PollRequest,
    ReportAnswer,
    ReportBatch,
    SessionAnswer,
    SessionRequest,
    SignedEvidence,
    decode_request,
)
from twinlock.server.clock import now_ms, now_utc
from twinlock.server.devices import evidence
from twinlock.server.devices.model import INDICATOR_FORK, CheckIn, Facts, Status, facts_of
from twinlock.server.director import answers as director
from twinlock.server.enrolment import service as enrolment
from twinlock.server.enrolment import sessions
from twinlock.server.http_answers import answer
from twinlock.server.http_bodies import read_body
from twinlock.server.releases.offers import chosen_offers
from twinlock.server.rollouts import reports
from twinlock.server.rollouts import service as rollouts

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from twinlock.server.clock import Clock
    from twinlock.server.director.answers import Director
    from twinlock.server.enrolment.fleet_ca import FleetCa
    from twinlock.server.ports import Database, PollView
    from twinlock.server.settings import Settings

# A batch carries its reports' bodies as base64 in JSON.
BATCH_SIZE_BYTES_MAX: Final = limits.REPORTS_PER_BATCH_MAX * (limits.REPORT_SIZE_BYTES_MAX * 3 // 2 + 1024)
_BEARER: Final = "Bearer "


@dataclass(frozen=True, slots=True)
class DeviceCalls:
    """Handlers of the device API. `secret` authenticates challenges and tokens."""

    database: Database
    settings: Settings
    secret: bytes
    clock: Clock
    director: Director | None = None
    fleet_ca: FleetCa | None = None

    async def enrol(self, request: Request) -> Response:
        """POST /enrol"""
        asked = decode_request(await read_body(request), EnrolRequest)
        key = enrolment.check_proof(asked)
        at_ms = now_ms(self.clock)
        certified = False
        if asked.certificate is not None and self.fleet_ca is not None:
            self.fleet_ca.check(asked.certificate, asked.device_id, key, now_utc(self.clock))
            certified = True
        ask = partial(
            enrolment.enrol,
            request=asked,
            key=key,
            now_ms=at_ms,
            needs_token=self.settings.enrolment_needs_token,
            certified=certified,
        )
        done = await self.database.submit(ask)
        if done.refused is not None:
            raise done.refused
        return answer(EnrolAnswer(status=done.status.value, wait_s=self.settings.enrolment_wait_s))

    async def challenge(self, request: Request) -> Response:
        """POST /challenge. Says nothing on whether the device is known."""
        asked = decode_request(await read_body(request), ChallengeRequest)
        check_device_id(asked.device_id)
        nonce = secrets.token_bytes(sessions.NONCE_SIZE_BYTES)
        text = sessions.make_challenge(self.secret, asked.device_id, self.clock.now_us(), nonce)
        return answer(ChallengeAnswer(challenge=text, expires_s=sessions.CHALLENGE_S))

    async def session(self, request: Request) -> Response:
        """POST /session"""
        asked = decode_request(await read_body(request), SessionRequest)
        check_device_id(asked.device_id)
        now_us = self.clock.now_us()
        challenge = sessions.read_challenge(self.secret, asked.challenge, asked.device_id, now_us)
        device = await self.database.submit(lambda t: enrolment.open_session(t, asked, challenge, now_us))
        expires_s = now_us // 1_000_000 + self.settings.session_s
        token = sessions.make_token(
            self.secret, device.device_id, device.fingerprint, expires_s, challenge.issued_us
        )
        return answer(SessionAnswer(token=token, expires_s=self.settings.session_s))

    async def authorise(self, request: Request) -> tuple[str, PollView]:
        """The accepted device whose session token the request bears, with what a poll needs of it.

        Raises PolicyError `unauthorised`, `session-expired`, `enrolment-pending`, `enrolment-rejected`.
        """
        session, view = await self._authorised(request)
        return session.device_id, view

    async def _authorised(self, request: Request) -> tuple[sessions.Session, PollView]:
        header = request.headers.get("authorization", "")
        if not header.startswith(_BEARER):
            raise error("unauthorised", "the request bears no session token")
        session = sessions.read_token(self.secret, header[len(_BEARER) :], self.clock.now_us() / 1_000_000)
        view = await self.database.poll_view(session.device_id)
        if view is None or view.fingerprint != session.fingerprint:
            raise error("unauthorised", "the session is of a key that is not enrolled here any more")
        if view.status is not Status.ACCEPTED:
            enrolment.check_status(view.status, session.device_id)
        return session, view

    async def _note_fork(self, session: sessions.Session, view: PollView) -> None:
        """Notes a poll with a session that is not the newest: two devices may share the key.

        A newest one in the future is from a clock that was set back, and says nothing.
        """
        if session.issued_us < view.session_floor_us <= self.clock.now_us():
            device_id, at_ms = session.device_id, now_ms(self.clock)
            detail = "it polls with an older session than its newest; two devices may share this key"
            await self.database.submit(
                lambda t: t.devices.note(device_id, INDICATOR_FORK, "session", detail, at_ms)
            )

    async def poll(self, request: Request) -> Response:
        """POST /poll"""
        session, view = await self._authorised(request)
        device_id = session.device_id
        asked = decode_request(await read_body(request), PollRequest)
        await self._note_fork(session, view)
        if asked.hardware != view.hardware:
            raise error(
                "hardware-mismatch",
                f"{device_id} is enrolled as hardware {view.hardware!r}, not {asked.hardware[:64]!r}",
                hint="correct the agent's configuration, or preauthorise the device's key to enrol it anew",
            )
        facts = facts_of(asked)
        at_ms = now_ms(self.clock)
        self.database.check_in(CheckIn(device_id, at_ms, facts))
        view = await self._settled(device_id, view, facts, at_ms)
        offered = rollouts.is_offered(view)
        directed = None
        if self.director is not None and director.asks(facts):
            directed = await self._directed(self.director, device_id, view)
            offered = offered and bool(view.entry_sha256)
        assignment = await self._assignment(view, facts) if offered else None
        return answer(PollAnswer(wait_s=self.settings.poll_wait_s, assignment=assignment, director=directed))

    async def directed(self, request: Request) -> Response:
        """POST /director: what the last poll's answer would say now, without being one."""
        device_id, view = await self.authorise(request)
        decode_request(await read_body(request), DirectorRequest)
        if self.director is None:
            raise error("not-found", "this server has no director")
        return answer(await self._directed(self.director, device_id, view))

    async def _directed(self, own: Director, device_id: str, view: PollView) -> DirectorAnswer:
        """What the director says of this view; signed anew, in a transaction, only when it must be.

        A release that the director cannot name yet (nothing was published since it began) is not offered.
        """
        offered = rollouts.is_offered(view) and bool(view.entry_sha256)
        basis, at_ms = director.basis_of(own, view, offered=offered), now_ms(self.clock)
        kept = view.directed
        if kept is None or not director.in_force(own, kept, basis, at_ms):
            release_id = view.release_id if offered else 0
            kept = await self.database.submit(
                lambda t: director.issue(t, own, device_id, release_id, basis, at_ms)
            )
        return director.decode(kept)

    async def _settled(self, device_id: str, view: PollView, facts: Facts, at_ms: int) -> PollView:
        """The view after new rollouts to all are matched, an assignment with nothing to do is closed, and a
        device in recovery has something to come back with."""
        for _ in range(2):
            if not rollouts.needs_change(view, facts):
                break
            work = partial(rollouts.change, device_id=device_id, view=view, facts=facts, now_ms=at_ms)
            await self.database.submit(work)
            view = await self.database.poll_view(device_id) or view
        if rollouts.needs_release_again(view, facts):
            again = partial(rollouts.offer_again, device_id=device_id, view=view, facts=facts, now_ms=at_ms)
            if await self.database.submit(again):
                view = await self.database.poll_view(device_id) or view
        return view

    async def _assignment(self, view: PollView, facts: Facts) -> Assignment:
        offers = chosen_offers(await self.database.offers(view.release_id), facts)
        assert view.assignment_id is not None
        return Assignment(
            id=view.assignment_id,
            product=view.product,
            version=view.version,
            payloads=offers,
        )

    async def reports(self, request: Request) -> Response:
        """POST /reports. What it acknowledges is on the disk."""
        device_id, _ = await self.authorise(request)
        batch = decode_request(
            await read_body(request, BATCH_SIZE_BYTES_MAX), ReportBatch, BATCH_SIZE_BYTES_MAX
        )
        public_key = await self.database.public_key(device_id)
        if public_key is None:
            raise error("unauthorised", f"{device_id} is not enrolled here any more")
        checked = reports.check_batch(batch, device_id, public_key)
        at_ms = now_ms(self.clock)
        done = await self.database.submit(lambda t: reports.record(t, device_id, checked, at_ms))
        if done.refused is not None:
            raise done.refused
        return answer(ReportAnswer(durable=done.durable))

    async def evidence(self, request: Request) -> Response:
        """POST /evidence. What it acknowledges is on the disk."""
        device_id, _ = await self.authorise(request)
        body = await read_body(request, evidence.MESSAGE_SIZE_BYTES_MAX)
        message = decode_request(body, SignedEvidence, evidence.MESSAGE_SIZE_BYTES_MAX)
        public_key = await self.database.public_key(device_id)
        if public_key is None:
            raise error("unauthorised", f"{device_id} is not enrolled here any more")
        piece = evidence.check(message, device_id, public_key)
        at_ms = now_ms(self.clock)
        name = await self.database.submit(lambda t: evidence.record(t, device_id, piece, at_ms))
        return answer(EvidenceAnswer(durable=name))
