"""Payload parts and index: what decodes, what is refused, and that a bomb never goes off."""

from __future__ import annotations

import hashlib
import random
import resource
from collections.abc import Callable

import pytest

from tests.unit.core.test_limits import a_manifest
from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.core.payload import container, parts
from twinlock.core.payload.parts import Zero, Zstd, check_encoded, check_part, decode_part, is_zero
from twinlock.core.zstd import CompressionParameter, ZstdCompressor, compress


def refused(step: Callable[[], object]) -> str:
    with pytest.raises(TwinlockError) as caught:
        step()
    return caught.value.code


def part_of(encoded: bytes) -> Zstd:
    return Zstd(len(encoded), hashlib.sha256(encoded).digest())


def decode(encoded: bytes, length_bytes: int) -> bytes | bytearray:
    part = part_of(encoded)
    check_encoded(part, encoded, 0)
    return decode_part(part, encoded, length_bytes, 0)


@pytest.mark.parametrize("length", [1, 512, 65535, 65536, 65537, MIB])
def test_zeros_are_zeros_and_one_bit_is_not(length: int) -> None:
    data = bytearray(length)
    assert is_zero(bytes(data))
    for position in {0, length // 2, length - 1}:
        data[position] = 1
        assert not is_zero(memoryview(data))
        data[position] = 0


def test_nothing_is_zero() -> None:
    assert is_zero(b"")


@pytest.mark.parametrize("length", [1, 512, MIB - 512, MIB])
def test_a_zstd_part_gives_its_segment(rng: random.Random, length: int) -> None:
    data = rng.randbytes(length)
    assert decode(compress(data, 3), length) == data


def test_a_zero_part_gives_zeros_and_has_no_bytes() -> None:
    check_part(Zero())
    check_encoded(Zero(), b"", 0)
    assert decode_part(Zero(), b"", 1000, 0) == bytes(1000)
    assert refused(lambda: check_encoded(Zero(), b"x", 0)) == "payload-part-hash"


def test_other_bytes_than_the_index_names_are_refused() -> None:
    encoded = compress(b"twinlock" * 100)
    part = part_of(encoded)
    for other in (b"", encoded[:-1], encoded + b"\0", encoded[:-1] + bytes([encoded[-1] ^ 1])):
        assert refused(lambda other=other: check_encoded(part, other, 0)) == "payload-part-hash"  # type: ignore[misc]


def test_a_part_of_another_length_is_refused() -> None:
    encoded = compress(bytes(range(256)) * 4)
    for length_bytes in (1, 1023, 1025, MIB):
        assert refused(lambda n=length_bytes: decode(encoded, n)) == "payload-malformed"  # type: ignore[misc]


@pytest.mark.parametrize(
    "encoded",
    [
        b"x",
        b"not zstd at all",
        compress(b"twinlock" * 64)[:-3],  # cut
        compress(b"twinlock" * 64) + b"more",
        compress(b"twinlock" * 32) + compress(b"twinlock" * 32),  # two frames
        compress(b""),
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd",  # a skippable frame
    ],
)
def test_what_is_not_one_whole_frame_is_refused(encoded: bytes) -> None:
    assert refused(lambda: decode(encoded, 512)) == "payload-malformed"


def bomb(size_bytes: int) -> bytes:
    return compress(bytes(size_bytes), 1)


def test_a_bomb_is_refused_and_never_unpacked() -> None:
    encoded = bomb(256 * MIB)
    assert len(encoded) < 64 * 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(lambda: decode(encoded, MIB)) == "payload-malformed"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < 64, f"decoding a bomb took {grown} MiB"


@pytest.mark.parametrize(
    ("window_log", "passes"), [(limits.WINDOW_LOG_MAX, True), (limits.WINDOW_LOG_MAX + 1, False)]
)
def test_a_window_past_the_bound_is_refused_before_it_is_allocated(window_log: int, passes: bool) -> None:
    compressor = ZstdCompressor(
        options={CompressionParameter.window_log: window_log, CompressionParameter.content_size_flag: 0}
    )
    encoded = compressor.compress(b"x" * 1000) + compressor.flush(ZstdCompressor.FLUSH_FRAME)
    if passes:
        assert decode(encoded, 1000) == b"x" * 1000
    else:
        assert refused(lambda: decode(encoded, 1000)) == "payload-malformed"


@pytest.mark.parametrize(
    "part", [Zstd(0, bytes(32)), Zstd(-1, bytes(32)), Zstd(10, bytes(31)), Zstd(10, b"")]
)
def test_a_part_out_of_bounds_is_refused(part: parts.Part) -> None:
    assert refused(lambda: check_part(part)) == "payload-malformed"


# The index and its manifest


def test_offsets_follow_the_parts() -> None:
    index = container.Index(
        bytes(32), 4 * MIB, None, (Zstd(5, bytes(32)), Zero(), Zstd(7, bytes(32)), Zero())
    )
    assert index.offsets() == [0, 5, 5, 12, 12]


def fitting() -> tuple[container.Index, int]:
    index = container.Index(bytes(32), 512, None, (Zstd(5, bytes(32)),))
    return index, 5 + len(container.encode_tail(index))


def test_a_payload_fits_its_manifest() -> None:
    index, size_bytes = fitting()
    container.check_fit(index, a_manifest(), size_bytes)


@pytest.mark.parametrize(
    ("fields", "more_bytes"),
    [
        ({"image_sha256": b"\1" * 32}, 0),
        ({"image_size_bytes": 1024}, 0),
        ({"image_size_bytes": MIB + 512, "segments": bytes(64)}, 0),
        ({}, 1),
        ({}, -1),
    ],
)
def test_a_payload_of_another_image_does_not_fit(fields: dict[str, object], more_bytes: int) -> None:
    index, size_bytes = fitting()
    code = refused(lambda: container.check_fit(index, a_manifest(**fields), size_bytes + more_bytes))
    assert code == "payload-unfit"


def test_a_tail_ends_in_its_magic_and_names_its_index() -> None:
    index, _ = fitting()
    tail = container.encode_tail(index)
    trailer = container.decode_trailer(tail[-container.TRAILER_SIZE_BYTES :])
    assert container.decode_index(tail[: -container.TRAILER_SIZE_BYTES], trailer) == index
    assert tail[-container.TRAILER_SIZE_BYTES :].startswith(container.MAGIC)
