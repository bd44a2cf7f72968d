"""The bounds, pinned, each at its edge: the largest value passes, one more does not.

Raising one changes what a device accepts from a server that it does not trust.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec
import pytest

from twinlock.core import bootrecord, device_key, limits, manifest, protocol
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import GIB, KIB, MIB
from twinlock.core.manifest import Manifest
from twinlock.core.payload import container
from twinlock.core.payload.parts import Zero, Zstd, check_part
from twinlock.core.trust import strict

PINNED = {
    "SEGMENT_SIZE_BYTES": MIB,
    "IMAGE_SIZE_BYTES_MAX": 64 * GIB,
    "SEGMENTS_MAX": 65536,
    "PART_SIZE_BYTES_MAX": MIB + 64 * KIB,
    "INDEX_SIZE_BYTES_MAX": 16 * MIB,
    "PAYLOAD_SIZE_BYTES_MAX": 65 * GIB + 16 * MIB,
    "WINDOW_LOG_MAX": 23,
    "WINDOW_SIZE_BYTES_MAX": 8 * MIB,
    "MANIFEST_SIZE_BYTES_MAX": 4 * MIB,
    "HARDWARE_IDS_MAX": 64,
    "NAME_LENGTH_MAX": 64,
    "VERSION_LENGTH_MAX": 64,
    "COUNTER_MAX": 2**31 - 1,
    "NOTES_LENGTH_MAX": 4096,
    "DETAILS_SIZE_BYTES_MAX": 256 * KIB,
    "ADVISORY_LENGTH_MAX": 16 * KIB,
    "SBOM_SIZE_BYTES_MAX": 64 * MIB,
    "METADATA_SIZE_BYTES_MAX": {
        "root": 512 * KIB,
        "timestamp": 16 * KIB,
        "snapshot": 2 * MIB,
        "targets": 5 * MIB,
    },
    "ROOT_ROTATIONS_MAX": 256,
    "JSON_DEPTH_MAX": 32,
    "METADATA_VERSION_MAX": 2**31 - 1,
    "MESSAGE_SIZE_BYTES_MAX": 64 * KIB,
    "REPORT_SIZE_BYTES_MAX": 16 * KIB,
    "REPORTS_PER_BATCH_MAX": 16,
    "REPORT_DETAIL_LENGTH_MAX": 4096,
    "NOTICED_CODES_MAX": 32,
    "NOTICED_COUNT_MAX": 1_000_000,
    "EVIDENCE_SIZE_BYTES_MAX": 64 * KIB,
    "EVIDENCE_TEXT_SIZE_BYTES_MAX": MIB,
    "PAYLOAD_OFFERS_MAX": 8,
    "DEVICE_ID_LENGTH_MAX": 64,
    "POLL_WAIT_S_MIN": 1,
    "POLL_WAIT_S_MAX": 604_800,
    "SLOT_TAIL_SIZE_BYTES": 64 * KIB,
    "TRIES_MAX": 7,
    "BOOT_REASON_BYTES_MAX": 96,
}


@pytest.mark.parametrize("name", PINNED)
def test_a_bound_is_what_it_was(name: str) -> None:
    assert getattr(limits, name) == PINNED[name]


def refused(step: Callable[[], object], code: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        step()
    assert caught.value.code == code


def a_manifest(**fields: object) -> Manifest:
    made = Manifest(
        format="twinlock-manifest",
        format_version=1,
        product="demo",
        version="1.0",
        hardware=("board",),
        counter=1,
        image_size_bytes=512,
        image_sha256=bytes(32),
        segment_size_bytes=MIB,
        segments=bytes(32),
    )
    return msgspec.structs.replace(made, **fields)


@pytest.mark.parametrize(
    ("largest", "one_more"),
    [
        ({"counter": 2**31 - 1}, {"counter": 2**31}),
        ({"counter": 0}, {"counter": -1}),
        ({"notes": "x" * 4096}, {"notes": "x" * 4097}),
        ({"product": "x" * 64}, {"product": "x" * 65}),
        ({"version": "x" * 64}, {"version": "x" * 65}),
        (
            {"hardware": tuple(f"h{number}" for number in range(64))},
            {"hardware": tuple(f"h{number}" for number in range(65))},
        ),
        (
            {"image_size_bytes": 64 * GIB, "segments": bytes(32 * 65536)},
            {"image_size_bytes": 64 * GIB + 512, "segments": bytes(32 * 65537)},
        ),
    ],
)
def test_a_manifest_at_its_bounds(largest: dict[str, object], one_more: dict[str, object]) -> None:
    manifest.check(a_manifest(**largest))
    refused(lambda: manifest.check(a_manifest(**one_more)), "manifest-malformed")


def test_a_manifest_is_not_parsed_past_its_size() -> None:
    data = manifest.encode(a_manifest())
    padded = data + b" " * (limits.MANIFEST_SIZE_BYTES_MAX - len(data))
    assert manifest.decode(padded) == a_manifest()
    refused(lambda: manifest.decode(padded + b" "), "manifest-malformed")


def test_a_part_at_its_bound() -> None:
    check_part(Zstd(limits.PART_SIZE_BYTES_MAX, bytes(32)))
    refused(lambda: check_part(Zstd(limits.PART_SIZE_BYTES_MAX + 1, bytes(32))), "payload-malformed")


def index_of(parts: int) -> tuple[bytes, container.Trailer]:
    index = container.Index(bytes(32), limits.IMAGE_SIZE_BYTES_MAX, None, (Zero(),) * parts)
    body = container.encode_tail(index)[: -container.TRAILER_SIZE_BYTES]
    return body, container.Trailer(len(body), hashlib.sha256(body).digest())


def test_an_index_at_its_bounds() -> None:
    assert len(container.decode_index(*index_of(limits.SEGMENTS_MAX)).parts) == limits.SEGMENTS_MAX
    refused(lambda: container.decode_index(*index_of(limits.SEGMENTS_MAX + 1)), "payload-malformed")


def test_an_index_size_at_its_bound() -> None:
    tail = container.encode_tail(container.Index(bytes(32), 512, None, (Zero(),)))

    def trailer(size_bytes: int) -> container.Trailer:
        data = bytearray(tail[-container.TRAILER_SIZE_BYTES :])
        data[16:24] = size_bytes.to_bytes(8, "little")
        return container.decode_trailer(bytes(data))

    assert trailer(limits.INDEX_SIZE_BYTES_MAX).index_size_bytes == limits.INDEX_SIZE_BYTES_MAX
    refused(lambda: trailer(limits.INDEX_SIZE_BYTES_MAX + 1), "payload-malformed")


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_metadata_is_not_parsed_past_its_size(role: str) -> None:
    size_bytes = limits.METADATA_SIZE_BYTES_MAX[role]
    assert strict.load(b"{}".ljust(size_bytes), size_bytes, role) == {}
    refused(lambda: strict.load(b"{}".ljust(size_bytes + 1), size_bytes, role), "metadata-malformed")


def test_json_is_not_parsed_past_its_depth() -> None:
    def nested(depth: int) -> bytes:
        return b'{"x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    strict.load(nested(limits.JSON_DEPTH_MAX), 1000, "x")
    refused(lambda: strict.load(nested(limits.JSON_DEPTH_MAX + 1), 1000, "x"), "metadata-malformed")


def test_a_message_is_not_parsed_past_its_size() -> None:
    data = protocol.encode(protocol.ChallengeRequest(device_id="d")).ljust(limits.MESSAGE_SIZE_BYTES_MAX)
    assert protocol.decode_request(data, protocol.ChallengeRequest).device_id == "d"
    refused(lambda: protocol.decode_request(data + b" ", protocol.ChallengeRequest), "request-too-large")
    refused(lambda: protocol.decode_answer(data + b" ", protocol.ChallengeRequest), "answer-malformed")


def test_a_trial_at_its_bounds() -> None:
    record = bootrecord.invalidate(bootrecord.initial(), "b")
    assert bootrecord.arm(record, "b", limits.TRIES_MAX, "t").tries_left == 7
    for tries in (0, limits.TRIES_MAX + 1):
        refused(lambda tries=tries: bootrecord.arm(record, "b", tries, "t"), "boot-refused")  # type: ignore[misc]
    assert len(bootrecord.clip_reason("ä" * 96).encode()) <= limits.BOOT_REASON_BYTES_MAX


def test_a_public_key_is_not_parsed_past_its_size() -> None:
    pem = device_key.DeviceKey(device_key.generate()).public_pem
    assert device_key.DevicePublicKey(pem.ljust(device_key.PEM_SIZE_BYTES_MAX)).fingerprint
    refused(lambda: device_key.DevicePublicKey(pem.ljust(device_key.PEM_SIZE_BYTES_MAX + 1)), "input-invalid")


def test_the_largest_image_fits_every_other_bound() -> None:
    """A release at the bounds must be describable: manifest, index and payload bounds leave room for it."""
    index = container.Index(
        bytes(32),
        limits.IMAGE_SIZE_BYTES_MAX,
        bytes(32),
        (Zstd(limits.PART_SIZE_BYTES_MAX, b"\xff" * 32),) * limits.SEGMENTS_MAX,
    )
    assert len(msgspec.msgpack.encode(index)) <= limits.INDEX_SIZE_BYTES_MAX
    largest = a_manifest(
        image_size_bytes=limits.IMAGE_SIZE_BYTES_MAX,
        segments=b"\xff" * 32 * limits.SEGMENTS_MAX,
        hardware=tuple(f"{number:064}" for number in range(limits.HARDWARE_IDS_MAX)),
        notes="\x7f" * limits.NOTES_LENGTH_MAX,
    )
    assert len(manifest.encode(largest)) <= limits.MANIFEST_SIZE_BYTES_MAX
