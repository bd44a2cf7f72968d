"""A simulated server, and the link to it: answers get lost, cut, damaged and late."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.core import protocol
from twinlock.core.errors import error
from twinlock.core.protocol import FINAL_STATES, Assignment, Report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.agent.ports import Request
    from twinlock.lab.sim.clock import SimClock
    from twinlock.lab.sim.fate import Fate
    from twinlock.lab.sim.release import SimRelease

URL: Final = "http://127.0.0.1:1"
READ_SIZE_BYTES_MAX: Final = 16 * 1024
STALL_S: Final = 30.0
_FAULTS: Final = ("unreachable", "busy", "answer lost", "cut", "stall")
_PAYLOAD_FAULTS: Final = (*_FAULTS, "flip", "flip")


@dataclass
class SimServer:
    """Assigns one release until the device has told its outcome; keeps every report by its number."""

    release: SimRelease
    assignment_id: str = "r1-sim"
    reports: dict[int, Report] = field(default_factory=dict)
    running: protocol.PollRequest | None = None
    conflicts: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> list[Report]:
        """The final reports about the assignment, in order of their numbers."""
        final = [one for _, one in sorted(self.reports.items()) if one.state in FINAL_STATES]
        return [one for one in final if one.assignment_id == self.assignment_id]

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        path = request.url.removeprefix(URL)
        if path.startswith("/device/v1/payloads/"):
            return self._payload(request)
        if path.startswith(protocol.REPOSITORY):
            return 200, {}, self.release.manifest_bytes
        said = self._call(path.rpartition("/")[2], request.body or b"")
        return 200, {}, protocol.encode(said)

    def _call(self, path: str, body: bytes) -> msgspec.Struct:
        match path:
            case "challenge":
                return protocol.ChallengeAnswer(challenge="riddle", expires_s=60)
            case "session":
                return protocol.SessionAnswer(token="token", expires_s=3600)  # noqa: S106  simulated
            case "poll":
                self.running = protocol.decode_request(body, protocol.PollRequest)
                return protocol.PollAnswer(wait_s=60, assignment=self._assignment())
            case "reports":
                return self._take(protocol.decode_request(body, protocol.ReportBatch))
        raise error("internal", f"nobody answers {path}")

    def _assignment(self) -> Assignment | None:
        if self.outcomes:
            return None
        made = self.release.manifest
        return Assignment(
            id=self.assignment_id, product=made.product, version=made.version, payloads=(self.release.offer,)
        )

    def _take(self, batch: protocol.ReportBatch) -> protocol.ReportAnswer:
        durable = []
        for signed in batch.reports:
            report = protocol.decode_request(signed.body, Report)
            known = self.reports.setdefault(report.seq, report)
            if known != report:
                self.conflicts.append(f"number {report.seq} was used for two reports")
            durable.append(report.seq)
        return protocol.ReportAnswer(durable=tuple(durable))

    def _payload(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        payload = self.release.payload
        first, last = (int(text) for text in request.headers["range"].removeprefix("bytes=").split("-"))
        body = payload[first : last + 1]
        headers = {
            "content-length": str(len(body)),
            "content-range": f"bytes {first}-{first + len(body) - 1}/{len(payload)}",
            "etag": f'"{self.release.payload_sha256}"',
        }
        return 206, headers, body


class SimResponse:
    """Is a `ports.Response`. The body ends early, with `problem`, at `cut_at`."""

    def __init__(self, owner: SimNetwork, label: str, answer: tuple[int, dict[str, str], bytes]) -> None:
        self._owner = owner
        self._label = label
        self.status, self.headers, self.body = answer
        self.cut_at = -1
        self.problem = ("connection-lost", "the link was cut")
        self._at = 0

    def read_into(self, buffer: memoryview) -> int:
        cut = self._owner.fate.begin(f"net.read {self._label}")
        end = min(self._at + min(len(buffer), READ_SIZE_BYTES_MAX), len(self.body))
        if self._owner.fate.torn(cut):
            end = self._at + self._owner.fate.part(end - self._at + 1)
        if 0 <= self.cut_at < end:
            end = self.cut_at
        data = self.body[self._at : end]
        if not data and 0 <= self.cut_at <= self._at:
            self._owner.wait(self.problem[0])
            raise error(*self.problem)
        buffer[: len(data)] = data
        self._at = end
        self._owner.count(self, len(data))
        self._owner.fate.end(cut)
        return len(data)

    def close(self) -> None:
        """Nothing to give back."""


class SimNetwork:
    """Is a `ports.Network`. `twice_bytes` counts payload bytes that were read more than once."""

    def __init__(self, server: SimServer, fate: Fate, clock: SimClock) -> None:
        self._server = server
        self.fate: Final = fate
        self._clock = clock
        self._read = bytearray(len(server.release.payload))
        self.twice_bytes = 0
        self.faults = 0

    def open(self, request: Request) -> SimResponse:
        label = request.url.removeprefix(URL).rpartition("/")[0].rpartition("/")[2]
        cut = self.fate.begin(f"net.open {label}")
        fault = self._fault(label)
        if fault == "unreachable":
            raise error("server-unreachable", "nobody answers")
        if fault == "busy":
            body = json.dumps({"error": {"code": "server-busy", "what": "busy"}}).encode()
            return SimResponse(self, label, (503, {"retry-after": "2"}, body))
        response = SimResponse(self, label, self._server.answer(request))
        self._damage(response, fault, request.headers)
        if fault == "answer lost":
            raise error("connection-lost", "the answer was lost")
        self.fate.end(cut)
        return response

    def _fault(self, label: str) -> str:
        if not self.fate.happens(self.fate.troubles.network):
            return ""
        fault = self.fate.rng.choice(_PAYLOAD_FAULTS if label == "payloads" else _FAULTS)
        self.faults += 1
        self.fate.log.append(f"{fault} at {label}")
        return fault

    def _damage(self, response: SimResponse, fault: str, headers: Mapping[str, str]) -> None:
        size = len(response.body)
        if fault in ("cut", "stall") and size:
            response.cut_at = self.fate.rng.randrange(size)
            if fault == "stall":
                response.problem = ("transfer-stalled", "nothing came any more")
        elif fault == "flip" and size:
            at = self.fate.rng.randrange(size)
            damaged = bytearray(response.body)
            damaged[at] ^= 1 << self.fate.rng.randrange(8)
            response.body = bytes(damaged)
        if "range" in headers:
            response.headers["x-first"] = headers["range"].removeprefix("bytes=").partition("-")[0]

    def wait(self, code: str) -> None:
        """The time that a failure takes."""
        self._clock.sleep(STALL_S if code == "transfer-stalled" else 0.1)

    def count(self, response: SimResponse, size: int) -> None:
        """Notes which bytes of the payload were read."""
        first = response.headers.get("x-first")
        if first is None or not size:
            return
        start = int(first) + response._at - size
        self.twice_bytes += self._read[start : start + size].count(1)
        self._read[start : start + size] = b"\1" * size
