"""Evidence of devices: signed, bounded, kept before it is acknowledged, shown as the device wrote it."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from tests.unit.server.rig import FakeDevice, Server, code_of, make_release
from twinlock.core import limits
from twinlock.core.device_key import DeviceKey, evidence_bytes, generate, report_bytes
from twinlock.core.protocol import Evidence, EvidenceAnswer, SignedEvidence, decode_answer, encode
from twinlock.core.zstd import compress
from twinlock.server.devices import evidence

TEXT = "Kernel panic - not syncing: \x1b[31mno init\nEnd\n"


@pytest.fixture
def device(server: Server) -> FakeDevice:
    server.publish(make_release("1.1", 1))
    return server.device()


def piece(text: str = TEXT, **changes: Any) -> Evidence:
    values: dict[str, Any] = {"device_id": "dev-1", "kind": "pstore", "data": compress(text.encode(), 3)}
    return Evidence(
        **{**values, "product": "demo", "version": "1.1", "slot": "b", "time_s": 1_800_000_000} | changes
    )


def send(
    device: FakeDevice, said: Evidence | bytes, *, key: DeviceKey | None = None, bearer: bool = True
) -> httpx.Response:
    body = said if isinstance(said, bytes) else encode(said)
    signature = (key or device.key).sign(evidence_bytes(body))
    return device.send("/evidence", SignedEvidence(body=body, signature=signature), bearer=bearer)


def taken(device: FakeDevice, said: Evidence) -> str:
    answer = send(device, said)
    assert answer.status_code == 200, answer.text
    return decode_answer(answer.content, EvidenceAnswer).durable


def listed(server: Server) -> Any:
    return server.operator("GET", "/devices/dev-1").json()["evidence"]


def test_a_piece_is_kept_listed_and_read(server: Server, device: FakeDevice) -> None:
    name = taken(device, piece())
    (one,) = listed(server)
    assert (one["name"], one["kind"], one["version"], one["slot"]) == (name, "pstore", "1.1", "b")
    found = server.operator("GET", f"/devices/dev-1/evidence/{name}").json()
    assert found == {"name": name, "text": TEXT}
    assert taken(device, piece()) == name
    assert len(listed(server)) == 1, "the same piece is kept once"


def test_it_outlives_the_server(server: Server, device: FakeDevice) -> None:
    name = taken(device, piece())
    server.stop()
    server.start()
    assert [one["name"] for one in listed(server)] == [name]


def test_the_oldest_goes_when_there_are_too_many(server: Server, device: FakeDevice) -> None:
    names = []
    for number in range(evidence.KEPT_PER_DEVICE + 3):
        names.append(taken(device, piece(f"piece {number}")))
        server.clock.advance(1)
    assert [one["name"] for one in listed(server)] == names[: -evidence.KEPT_PER_DEVICE - 1 : -1]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device_id": "dev-2"}, "request-malformed"),
        ({"data": b"rubbish"}, "request-malformed"),
        ({"data": b""}, "request-malformed"),
        ({"data": compress(b"cut", 3)[:-2]}, "request-malformed"),
        ({"data": compress(b"one", 3) + compress(b"two", 3)}, "request-malformed"),
        ({"data": compress(bytes(limits.EVIDENCE_TEXT_SIZE_BYTES_MAX + 1), 3)}, "request-malformed"),
        ({"data": bytes(limits.EVIDENCE_SIZE_BYTES_MAX + 1)}, "request-malformed"),
        ({"slot": "c"}, "request-malformed"),
        ({"product": "../x"}, "request-malformed"),
        ({"version": "\n"}, "request-malformed"),
        ({"assignment_id": "x" * 200}, "request-malformed"),
        ({"time_s": -1}, "request-malformed"),
    ],
)
def test_what_is_out_of_bounds_is_refused(
    server: Server, device: FakeDevice, changes: dict[str, Any], code: str
) -> None:
    answer = send(device, piece(**changes))
    assert (answer.status_code >= 400, code_of(answer)) == (True, code)
    assert listed(server) == []


def test_the_largest_piece_is_taken(server: Server, device: FakeDevice) -> None:
    data = compress(bytes(limits.EVIDENCE_TEXT_SIZE_BYTES_MAX), 3)
    assert taken(device, piece(data=data))


def test_a_body_that_is_too_large_is_refused(device: FakeDevice) -> None:
    assert code_of(send(device, b"x" * (evidence.BODY_SIZE_BYTES_MAX + 1))) == "request-too-large"
    assert code_of(send(device, b"x" * (2 * evidence.MESSAGE_SIZE_BYTES_MAX))) == "request-too-large"
    assert code_of(send(device, b"{}")) == "request-malformed"


def test_only_the_devices_own_key_counts(server: Server, device: FakeDevice) -> None:
    assert code_of(send(device, piece(), key=DeviceKey(generate()))) == "signature-invalid"
    body = encode(piece())
    as_report = SignedEvidence(body=body, signature=device.key.sign(report_bytes(body)))
    assert code_of(device.send("/evidence", as_report)) == "signature-invalid"
    assert code_of(send(device, piece(), bearer=False)) == "unauthorised"
    server.operator("POST", "/devices/dev-1/reject")
    assert code_of(send(device, piece())) == "enrolment-rejected"


def test_what_is_not_there_is_not_found(server: Server, device: FakeDevice) -> None:
    name = taken(device, piece())
    server.device("dev-2")
    for path in (f"/devices/dev-2/evidence/{name}", f"/devices/dev-1/evidence/{'0' * 64}"):
        assert code_of(server.operator("GET", path)) == "not-found"
    assert server.operator("GET", "/devices/dev-1/evidence/short").status_code == 400
    assert server.operator("GET", f"/devices/nobody/evidence/{name}").status_code == 404


def test_a_device_page_names_it_and_a_page_of_its_own_shows_it(server: Server, device: FakeDevice) -> None:
    name = taken(device, piece("<script>x</script>\x1b[2J end"))
    link = f"/devices/dev-1/evidence/{name}"
    cookie = server.http("POST", "/login", body=f"token={server.token}".encode()).headers["set-cookie"]
    server._client.cookies.clear()
    headers = {"Cookie": cookie.partition(";")[0]}
    assert server.http("GET", link).status_code == 303, "nobody sees it without a login"
    assert link in server.http("GET", "/devices/dev-1", headers=headers).text
    page = server.http("GET", link, headers=headers)
    assert page.status_code == 200
    assert "&lt;script&gt;" in page.text
    assert "\x1b" not in page.text
    assert server.http("GET", f"/devices/dev-1/evidence/{'0' * 64}", headers=headers).status_code == 404


def test_the_body_is_kept_as_it_was_signed(server: Server, device: FakeDevice) -> None:
    said = piece()
    name = taken(device, said)
    with server.database.read() as transaction:
        body = transaction.evidence.body("dev-1", name)
    assert body is not None
    assert msgspec.json.decode(body, type=Evidence) == said
