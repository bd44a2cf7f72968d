"""Downloads: for accepted devices, whole or in ranges (RFC 9110), the ETag is the hash."""

from __future__ import annotations

from email import message_from_bytes
from pathlib import Path

import pytest

from tests.unit.server.rig import FakeDevice, Server, code_of, make_release
from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.server.device_api import downloads

RELEASE = make_release("1.1", segments=5)
SHA256 = RELEASE.sha256
DATA = RELEASE.payload
SIZE = len(DATA)


@pytest.fixture
def device(server: Server) -> FakeDevice:
    server.publish(RELEASE)
    return server.device()


def test_the_whole_payload(device: FakeDevice) -> None:
    answer = device.download(SHA256)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["content-type"] == "application/octet-stream"


def test_head_says_all_but_the_bytes(device: FakeDevice) -> None:
    answer = device.download(SHA256, "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer.headers["content-length"], answer.headers["etag"]) == (str(SIZE), f'"{SHA256}"')


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=10-", 10, SIZE - 1),
        ("bytes=-10", SIZE - 10, SIZE - 1),
        (f"bytes=-{SIZE * 2}", 0, SIZE - 1),
        (f"bytes=0-{SIZE * 2}", 0, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        ("Bytes = 1-2", 1, 2),
        (f"bytes={SIZE}-,3-4", 3, 4),
    ],
)
def test_a_range(device: FakeDevice, asked: str, first: int, last: int) -> None:
    answer = device.download(SHA256, range=asked)
    assert (answer.status_code, answer.content) == (206, DATA[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["content-length"] == str(last - first + 1)
    assert answer.headers["etag"] == f'"{SHA256}"'


def test_several_ranges_come_as_parts(device: FakeDevice) -> None:
    answer = device.download(SHA256, range="bytes=0-4,20-29,-5")
    assert answer.status_code == 206
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + answer.content).walk()
    found = [
        (part["content-range"], part.get_payload(decode=True)) for part in parts if not part.is_multipart()
    ]
    assert found == [
        (f"bytes 0-4/{SIZE}", DATA[:5]),
        (f"bytes 20-29/{SIZE}", DATA[20:30]),
        (f"bytes {SIZE - 5}-{SIZE - 1}/{SIZE}", DATA[-5:]),
    ]


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 1}", "bytes=-0"])
def test_a_range_outside_the_payload_is_416(device: FakeDevice, asked: str) -> None:
    answer = device.download(SHA256, range=asked)
    assert (answer.status_code, code_of(answer)) == (416, "range-not-satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=",
        "bytes=a-b",
        "bytes=5-4",
        "bytes=-",
        "bytes=1",
        "bytes=1-2,x",
        "bytes=0x1-2",
        "bytes=+1-2",
        "bytes=1 - 2",
        "bytes=" + "9" * 30 + "-",
        "bytes=" + ",".join(["1-2"] * (downloads.RANGES_MAX + 1)),
        "bytes=" + "1-2," * 2000,
        "bytes",
    ],
)
def test_a_range_that_is_none_is_refused(device: FakeDevice, asked: str) -> None:
    answer = device.download(SHA256, range=asked)
    assert (answer.status_code, code_of(answer)) == (400, "request-malformed")


def test_a_range_in_another_unit_is_ignored(device: FakeDevice) -> None:
    assert device.download(SHA256, range="items=1-2").status_code == 200


def test_if_range_with_the_etag_resumes_and_with_anything_else_starts_over(device: FakeDevice) -> None:
    known = device.download(SHA256, range="bytes=5-", if_range=f'"{SHA256}"')
    assert (known.status_code, known.content) == (206, DATA[5:])
    dated = device.download(SHA256).headers["last-modified"]
    for condition in ('"other"', f'W/"{SHA256}"', dated, SHA256):
        fresh = device.download(SHA256, range="bytes=5-", if_range=condition)
        assert (fresh.status_code, fresh.content) == (200, DATA), condition
    unreadable = device.download(SHA256, range="bytes=x", if_range='"other"')
    assert unreadable.status_code == 200


@pytest.mark.parametrize("condition", [f'"{SHA256}"', f'W/"{SHA256}"', f'"x", "{SHA256}"', "*"])
def test_if_none_match_spares_the_bytes(device: FakeDevice, condition: str) -> None:
    answer = device.download(SHA256, if_none_match=condition)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert device.download(SHA256, if_none_match='"other"').status_code == 200


def test_only_accepted_devices_download(server: Server, device: FakeDevice) -> None:
    assert code_of(server.http("GET", f"/device/v1/payloads/{SHA256}")) == "unauthorised"
    waiting = server.device("dev-2", accepted=False)
    assert code_of(waiting.download(SHA256)) == "unauthorised"
    server.operator("POST", "/devices/dev-1/reject")
    answer = device.download(SHA256)
    assert (answer.status_code, code_of(answer)) == (403, "enrolment-rejected")


def test_a_payload_of_no_release_is_not_given_out(server: Server, device: FakeDevice) -> None:
    other = make_release("1.2")
    server.upload(other)
    answer = device.download(other.sha256)
    assert (answer.status_code, code_of(answer)) == (404, "not-found")


@pytest.mark.parametrize("name", ["0" * 64, "x", "A" * 64, "..", "%2e%2e%2fserver.toml", "../" + "0" * 64])
def test_a_name_that_is_no_payload_is_not_found_or_refused(device: FakeDevice, name: str) -> None:
    answer = device.download(name)
    assert code_of(answer) in ("not-found", "input-invalid")
    assert answer.status_code in (400, 404)


def test_a_payload_that_is_gone_from_the_disk_is_not_found(server: Server, device: FakeDevice) -> None:
    (server.settings.payloads / f"{SHA256}.payload").unlink()
    answer = device.download(SHA256)
    assert (answer.status_code, code_of(answer)) == (404, "not-found")


def test_bytes_are_read_in_chunks_of_one_mebibyte() -> None:
    assert downloads.PayloadResponse.chunk_size == limits.MIB


def test_the_parser_alone() -> None:
    assert downloads.satisfiable("bytes=0-1,4-,-2", 10) == [(0, 1), (4, 9), (8, 9)]
    assert downloads.satisfiable("items=0-1", 10) == []
    with pytest.raises(TwinlockError):
        downloads.satisfiable("bytes=10-", 10)


def test_paths_come_from_hashes_only(server: Server, tmp_path: Path) -> None:
    from twinlock.server.blobs.payloads import PayloadFiles

    files = PayloadFiles(tmp_path, tmp_path)
    for name in ("../x", "x", "A" * 64, "0" * 63, "0" * 64 + "\n"):
        with pytest.raises(TwinlockError, match="SHA-256"):
            files.path(name)
