"""Laws of what a publisher or a key holder is handed: any bytes are what they claim to be, or are refused."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.core import details
from twinlock.core.details import Details, Sbom
from twinlock.core.errors import TwinlockError
from twinlock.publish import folder, request, sbom
from twinlock.server.enrolment.fleet_ca import FleetCa

Parser = Callable[[bytes], object]

DETAILS = Details(
    format="twinlock-details",
    format_version=1,
    product="demo",
    version="1.0",
    kind="feature",
    support_ends="2031-01-31",
    advisory="text",
    sbom=Sbom("spdx", "2.3", bytes(32), 10, 1),
)
REQUEST = request.Request(
    format="twinlock-signing-request",
    format_version=1,
    roots=(b"root",),
    base={"targets": b"list"},
    files={"targets": b"list"},
    manifests={},
)
RECORD = folder.ReleaseRecord(
    format="twinlock-release",
    format_version=1,
    manifest_sha256="a" * 64,
    manifest_size_bytes=100,
    product="demo",
    version="1.0",
    payloads=(folder.PayloadRecord(kind="full", sha256="b" * 64, size_bytes=9, index_size_bytes=3),),
)
SPDX = (
    b'{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT","name":"n","documentNamespace":"u","packages":[]}'
)
GOOD: dict[str, tuple[bytes, Parser]] = {
    "details": (details.encode(DETAILS), details.decode),
    "request": (request.encode(REQUEST), lambda data: request.decode(data, "it")),
    "record": (folder.encode_record(RECORD), lambda data: folder.decode_record(data, "it")),
    "cyclonedx": (b'{"bomFormat":"CycloneDX","specVersion":"1.6"}', lambda data: sbom.parse(data, "it")),
    "spdx": (SPDX, lambda data: sbom.parse(data, "it")),
}
PARSERS: dict[str, Parser] = {name: parser for name, (_, parser) in GOOD.items()}
PARSERS["fleet CA"] = lambda data: FleetCa(data, "it")


def refused(parser: Parser, data: bytes) -> bool:
    """Whether the bytes were refused, with a code of their own."""
    try:
        parser(data)
    except TwinlockError as problem:
        if problem.code == "internal":
            raise
        return True
    return False


@pytest.mark.parametrize("name", GOOD)
def test_the_good_ones_are_taken(name: str) -> None:
    data, parser = GOOD[name]
    assert not refused(parser, data)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    refused(PARSERS[name], data)


@pytest.mark.parametrize("name", GOOD)
@given(at=st.integers(0, 4000), count=st.integers(0, 40), put=st.binary(max_size=20))
def test_good_ones_with_some_bytes_changed(name: str, at: int, count: int, put: bytes) -> None:
    data, parser = GOOD[name]
    at %= len(data)
    refused(parser, data[:at] + put + data[at + count :])


@pytest.mark.parametrize("name", ["details", "request", "record"])
@given(key=st.text("abcdef_", min_size=1, max_size=9), value=st.none() | st.integers() | st.text(max_size=5))
def test_a_field_that_nobody_knows(name: str, key: str, value: object) -> None:
    """It may be what this version must not pass over."""
    data, parser = GOOD[name]
    known = msgspec.json.decode(data)
    if key not in known:
        assert refused(parser, msgspec.json.encode({**known, key: value}))


@pytest.mark.parametrize("name", ["details", "request", "record"])
@given(version=st.integers(-(2**70), 2**70), named=st.text(max_size=20))
def test_a_format_from_later(name: str, version: int, named: str) -> None:
    data, parser = GOOD[name]
    known = msgspec.json.decode(data)
    if version != 1:
        text = data.replace(b'"format_version": 1', b'"format_version": %d' % version)
        text = text.replace(b'"format_version":1', b'"format_version":%d' % version)
        assert text != data
        assert refused(parser, text)
    if named != known["format"]:
        assert refused(parser, msgspec.json.encode({**known, "format": named}))
