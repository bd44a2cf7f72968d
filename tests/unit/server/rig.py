"""A server in memory's reach: the real application on a temporary folder, with a clock that tests set.

`Server` speaks to it as a client over HTTP without a socket; `FakeDevice` is a device with its own key, and
`make_release` a small but true release (manifest and payload) that `Server.publish` signs and sends.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import threading
from base64 import b64encode
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.conformance.repository import NOW, Repository
from twinlock.core import limits, manifest
from twinlock.core.device_key import DeviceKey, enrolment_bytes, generate, report_bytes, session_bytes
from twinlock.core.manifest import Manifest
from twinlock.core.payload import container
from twinlock.core.payload.parts import Part, Zero, Zstd
from twinlock.core.protocol import (
    PREFIX,
    Assignment,
    ChallengeAnswer,
    ChallengeRequest,
    EnrolRequest,
    PollAnswer,
    PollRequest,
    Report,
    ReportAnswer,
    ReportBatch,
    SessionAnswer,
    SessionRequest,
    SignedReport,
    decode_answer,
    encode,
)
from twinlock.core.zstd import compress
from twinlock.server import settings as server_settings
from twinlock.server.app import create_app
from twinlock.server.connections import BoundedHttp
from twinlock.server.run import address_of, listen
from twinlock.server.setup import initialise
from twinlock.server.store.database import SqlDatabase

HARDWARE = "demo-board"
PRODUCT = "demo"
M = TypeVar("M", bound=msgspec.Struct)


class FakeClock:
    """A clock that a test moves; beside that it goes on by a microsecond each time it is read."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def now_us(self) -> int:
        self.now += timedelta(microseconds=1)
        return int(self.now.timestamp() * 1_000_000)

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass(frozen=True)
class MadeRelease:
    """A manifest and its full payload."""

    manifest: Manifest
    data: bytes
    payload: bytes
    index_size_bytes: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.payload).hexdigest()

    def offer(self) -> dict[str, Any]:
        """The payload as the operator API names it."""
        return {
            "kind": "full",
            "sha256": self.sha256,
            "size_bytes": len(self.payload),
            "index_size_bytes": self.index_size_bytes,
        }


def make_release(
    version: str = "1.1",
    counter: int = 1,
    *,
    product: str = PRODUCT,
    hardware: tuple[str, ...] = (HARDWARE,),
    segments: int = 2,
    notes: str = "",
) -> MadeRelease:
    """An image of `segments` segments, the last of zeros, told apart by product and version."""
    seed = hashlib.sha256(f"{product} {version}".encode()).digest()
    image = seed * (limits.SEGMENT_SIZE_BYTES * (segments - 1) // 32) + bytes(4096)
    pieces = [
        image[start : start + limits.SEGMENT_SIZE_BYTES]
        for start in range(0, len(image), limits.SEGMENT_SIZE_BYTES)
    ]
    made = Manifest(
        format="twinlock-manifest",
        format_version=1,
        product=product,
        version=version,
        hardware=hardware,
        counter=counter,
        image_size_bytes=len(image),
        image_sha256=hashlib.sha256(image).digest(),
        segment_size_bytes=limits.SEGMENT_SIZE_BYTES,
        segments=b"".join(hashlib.sha256(piece).digest() for piece in pieces),
        notes=notes,
    )
    body, parts = b"", list[Part]()
    for piece in pieces:
        if piece.count(0) == len(piece):
            parts.append(Zero())
            continue
        encoded = compress(piece)
        parts.append(Zstd(len(encoded), hashlib.sha256(encoded).digest()))
        body += encoded
    index = container.Index(made.image_sha256, made.image_size_bytes, None, tuple(parts))
    tail = container.encode_tail(index)
    return MadeRelease(made, manifest.encode(made), body + tail, len(tail) - container.TRAILER_SIZE_BYTES)


def list_release(repository: Repository, release: MadeRelease, **claims: Any) -> None:
    """Lists a release's manifest in the targets, signed with its claims; `claims` changes some of them."""
    entry = repository.add_file(release.data, release.manifest.name)
    said = msgspec.to_builtins(release.manifest.claims) | claims
    entry.unrecognized_fields["custom"] = {"twinlock": said}


def offered(repository: Repository) -> dict[str, Any]:
    """What is served by the repository now, as the operator API takes it."""
    roots = [data for path, data in repository.files.items() if path.endswith(".root.json")]
    named = {role: repository.served(role) for role in ("timestamp", "snapshot", "targets")}
    return {"roots": [text(data) for data in roots]} | {role: text(data) for role, data in named.items()}


def text(data: bytes) -> str:
    return b64encode(data).decode("ascii")


@cache
def _template(root: bytes) -> tuple[TemporaryDirectory[str], str]:
    """A server's folder as `initialise` makes it, and its token; made once, then copied."""
    folder = TemporaryDirectory()
    return folder, initialise(Path(folder.name) / "server", root, clock=FakeClock())


def _initialised(folder: Path, root: bytes) -> str:
    template, token = _template(root)
    shutil.copytree(Path(template.name) / "server", folder)
    return token


class Server:
    """One server: `http` for a request, `operator` for the operator's API, `database` for a look inside."""

    def __init__(self, folder: Path, repository: Repository | None = None, **changes: Any) -> None:
        self.repository = repository or Repository()
        self.clock = FakeClock()
        self.folder = folder / "server"
        root = next(data for path, data in self.repository.files.items() if path.endswith(".root.json"))
        self.token = _initialised(self.folder, root)
        loaded = server_settings.load(self.folder, {})
        self.settings = msgspec.structs.replace(loaded, **{"free_bytes_min": 0, **changes})
        self._runner = asyncio.Runner()
        self.start()

    def start(self) -> None:
        """Starts the application, anew after `stop`."""
        self.app: Starlette = create_app(self.settings, clock=self.clock, login_once="once-only-secret")
        self.app.state.start()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def stop(self) -> None:
        """Ends the application as its lifespan does: everything that waits is written."""

        async def end() -> None:
            async with self.app.router.lifespan_context(self.app):
                pass
            await self._client.aclose()

        self._runner.run(end())

    def close(self) -> None:
        self.stop()
        self._runner.close()

    @property
    def database(self) -> SqlDatabase:
        database: SqlDatabase = self.app.state.database
        return database

    def http(
        self,
        method: str,
        path: str,
        *,
        body: bytes | AsyncIterable[bytes] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request and its whole answer."""
        call = self._client.request(
            method, f"http://127.0.0.1{path}", content=body, json=json, headers=headers
        )
        return self._runner.run(call)

    def operator(
        self, method: str, path: str, *, json: Any = None, body: bytes | None = None, **headers: str
    ) -> httpx.Response:
        """One request with the operator's token."""
        bearer = {"Authorization": f"Bearer {self.token}", **headers}
        return self.http(method, f"/api/v1{path}", body=body, json=json, headers=bearer)

    def upload(self, release: MadeRelease) -> None:
        answer = self.operator("PUT", f"/payloads/{release.sha256}", body=release.payload)
        assert answer.status_code in (200, 201), answer.text

    def publish(self, release: MadeRelease) -> None:
        """Uploads, lists, signs and publishes a release."""
        self.upload(release)
        list_release(self.repository, release)
        self.repository.publish("targets", "snapshot", "timestamp")
        answer = self.send(release)
        assert answer.status_code == 201, answer.text

    def send(self, release: MadeRelease, **changes: Any) -> httpx.Response:
        """POST /releases with what the repository serves now."""
        body = {
            "metadata": offered(self.repository),
            "manifest": text(release.data),
            "payloads": [release.offer()],
        }
        return self.operator("POST", "/releases", json=body | changes)

    def roll_out(self, version: str, devices: list[str] | str = "all", product: str = PRODUCT) -> str:
        body = {"product": product, "version": version, "devices": devices}
        answer = self.operator("POST", "/rollouts", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["rollout_id"])

    def states(self, rollout_id: str) -> dict[str, str]:
        """The state of each device's assignment in a rollout."""
        found = self.operator("GET", f"/rollouts/{rollout_id}").json()
        return {one["device_id"]: one["state"] for one in found["assignments"]}

    def device(self, device_id: str = "dev-1", *, accepted: bool = True, **changes: Any) -> FakeDevice:
        """A device that has enrolled and, if accepted, has a session."""
        device = FakeDevice(self, device_id, **changes)
        assert device.enrol().status_code == 200
        if accepted:
            assert self.operator("POST", f"/devices/{device_id}/accept").status_code == 200
            device.log_in()
        return device


class FakeDevice:
    """A device with its own key; each call is one request of the protocol."""

    def __init__(
        self, server: Server, device_id: str, hardware: str = HARDWARE, key: DeviceKey | None = None
    ) -> None:
        self.server = server
        self.device_id = device_id
        self.hardware = hardware
        self.key = key or DeviceKey(generate())
        self.token = ""
        self.seq = 0

    def send(self, path: str, message: msgspec.Struct, *, bearer: bool = True) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if bearer else {}
        return self.server.http("POST", PREFIX + path, body=encode(message), headers=headers)

    def enrol_request(self, **changes: Any) -> EnrolRequest:
        signed = enrolment_bytes(self.device_id, self.hardware, self.key.public_pem)
        request = EnrolRequest(
            device_id=self.device_id,
            hardware=self.hardware,
            public_key=self.key.public_pem,
            proof=self.key.sign(signed),
        )
        return msgspec.structs.replace(request, **changes)

    def enrol(self, **changes: Any) -> httpx.Response:
        return self.send("/enrol", self.enrol_request(**changes), bearer=False)

    def challenge(self) -> str:
        answer = self.send("/challenge", ChallengeRequest(device_id=self.device_id), bearer=False)
        return decode_answer(answer.content, ChallengeAnswer).challenge

    def open_session(self, challenge: str, key: DeviceKey | None = None) -> httpx.Response:
        signature = (key or self.key).sign(session_bytes(self.device_id, challenge))
        request = SessionRequest(device_id=self.device_id, challenge=challenge, signature=signature)
        return self.send("/session", request, bearer=False)

    def log_in(self) -> None:
        answer = self.open_session(self.challenge())
        assert answer.status_code == 200, answer.text
        self.token = decode_answer(answer.content, SessionAnswer).token

    def poll(self, **facts: Any) -> httpx.Response:
        request = PollRequest(**{"hardware": self.hardware, "slot": "a", "product": PRODUCT} | facts)
        return self.send("/poll", request)

    def assignment(self, **facts: Any) -> Assignment | None:
        answer = self.poll(**facts)
        assert answer.status_code == 200, answer.text
        return decode_answer(answer.content, PollAnswer).assignment

    def report(self, state: str, assignment_id: str = "", *, seq: int | None = None, **fields: Any) -> Report:
        """A report with the next `seq`, or the one that is given."""
        if seq is None:
            self.seq += 1
            seq = self.seq
        values = {"device_id": self.device_id, "nonce": f"n{seq}", "state": state, "seq": seq}
        return msgspec.convert(values | {"assignment_id": assignment_id} | fields, Report)

    def sign(self, report: Report, key: DeviceKey | None = None) -> SignedReport:
        body = encode(report)
        return SignedReport(body=body, signature=(key or self.key).sign(report_bytes(body)))

    def send_reports(self, *reports: Report | SignedReport) -> httpx.Response:
        signed = tuple(self.sign(one) if isinstance(one, Report) else one for one in reports)
        return self.send("/reports", ReportBatch(reports=signed))

    def tell(self, state: str, assignment_id: str = "", **fields: Any) -> tuple[int, ...]:
        """Sends one report and returns what the server says is durable."""
        answer = self.send_reports(self.report(state, assignment_id, **fields))
        assert answer.status_code == 200, answer.text
        return decode_answer(answer.content, ReportAnswer).durable

    def download(self, sha256: str, method: str = "GET", **headers: str) -> httpx.Response:
        bearer = {"Authorization": f"Bearer {self.token}"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.server.http(method, f"{PREFIX}/payloads/{sha256}", headers=bearer | named)


class Counted:
    """Counts how often each path is asked for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.asked.append(scope["path"])
        await self.app(scope, receive, send)


class Site:
    """A server's application on a loopback socket, in a thread of its own."""

    def __init__(self, server: Server) -> None:
        self.counted = Counted(server.app)
        self.listener = listen("127.0.0.1", 0)
        self.address = address_of(self.listener)
        config = uvicorn.Config(self.counted, http=BoundedHttp, lifespan="off", log_config=None, ws="none")
        self.uvicorn = uvicorn.Server(config)
        run = self.uvicorn.run
        self.thread = threading.Thread(target=run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(30)
        self.listener.close()


def code_of(answer: httpx.Response) -> str:
    """The error code of an answer, which must be an ErrorAnswer with all its fields."""
    assert answer.headers["content-type"] == "application/json", answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "what", "hint"}, body
    assert "Traceback" not in answer.text
    return str(body["error"]["code"])
