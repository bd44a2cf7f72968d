"""Installing: what is written, when, and what happens when the world does not play along."""

from __future__ import annotations

import pytest

from tests.unit.agent.fakes import (
    MIB,
    Device,
    FakeResponse,
    Packed,
    config_for,
    device_with,
    image_of,
    memory_slots,
    pack,
    plan_for,
)
from twinlock.agent import plan as plans
from twinlock.agent.fetch import Tally
from twinlock.agent.install import Installer
from twinlock.agent.ports import Request
from twinlock.core.errors import TwinlockError, error

PACKED = pack(image_of("ab0cd", tail_bytes=512 * 7))


def install(device: Device, packed: Packed = PACKED) -> Tally:
    plan = plans.load(device.store)
    assert plan is not None
    installer = Installer(device.ports, config_for(), plan)
    try:
        installer.run()
    finally:
        assert device.slots.devices["b"].closed
        assert all(one.closed for one in device.slots.devices.values())
    assert device.holds("b", packed)
    return installer.tally


def refuse(device: Device, code: str) -> str:
    with pytest.raises(TwinlockError) as caught:
        install(device)
    assert caught.value.code == code
    return caught.value.what


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_the_slot_holds_the_image_and_every_byte_came_once() -> None:
    device = device_with(PACKED)
    tally = install(device)
    assert tally.fetched_bytes == len(PACKED.payload) == device.network.bytes_sent
    assert tally.again_bytes == 0
    assert device.boot.changes == ["invalidate b"]
    assert len(device.network.requests) == 2  # the index, and one run for all parts
    rest = bytes(device.slots.devices["b"].data[len(PACKED.image) :])
    assert rest == bytes(memory_slots(b"").devices["b"].data[len(PACKED.image) :]), "bytes behind the image"


def test_the_slot_is_invalid_before_its_first_byte_changes() -> None:
    device = device_with(PACKED)

    def check() -> None:
        assert "b" in device.boot.record.failed

    device.slots.devices["b"].before_write = check
    install(device)
    assert device.slots.devices["b"].written


def test_it_is_read_back_only_after_a_flush_and_without_the_cache() -> None:
    device = device_with(PACKED)
    install(device)
    assert device.slots.devices["b"].log[-2:] == ["sync", "drop"]
    phases = [phase for phase, _, _ in device.display.shown]
    assert phases.index("look") < phases.index("fetch") < phases.index("verify")


def test_a_payload_refused_at_its_first_part_leaves_the_record_untouched() -> None:
    device = device_with(PACKED)
    sha256 = PACKED.offer.sha256.hex()
    device.network.payloads[sha256] = flipped(PACKED.payload, 100)
    before = bytes(device.slots.devices["b"].data)
    refuse(device, "payload-part-hash")
    assert device.boot.changes == []
    assert bytes(device.slots.devices["b"].data) == before
    part = PACKED.index.parts[0].length
    assert device.network.bytes_sent < 4 * part + len(PACKED.payload), "it is not asked for without end"


def test_a_part_damaged_on_the_way_is_fetched_again_and_counted() -> None:
    device = device_with(PACKED)

    def damage(request: Request, response: FakeResponse) -> FakeResponse:
        response.body = flipped(response.body, 7)
        return response

    device.network.faults = [None, damage]
    tally = install(device)
    assert tally.again_bytes == PACKED.index.parts[0].length
    assert tally.fetched_bytes == len(PACKED.payload) + tally.again_bytes


def test_an_index_damaged_on_the_way_is_fetched_again_and_counted() -> None:
    device = device_with(PACKED)

    def damage(request: Request, response: FakeResponse) -> FakeResponse:
        response.body = flipped(response.body, 7)
        return response

    device.network.faults = [damage]
    tally = install(device)
    assert tally.again_bytes == len(PACKED.payload) - PACKED.index.offsets()[-1]


def test_a_forged_index_ends_at_the_signed_hash() -> None:
    other = pack(image_of("xy0zw", tail_bytes=512 * 7))
    forged_index = other.index.__class__(
        PACKED.index.image_sha256, PACKED.index.image_size_bytes, None, other.index.parts
    )
    from twinlock.core.payload import container

    body = other.payload[: other.index.offsets()[-1]]
    forged = Packed(PACKED.image, PACKED.manifest, body + container.encode_tail(forged_index), forged_index)
    device = device_with(forged)
    before = bytes(device.slots.devices["b"].data)
    refuse(device, "segment-hash")
    assert bytes(device.slots.devices["b"].data) == before
    assert device.boot.changes == []


@pytest.mark.parametrize(
    ("position", "code"),
    [(-1, "payload-index-hash"), (-56, "payload-malformed"), (-60, "payload-index-hash")],
)
def test_a_damaged_tail_is_refused(position: int, code: str) -> None:
    device = device_with(PACKED)
    damaged = flipped(PACKED.payload, len(PACKED.payload) + position)
    device.network.payloads[PACKED.offer.sha256.hex()] = damaged
    refuse(device, code)
    assert device.boot.changes == []


def test_a_payload_of_another_image_is_refused() -> None:
    other = pack(image_of("qrst"))
    device = device_with(Packed(PACKED.image, PACKED.manifest, other.payload, other.index))
    refuse(device, "payload-unfit")


def test_what_the_slot_already_holds_is_not_fetched() -> None:
    older = image_of("ab0cd", tail_bytes=512 * 7)
    changed = bytearray(older)
    changed[3 * MIB + 5] ^= 1
    device = device_with(PACKED, slots=memory_slots(b"", bytes(changed)))
    tally = install(device)
    tail = len(PACKED.payload) - PACKED.index.offsets()[-1]
    assert tally.fetched_bytes == PACKED.index.parts[3].length + tail
    assert device.slots.devices["b"].written == [3]


def test_a_slot_that_holds_the_image_costs_no_byte_and_no_write() -> None:
    device = device_with(PACKED, slots=memory_slots(b"", PACKED.image))
    assert install(device).fetched_bytes == 0
    assert device.network.requests == []
    assert device.boot.changes == []
    assert device.slots.devices["b"].written == []


def test_zeros_are_written_though_nothing_is_fetched_for_them() -> None:
    packed = pack(image_of("000"))
    device = device_with(packed)
    assert install(device, packed).fetched_bytes == 0
    assert device.slots.devices["b"].written == [0, 1, 2]


def test_a_slot_is_read_twice_and_again_only_to_find_what_is_wrong() -> None:
    device = device_with(PACKED)
    install(device)
    assert device.slots.devices["b"].read_bytes == 2 * len(PACKED.image)  # looked at, and read back
    wrong = device_with(PACKED)
    wrong.slots.devices["b"].rotten = frozenset({1})
    refuse(wrong, "slot-readback")
    assert wrong.slots.devices["b"].read_bytes == (1 + 2 * 3) * len(PACKED.image)


def test_zeros_in_the_slot_are_not_taken_for_what_was_signed() -> None:
    """They are told without a hash: in a full segment, and in a short one after a full one of zeros."""
    for image in (image_of("ab"), image_of("a0", tail_bytes=512 * 3), image_of("0a", tail_bytes=512 * 3)):
        packed = pack(image)
        device = device_with(packed, slots=memory_slots(b"", bytes(len(image))))
        install(device, packed)
        segments = [image[start : start + MIB] for start in range(0, len(image), MIB)]
        assert device.slots.devices["b"].written == [n for n, one in enumerate(segments) if any(one)]
        assert device.holds("b", packed)


def test_a_sector_that_cannot_be_read_is_written() -> None:
    device = device_with(PACKED, slots=memory_slots(b"", PACKED.image))
    device.slots.devices["b"].unreadable = {1}
    install(device)
    assert device.slots.devices["b"].written == [1]


def test_a_medium_that_loses_bits_is_found_and_never_called_good() -> None:
    device = device_with(PACKED)
    device.slots.devices["b"].rotten = frozenset({1})
    refuse(device, "slot-readback")
    assert device.slots.devices["b"].written.count(1) == 3  # written, and twice again
    assert "b" in device.boot.record.failed


def test_a_bit_lost_once_is_mended_and_counted() -> None:
    device = device_with(PACKED)
    slot = device.slots.devices["b"]
    drop = slot.drop_cache
    lost: list[bool] = []

    def lose() -> None:
        drop()
        if not lost:
            lost.append(True)
            slot.data[3 * MIB + 9] ^= 4

    slot.drop_cache = lose  # type: ignore[method-assign]
    tally = install(device)
    assert tally.again_bytes == PACKED.index.parts[3].length
    assert slot.written.count(3) == 2


def test_an_image_that_does_not_fit_is_refused_untouched() -> None:
    device = device_with(PACKED, slots=memory_slots(b"", size_bytes=4 * MIB))
    refuse(device, "image-too-large")
    assert device.network.requests == []


@pytest.mark.parametrize("use", ["default", "booted", "trial"])
def test_a_slot_in_use_is_refused_whatever_the_plan_says(use: str) -> None:
    device = device_with(PACKED)
    if use == "default":
        device.boot.record = device.boot.record.__class__(seq=1, default="b")
    elif use == "booted":
        device.boot.slot = "b"
    else:
        device.boot.record = device.boot.record.__class__(seq=1, default="a", trying="b", tries_left=1)
    before = bytes(device.slots.devices["b"].data)
    refuse(device, "boot-refused")
    assert bytes(device.slots.devices["b"].data) == before


def test_a_plan_whose_manifest_is_another_is_refused() -> None:
    other = plan_for(pack(image_of("zz"), version="9"))
    plan = plan_for(PACKED)
    device = Device()
    with pytest.raises(TwinlockError) as caught:
        Installer(
            device.ports,
            config_for(),
            plan.__class__(
                job=plan.job,
                manifest=other.manifest,
                payloads=plan.payloads,
                server="",
                token="t",
                token_expires_s=0,
            ),
        )
    assert caught.value.code == "manifest-hash"


def test_a_full_disk_ends_it_and_the_next_run_goes_on() -> None:
    device = device_with(PACKED)
    written: list[str] = []

    def fill_up(name: str) -> None:
        written.append(name)
        if len(written) == 6:
            raise error("disk-full", "no space")

    device.store.before = fill_up
    refuse(device, "disk-full")
    device.store.before = lambda name: None
    install(device)
    assert device.network.twice() <= PACKED.index.parts[0].length


def test_after_a_lost_link_the_next_run_asks_for_no_byte_again() -> None:
    device = device_with(PACKED)
    cut = PACKED.index.parts[0].length + 12_345
    lost = error("server-unreachable", "gone")
    device.network.faults = [None, cut, lost, lost, lost]
    refuse(device, "server-unreachable")
    tally = install(device)
    assert device.network.twice() == 0
    assert tally.fetched_bytes == device.network.bytes_sent == len(PACKED.payload)
    assert tally.again_bytes == 0


def test_a_link_lost_in_the_index_costs_no_byte_either() -> None:
    device = device_with(PACKED)
    lost = error("server-unreachable", "gone")
    device.network.faults = [33, lost, lost, lost]
    refuse(device, "server-unreachable")
    tally = install(device)
    assert device.network.twice() == 0
    assert tally.fetched_bytes == len(PACKED.payload)


def test_another_assignment_of_the_same_image_starts_its_own_count() -> None:
    device = device_with(PACKED)
    install(device)
    device.plan(plan_for(PACKED, "r2"))
    assert install(device) == Tally(0, 0)


def test_an_expired_session_is_renewed_in_the_middle() -> None:
    device = device_with(PACKED)

    def renew(request: plans.CheckRequest) -> plans.CheckAnswer:
        assert request.mode == "session"
        from twinlock.agent import session

        session.save(device.store, "fresh", 600, device.clock.now_s())
        device.network.tokens = {"fresh"}
        return plans.CheckAnswer()

    device.checker.on_check = renew
    device.network.tokens = set()
    install(device)
    assert [request.mode for request in device.checker.requests] == ["session"]


def test_a_server_that_refuses_every_session_is_not_asked_for_ever() -> None:
    device = device_with(PACKED)
    device.network.tokens = set()

    def renew(request: plans.CheckRequest) -> plans.CheckAnswer:
        from twinlock.agent import session

        session.save(device.store, "useless", 600, device.clock.now_s())
        return plans.CheckAnswer()

    device.checker.on_check = renew
    refuse(device, "session-expired")
    assert len(device.checker.requests) == 2
