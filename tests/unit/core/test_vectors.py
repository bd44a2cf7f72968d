"""The wire formats, byte for byte: what was written once is read for ever, what was refused stays refused.

Each file in tests/vectors holds one format and version. A change that fails here is a change of format: it
needs a new version, and a new file beside the old one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest

from tests.project_files import ROOT
from twinlock.core import bootrecord, errors, manifest, protocol
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.core.payload import container
from twinlock.core.payload.base import BytesBase
from twinlock.core.payload.parts import Patch, check_encoded, decode_part


def vectors(name: str) -> Any:
    return json.loads((ROOT / "tests/vectors" / name).read_text(encoding="utf-8"))


def named(cases: list[Any]) -> list[Any]:
    return [pytest.param(case, id=case.get("name") or case["type"]) for case in cases]


def test_error_codes_keep_their_kind_and_exit_code() -> None:
    """A device of ten years ago still sends them: codes may be added, never changed or taken away."""
    known = {
        code: {"kind": spec.kind.value, "exit_code": errors.EXIT_CODES[spec.kind]}
        for code, spec in errors.CATALOGUE.items()
    }
    pinned = vectors("errors.json")
    assert {code: known.get(code) for code in pinned} == pinned


def test_every_error_code_is_pinned() -> None:
    assert set(errors.CATALOGUE) - set(vectors("errors.json")) == set()


# Manifest

MANIFESTS = vectors("manifest-v1.json")


@pytest.mark.parametrize("case", named(MANIFESTS["accepted"]))
def test_a_manifest_reads_and_writes_as_ever(case: dict[str, Any]) -> None:
    data = case["text"].encode()
    made = manifest.decode(data)
    found = {
        name: value.hex() if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value
        for name, value in ((name, getattr(made, name)) for name in case["fields"])
    }
    assert found == case["fields"]
    assert manifest.encode(made) == data


@pytest.mark.parametrize("case", named(MANIFESTS["refused"]))
def test_a_manifest_is_refused_as_ever(case: dict[str, Any]) -> None:
    with pytest.raises(TwinlockError) as caught:
        manifest.decode(case["text"].encode())
    assert caught.value.code == case["code"]


# Payload

PAYLOADS = vectors("payload-v1.json")


def open_payload(data: bytes) -> tuple[container.Index, container.Trailer]:
    trailer = container.decode_trailer(data[-container.TRAILER_SIZE_BYTES :])
    end = len(data) - container.TRAILER_SIZE_BYTES
    return container.decode_index(data[max(0, end - trailer.index_size_bytes) : end], trailer), trailer


@pytest.mark.parametrize("case", named(PAYLOADS["accepted"]))
def test_a_payload_reads_as_ever(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["payload"])
    index, _ = open_payload(data)
    image = hashlib.sha256()
    offsets = index.offsets()
    for number, (part, segment) in enumerate(zip(index.parts, case["segments"], strict=True)):
        encoded = data[offsets[number] : offsets[number + 1]]
        check_encoded(part, encoded, number)
        decoded = decode_part(part, encoded, len(segment["repeat"]) // 2 * segment["times"], number)
        assert hashlib.sha256(decoded).hexdigest() == segment["sha256"]
        image.update(decoded)
    assert image.hexdigest() == index.image_sha256.hex() == case["image_sha256"]
    assert index.image_size_bytes == case["image_size_bytes"]
    assert data.endswith(container.encode_tail(index))


@pytest.mark.parametrize("case", named(PAYLOADS["refused"]))
def test_a_payload_is_refused_as_ever(case: dict[str, Any]) -> None:
    with pytest.raises(TwinlockError) as caught:
        open_payload(bytes.fromhex(case["payload"]))
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", named(PAYLOADS["patches"]))
def test_a_patch_is_applied_or_refused_as_ever(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["part"])
    part, base = Patch(len(data), bytes(32)), BytesBase(bytes.fromhex(case["base"]))
    if "sha256" in case:
        decoded = decode_part(part, data, case["length"], 0, base)
        assert hashlib.sha256(decoded).hexdigest() == case["sha256"]
        return
    with pytest.raises(TwinlockError) as caught:
        decode_part(part, data, case["length"], 0, base)
    assert caught.value.code == case["code"]


def test_the_vectors_hold_whole_segments() -> None:
    for case in PAYLOADS["accepted"]:
        lengths = [len(one["repeat"]) // 2 * one["times"] for one in case["segments"]]
        assert all(length == MIB for length in lengths[:-1])


# Boot record

RECORDS = vectors("bootrecord-v1.json")


@pytest.mark.parametrize("case", named(RECORDS["records"]))
def test_a_boot_record_reads_and_writes_as_ever(case: dict[str, Any]) -> None:
    sector = bytes.fromhex(case["sector"]).ljust(bootrecord.SECTOR_SIZE_BYTES, b"\0")
    record = bootrecord.decode(sector)
    assert record is not None
    found = {name: getattr(record, name) for name in case["record"]} | {"failed": sorted(record.failed)}
    assert found == case["record"]
    assert bootrecord.encode(record) == sector
    assert bootrecord.next_boot(record)[0] == case["boots"]


@pytest.mark.parametrize("case", named(RECORDS["refused"]))
def test_a_boot_record_is_refused_as_ever(case: dict[str, Any]) -> None:
    assert bootrecord.decode(bytes.fromhex(case["sector"])) is None


# Protocol

MESSAGES = vectors("protocol-v1.json")


def kind_of(case: dict[str, Any]) -> type[msgspec.Struct]:
    kind: type[msgspec.Struct] = getattr(protocol, case["type"])
    return kind


@pytest.mark.parametrize("case", named(MESSAGES["messages"]))
def test_a_message_reads_and_writes_as_ever(case: dict[str, Any]) -> None:
    data = case["text"].encode()
    assert protocol.encode(protocol.decode_request(data, kind_of(case))) == data
    assert protocol.encode(protocol.decode_answer(data, kind_of(case))) == data


@pytest.mark.parametrize("case", named(MESSAGES["refused"]))
def test_a_message_is_refused_as_ever(case: dict[str, Any]) -> None:
    data = case["text"].encode()
    with pytest.raises(TwinlockError) as caught:
        protocol.decode_request(data, kind_of(case))
    assert caught.value.code == "request-malformed"
    with pytest.raises(TwinlockError) as caught:
        protocol.decode_answer(data, kind_of(case))
    assert caught.value.code == "answer-malformed"


def test_every_message_has_a_vector() -> None:
    kinds = {
        name
        for name, kind in vars(protocol).items()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == protocol.__name__
    }
    inner = {"PayloadOffer", "Assignment", "ErrorBody"}  # travel inside others
    assert kinds - inner - {case["type"] for case in MESSAGES["messages"]} == set()
