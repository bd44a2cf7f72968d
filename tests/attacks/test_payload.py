"""Attacks on what is installed, cases 1 to 4 and 8 to 10: a signed release, and another payload than its own.

Each drives the whole agent over a real socket, asserts the code that it ends with or reports, and that slots,
boot record, floor and memory are as they were.
"""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import msgspec

from tests.attacks.payload_scene import (
    PACKED,
    PayloadScene,
    body_of,
    flipped,
    payload_scene,
    repacked,
)
from tests.unit.agent.fakes import MIB, image_of, job_for, pack
from twinlock.agent import memory
from twinlock.agent.plan import Running
from twinlock.agent.progress import PARTIAL, Progress
from twinlock.core import limits
from twinlock.core.manifest import Manifest
from twinlock.core.payload import container
from twinlock.core.payload.parts import Copy, Part, Zstd
from twinlock.core.protocol import PayloadOffer
from twinlock.core.zstd import CompressionParameter, ZstdCompressor, compress

OTHER = pack(image_of("xy", tail_bytes=512 * 7), "1.1", 3)


def test_the_scene_installs_what_is_right(tmp_path: Path) -> None:
    """What all the others differ from: the release goes on trial."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        assert device.run() == ""
        assert device.ports.boot.read().trying == "b"
        assert (tmp_path / "b.img").read_bytes().startswith(PACKED.image)


def test_case_01_a_payload_of_something_else(tmp_path: Path) -> None:
    """Whole and consistent, under the signed release's hash: its index is forged to fit the manifest."""
    with payload_scene(tmp_path) as device:
        index = {"image_sha256": PACKED.manifest.image_sha256}
        device.install(repacked(PACKED, OTHER.index.parts, body_of(OTHER), **index))
        device.refuses("segment-hash")


def test_case_01_a_part_swapped_behind_its_index(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        device.install(PACKED, flipped(PACKED.payload, 1000))
        device.refuses("payload-part-hash")


def test_case_01_a_slot_changed_while_the_rest_comes(tmp_path: Path) -> None:
    """Somebody writes to the slot what was written there and checked before; each time that it is mended."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        slot = tmp_path / "b.img"
        sync = os.fdatasync

        def changed(fd: int) -> None:
            sync(fd)
            if Path(f"/proc/self/fd/{fd}").readlink() == slot:
                os.pwrite(fd, b"attacker", 0)

        with patch("os.fdatasync", changed):
            device.refuses("slot-readback", but=("b.img", "record"))


def large(size_bytes: int) -> tuple[Manifest, container.Index, bytes]:
    """A release of zeros up to a last segment, whose part lies behind as many bytes of payload."""
    last = image_of("z")
    count = size_bytes // MIB
    zero, encoded = hashlib.sha256(bytes(MIB)).digest(), compress(last)
    made = msgspec.structs.replace(
        PACKED.manifest,
        image_size_bytes=(count + 1) * MIB,
        image_sha256=bytes(32),
        segments=zero * count + hashlib.sha256(last).digest(),
    )
    parts: tuple[Part, ...] = (
        *[Zstd(MIB, zero)] * count,
        Zstd(len(encoded), hashlib.sha256(encoded).digest()),
    )
    return made, container.Index(bytes(32), made.image_size_bytes, None, parts), encoded


def late_bit(folder: Path, size_bytes: int) -> None:
    """An install that was interrupted past `size_bytes` goes on; a bit of what is left is not right."""
    made, index, encoded = large(size_bytes)
    tail = container.encode_tail(index)
    end = index.offsets()[-1]
    bad = flipped(encoded, -100)

    def read(first: int, last: int) -> bytes:
        if first >= end:
            return tail[first - end : last - end]
        start = end - len(bad)
        assert first >= start, "the rest is there already"
        return bad[first - start : last - start]

    with payload_scene(folder) as device:
        os.truncate(folder / "b.img", 0)
        os.truncate(folder / "b.img", made.image_size_bytes + limits.SLOT_TAIL_SIZE_BYTES)
        device.assign(made)
        progress = Progress.open(
            device.ports.store, job_for(replace(PACKED, manifest=made)), len(index.parts)
        )
        for number in range(len(index.parts) - 1):
            progress.held(number)
        offer = PayloadOffer(
            kind="full",
            sha256=hashlib.sha256(tail).digest(),
            size_bytes=end + len(tail),
            index_size_bytes=len(tail) - container.TRAILER_SIZE_BYTES,
        )
        ranges = device.offer(offer, read)
        device.refuses("payload-part-hash")
        assert min(first for first, _ in ranges.asked) >= size_bytes


def test_case_02_a_late_bit_past_2_gib(tmp_path: Path) -> None:
    late_bit(tmp_path, 2 * limits.GIB)


def test_case_02_a_late_bit_past_4_gib(tmp_path: Path) -> None:
    late_bit(tmp_path, 4 * limits.GIB)


def test_case_03_a_part_that_the_manifest_does_not_have(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        parts, extra = PACKED.index.parts, OTHER.index.parts[0]
        more = body_of(OTHER)[: extra.length]
        device.install(repacked(PACKED, (*parts, extra), body_of(PACKED) + more))
        device.refuses("payload-unfit")


def test_case_03_bytes_that_are_no_part(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        device.install(repacked(PACKED, PACKED.index.parts, body_of(PACKED) + bytes(4096)))
        device.refuses("payload-unfit")


def test_case_04_a_tampered_index(tmp_path: Path) -> None:
    """The parts are intact; the hash of one of them in the index is not."""
    with payload_scene(tmp_path) as device:
        part = PACKED.index.parts[0]
        assert isinstance(part, Zstd)
        at = PACKED.payload.index(part.sha256)
        device.install(PACKED, flipped(PACKED.payload, at + 5))
        device.refuses("payload-index-hash")


def test_case_04_a_tampered_trailer(tmp_path: Path) -> None:
    """A flag that this version does not know stands in the header."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED, flipped(PACKED.payload, 10 - container.TRAILER_SIZE_BYTES))
        device.refuses("format-unknown")


def test_case_04_a_tampered_manifest(tmp_path: Path) -> None:
    """What is said of the release is not what was signed; all that is installed is."""
    noted = replace(PACKED, manifest=msgspec.structs.replace(PACKED.manifest, notes="safe"))
    with payload_scene(tmp_path) as device:
        device.install(noted)
        files = device.repository.files
        for path in [path for path in files if path.endswith(".manifest")]:
            files[path] = files[path].replace(b'"safe"', b'"evil"')
        device.refuses("manifest-hash")


def test_case_08_a_part_that_points_elsewhere(tmp_path: Path) -> None:
    """What a link is to an archive: a part that takes its bytes from somewhere on the device."""
    with payload_scene(tmp_path) as device:
        parts = (Copy(((0, MIB),)), *PACKED.index.parts[1:])
        body = body_of(PACKED)[PACKED.index.offsets()[1] :]
        device.install(repacked(PACKED, parts, body))
        device.refuses("payload-malformed")


def bombed(device: PayloadScene, encoded: bytes) -> None:
    """The first part is this frame; the index says so."""
    first = Zstd(len(encoded), hashlib.sha256(encoded).digest())
    body = encoded + body_of(PACKED)[PACKED.index.offsets()[1] :]
    device.install(repacked(PACKED, (first, *PACKED.index.parts[1:]), body))


def test_case_09_a_frame_of_more_than_a_segment(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        bombed(device, compress(PACKED.image[:MIB] + b"x"))
        device.refuses("payload-malformed")


def test_case_09_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """Some KiB that would be 128 MiB: refused, and never in memory."""
    with payload_scene(tmp_path) as device:
        bombed(device, compress(bytes(128 * MIB)))
        tracemalloc.start()
        try:
            device.refuses("payload-malformed")
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 32 * MIB


def test_case_09_a_window_larger_than_allowed(tmp_path: Path) -> None:
    """A right frame of the right bytes, whose header asks for 128 MiB of window."""
    options: dict[int, int] = {CompressionParameter.window_log: 27, CompressionParameter.content_size_flag: 0}
    compressor = ZstdCompressor(options=options)
    with payload_scene(tmp_path) as device:
        bombed(device, compressor.compress(PACKED.image[:MIB]) + compressor.flush())
        device.refuses("payload-malformed")


def test_case_10_a_truncated_payload(tmp_path: Path) -> None:
    """The server's file is shorter than the one that was offered."""
    with payload_scene(tmp_path) as device:
        ranges = device.install(PACKED)
        ranges.size_bytes -= 1
        device.refuses("transfer-changed")


def test_case_10_a_part_that_ends_early(tmp_path: Path) -> None:
    """Its head says so: not a byte of it is taken."""
    with payload_scene(tmp_path) as device:
        ranges = device.install(PACKED)
        honest = ranges.read
        ranges.read = lambda first, end: honest(first, end)[:-1]
        device.refuses("transfer-short")
        assert device.ports.store.read(PARTIAL, MIB) is None


def test_case_10_more_than_was_asked_for(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        device.install(PACKED).longer_by = 1
        device.refuses("transfer-oversized")


def test_case_10_a_delta_against_another_base(tmp_path: Path) -> None:
    """It names the image that slot a is known to hold, and is made from another; the full one is no help."""
    with payload_scene(tmp_path) as device:
        base = hashlib.sha256((tmp_path / "a.img").read_bytes()).digest()
        known = {"a": Running(product="demo", version="1.0", image_sha256=base, image_size_bytes=4 * MIB)}
        device.ports.store.write(memory.SLOTS_FILE, msgspec.json.encode(known))
        sizes = [PACKED.manifest.segment_length_bytes(number) for number in range(2)]
        parts = tuple(Copy(((0, size),)) for size in sizes)
        delta = repacked(PACKED, parts, b"", base_sha256=base)
        offer = msgspec.structs.replace(delta.offer, kind="delta", base_sha256=base)
        device.install(PACKED)
        full = flipped(PACKED.payload, 1000)
        device.offer(
            offer,
            lambda first, end: delta.payload[first:end],
            PACKED.offer,
            lambda first, end: full[first:end],
        )
        device.refuses("payload-part-hash")
        asked = device.repository.asked
        assert f"device/v1/payloads/{offer.sha256.hex()}" in asked
