"""Attacks on the way, cases 30 to 32: time, length and destination, by the whole agent on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.attacks.payload_scene import PACKED, payload_scene
from tests.conformance.driver import serve
from tests.conformance.repository import Repository
from tests.unit.agent.sockets import reply, serving
from twinlock.core import limits
from twinlock.lab import tls

TIMESTAMP = "metadata/timestamp.json"
HONEST_S = 8.0  # how long an attacker keeps it up: far longer than any bound of these tests

Script = Callable[[BaseHTTPRequestHandler], None]


def head(handler: BaseHTTPRequestHandler, *fields: tuple[str, str], status: int = 200) -> None:
    """The head of an answer, with these fields alone."""
    handler.send_response(status)
    for name, value in fields:
        handler.send_header(name, value)
    handler.end_headers()


def slowly(data: bytes, gone: threading.Event, pause_s: float) -> Script:
    """Sends a byte, pauses, and so on: until the test is over, or the attacker gives up and cuts the link."""

    def script(handler: BaseHTTPRequestHandler) -> None:
        head(handler, ("Content-Length", str(len(data))))
        for number in range(int(HONEST_S / pause_s)):
            handler.wfile.write(data[number : number + 1])
            if gone.wait(pause_s):
                break

    return script


def test_case_30_a_drip(tmp_path: Path) -> None:
    """Never a pause, and never an end: a few bytes a second."""
    gone = threading.Event()
    with payload_scene(tmp_path, rate_window_s=0.5, stall_timeout_s=5.0) as device:
        device.install(PACKED)
        data = device.repository.served("timestamp")
        device.repository.scripts[TIMESTAMP] = slowly(data, gone, 0.1)
        device.refuses("transfer-stalled")
        gone.set()


def test_case_30_a_stall_in_the_middle(tmp_path: Path) -> None:
    gone = threading.Event()
    with payload_scene(tmp_path, stall_timeout_s=0.5) as device:
        ranges = device.install(PACKED)

        def script(handler: BaseHTTPRequestHandler) -> None:
            if ranges.asked:
                ranges.asked.append((0, 0))
                head(
                    handler,
                    ("Content-Range", f"bytes 0-{len(parts) - 1}/{len(PACKED.payload)}"),
                    ("Content-Length", str(len(parts))),
                    status=206,
                )
                handler.wfile.write(parts[: len(parts) // 2])
                gone.wait(HONEST_S)
            else:
                ranges(handler)

        parts = PACKED.payload[: PACKED.index.offsets()[-1]]
        device.repository.scripts[f"device/v1/payloads/{PACKED.offer.sha256.hex()}"] = script
        device.refuses("transfer-stalled", but=("b.img", "record"))
        gone.set()
        assert len(ranges.asked) == 2


def test_case_31_a_body_without_an_end(tmp_path: Path) -> None:
    sent = []

    def script(handler: BaseHTTPRequestHandler) -> None:
        head(handler)
        try:
            for _ in range(64):
                handler.wfile.write(bytes(limits.MIB))
                sent.append(limits.MIB)
        except ConnectionError:
            return  # the device hung up, as it should

    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        device.repository.scripts[TIMESTAMP] = script
        device.refuses("transfer-oversized")
    assert sum(sent) < 32 * limits.MIB


def test_case_31_a_length_that_is_a_lie(tmp_path: Path) -> None:
    """A whole, right file, announced as a longer one."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        data = device.repository.served("timestamp")

        def script(handler: BaseHTTPRequestHandler) -> None:
            head(handler, ("Content-Length", str(len(data) + 1)))
            handler.wfile.write(data)

        device.repository.scripts[TIMESTAMP] = script
        device.refuses("connection-lost")


def test_case_31_a_length_given_twice(tmp_path: Path) -> None:
    """A proxy in between may believe the other one."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        data = device.repository.served("timestamp")

        def script(handler: BaseHTTPRequestHandler) -> None:
            head(handler, ("Content-Length", str(len(data))), ("Content-Length", "5"))
            handler.wfile.write(data)

        device.repository.scripts[TIMESTAMP] = script
        device.refuses("answer-malformed")


def test_case_31_a_range_that_is_a_lie(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        device.install(PACKED).shifted_by = 1
        device.refuses("transfer-range")


def to(address: str) -> Script:
    """A redirect to the same path at another address."""

    def script(handler: BaseHTTPRequestHandler) -> None:
        head(handler, ("Location", f"{address}{handler.path}"), ("Content-Length", "0"), status=302)

    return script


def test_case_32_metadata_is_redirected(tmp_path: Path) -> None:
    """To a host where everything is as it should be."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        other = Repository()
        other.files = dict(device.repository.files)
        with serve(other) as address:
            device.repository.scripts[TIMESTAMP] = to(address)
            device.refuses("redirect-refused")
        assert other.asked == []


def test_case_32_a_payload_is_redirected(tmp_path: Path) -> None:
    """The request bears a session's token, which is none of the other host's business."""
    with payload_scene(tmp_path) as device:
        path = f"device/v1/payloads/{PACKED.offer.sha256.hex()}"
        other = Repository()
        other.scripts[path] = device.install(PACKED)
        with serve(other) as address:
            device.repository.scripts[path] = to(address)
            device.refuses("redirect-refused")
        assert other.asked == []


def test_case_32_from_https_to_http(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device, serve(device.repository) as plain:
        device.install(PACKED)
        certificates = tls.make(tmp_path / "tls", ("127.0.0.1",))
        moved = reply(f"307 Temporary Redirect\nLocation: {plain}/device/v1/challenge\nContent-Length: 0")
        with serving(moved, tls=certificates.server) as encrypted:
            device.connect(
                encrypted.url.replace("http://127.0.0.1", "https://127.0.0.1"),
                ca_file=str(certificates.ca_file),
            )
            device.refuses("redirect-refused")
        assert device.repository.asked == []
        assert device.reports == []
