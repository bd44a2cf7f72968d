"""The ways of an image: by delta, out of the current slot, by the full payload, and from one to the next."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from tests.unit.agent.deltas import Delta, delta_of, device_on, forged, index_of, release_pair, with_blocks
from tests.unit.agent.fakes import MIB, Device, FakeResponse, Packed, config_for, image_of, pack, plan_for
from twinlock.agent import memory
from twinlock.agent import plan as plans
from twinlock.agent.install import Installer
from twinlock.agent.ports import Request
from twinlock.agent.progress import Progress
from twinlock.agent.pull import REFUSED_MAX
from twinlock.core.errors import TwinlockError, error
from twinlock.core.payload import container
from twinlock.core.payload.blocks import BLOCK_SIZE_BYTES, HASH_SIZE_BYTES

OLD, BARE = release_pair()
NEW = with_blocks(BARE)


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Delta:
    return delta_of(tmp_path_factory.mktemp("delta"), OLD, NEW.image)


def install(device: Device, packed: Packed = NEW, **network: object) -> Installer:
    plan = plans.load(device.store)
    assert plan is not None
    config = config_for(network={"retries": 3, "backoff_s_min": 0.01, "backoff_s_max": 0.02, **network})
    installer = Installer(device.ports, config, plan)
    installer.run()
    assert all(one.closed for one in device.slots.devices.values())
    assert device.holds("b", packed)
    return installer


def asked(device: Device) -> set[str]:
    """Hashes of the payloads that were asked for."""
    return {request.url.rpartition("/")[2] for request in device.network.requests}


def sent(device: Device) -> int:
    return device.network.bytes_sent


# --- delta ------------------------------------------------------------------------------------------------


def test_a_delta_is_all_that_travels(delta: Delta) -> None:
    device = device_on(OLD, NEW, delta)
    tally = install(device).tally
    assert tally.fetched_bytes == sent(device) == len(delta.payload)
    assert asked(device) == {delta.offer.sha256.hex()}
    assert len(delta.payload) < len(NEW.payload) / 20


def test_of_several_deltas_the_smallest_is_taken(delta: Delta) -> None:
    larger = msgspec.structs.replace(delta.offer, sha256=bytes(32), size_bytes=10**6)
    device = device_on(OLD, NEW, delta)
    plan = plans.load(device.store)
    assert plan is not None
    device.plan(msgspec.structs.replace(plan, payloads=(larger, *plan.payloads)))
    install(device)
    assert asked(device) == {delta.offer.sha256.hex()}


def test_a_delta_from_another_image_is_not_touched(delta: Delta) -> None:
    device = device_on(OLD, NEW, delta)
    device.store.write(memory.SLOTS_FILE, b"{}")  # what the slot holds is not known
    install(device)
    assert asked(device) == {NEW.offer.sha256.hex()}


@pytest.mark.parametrize("ways", [["adaptive", "full"], ["full"]])
def test_what_is_not_wanted_is_not_used(delta: Delta, ways: list[str]) -> None:
    device = device_on(OLD, NEW, delta)
    install(device, ways=ways)
    assert asked(device) == {NEW.offer.sha256.hex()}


def test_one_damaged_block_of_the_base_costs_its_segments_only(delta: Delta) -> None:
    device = device_on(OLD, NEW, delta)
    device.slots.devices["a"].data[5 * MIB + 50_000] ^= 1
    install(device)
    part = index_of(NEW.payload).parts[5].length
    tail = len(NEW.payload) - index_of(NEW.payload).body_size_bytes
    assert sent(device) == len(delta.payload) + part + tail
    assert any("segment 5 comes from the full payload" in note for note in device.display.notes)


def test_a_sector_of_the_base_that_cannot_be_read_costs_its_segments_only(delta: Delta) -> None:
    device = device_on(OLD, NEW, delta)
    device.slots.devices["a"].unreadable.add(5)
    install(device)
    assert sent(device) < len(delta.payload) + len(NEW.payload) / 2


def test_a_refused_segment_is_remembered(delta: Delta) -> None:
    """After a lost link its delta part is not fetched again, and the full part not counted twice."""
    device = device_on(OLD, NEW, delta)
    device.slots.devices["a"].data[5 * MIB + 50_000] ^= 1
    full = NEW.offer.sha256.hex()
    lost = error("connection-lost", "cut")

    def refuse(request: Request, response: FakeResponse) -> FakeResponse:
        if request.url.endswith(full):
            raise lost
        return response

    device.network.faults = [refuse] * 30
    with pytest.raises(TwinlockError, match="cut"):
        install(device)
    device.network.faults = []
    tally = install(device).tally
    assert tally.again_bytes == 0
    assert device.network.twice() == 0
    assert tally.fetched_bytes == sent(device)
    assert device.network.requests[-1].url.endswith(full)


def test_a_delta_whose_base_is_another_is_given_up(tmp_path: Path) -> None:
    """Its first parts tell; the rest of it is not fetched."""
    letters = "".join(chr(ord("a") + number) for number in range(16))
    old, wanted = image_of(letters), with_blocks(pack(image_of(letters, seed=1)))
    made = delta_of(tmp_path, old, wanted.image)
    device = device_on(old, wanted, made)
    rotten = device.slots.devices["a"].data
    rotten[: len(old)] = image_of(letters, seed=2)
    install(device, wanted)
    assert sum("comes from the full payload" in note for note in device.display.notes) == REFUSED_MAX + 1
    assert any("the delta is given up" in note for note in device.display.notes)


def test_a_forged_delta_part_costs_one_segment(delta: Delta) -> None:
    patched = next(number for number, part in enumerate(delta.index.parts) if part.length)
    device = device_on(OLD, NEW, forged(delta, patched))
    install(device)
    assert sent(device) < len(delta.payload) + len(NEW.payload) / 2


@pytest.mark.parametrize(
    "answer",
    [
        FakeResponse(404, {}, b'{"error":{"code":"not-found","what":"gone"}}'),
        FakeResponse(206, {"content-length": "1", "content-range": "bytes 0-0/1", "etag": '"x"'}, b"x"),
    ],
)
def test_a_delta_that_the_server_does_not_have_is_given_up(delta: Delta, answer: FakeResponse) -> None:
    device = device_on(OLD, NEW, delta)
    gone = delta.offer.sha256.hex()

    def fail(request: Request, response: FakeResponse) -> FakeResponse:
        return FakeResponse(answer.status, answer.headers, answer.body) if gone in request.url else response

    device.network.faults = [fail] * 50
    install(device)
    assert any("the delta is given up" in note for note in device.display.notes)


def test_an_index_for_another_base_gives_the_delta_up(delta: Delta) -> None:
    offers = msgspec.structs.replace(delta.index, base_sha256=bytes(32))
    body = delta.payload[: delta.index.body_size_bytes]
    wrong = Delta(body + container.encode_tail(offers), offers)
    device = device_on(OLD, NEW, wrong)
    plan = plans.load(device.store)
    assert plan is not None
    claimed = msgspec.structs.replace(wrong.offer, base_sha256=delta.index.base_sha256)
    device.plan(msgspec.structs.replace(plan, payloads=(NEW.offer, claimed)))
    install(device)
    assert any("another base" in note for note in device.display.notes)


def test_a_link_that_breaks_within_a_delta_ends_the_run_and_the_next_goes_on(delta: Delta) -> None:
    device = device_on(OLD, NEW, delta)
    device.network.faults = [error("connection-lost", "cut")] * 4
    with pytest.raises(TwinlockError, match="cut"):
        install(device)
    tally = install(device).tally
    assert asked(device) == {delta.offer.sha256.hex()}
    assert (tally.fetched_bytes, tally.again_bytes) == (len(delta.payload), 0)


# --- adaptive ---------------------------------------------------------------------------------------------


def test_what_the_current_slot_holds_is_not_fetched() -> None:
    """Whole segments elsewhere need nothing, shifted ones their block hashes, a changed one its part."""
    device = device_on(OLD, NEW)
    tally = install(device).tally
    index = index_of(NEW.payload)
    tail = len(NEW.payload) - index.body_size_bytes
    hashes = 4 * (MIB // BLOCK_SIZE_BYTES) * HASH_SIZE_BYTES  # segments 1 to 3, and 5
    assert tally.fetched_bytes == sent(device) == tail + hashes + index.parts[5].length
    assert tally.again_bytes == device.network.twice() == 0


def test_without_block_hashes_whole_segments_are_found() -> None:
    device = device_on(OLD, BARE)
    install(device, BARE)
    index = BARE.index
    tail = len(BARE.payload) - index.body_size_bytes
    assert sent(device) == tail + sum(index.parts[number].length for number in (1, 2, 3, 5))


def test_the_current_slot_is_read_once_for_its_whole_segments() -> None:
    """Also one that the image has twice, and one that lies elsewhere in the slot."""
    old = image_of("abcd")
    a, b, _, d = (old[start : start + MIB] for start in range(0, len(old), MIB))
    wanted = pack(b + b + a + d)
    device = device_on(old, wanted)
    install(device, wanted)
    slots = device.slots.devices
    assert slots["a"].read_bytes == len(slots["a"].data)
    assert slots["b"].written == [2, 0, 1, 3]
    assert device.network.requests == []


def test_a_slot_with_something_else_costs_a_few_hashes() -> None:
    letters = "x" * 40
    wanted = with_blocks(pack(image_of(letters, seed=9)))
    device = device_on(OLD, wanted)
    for name, data in (("a", OLD), ("b", b"")):
        device.slots.devices[name].data[:] = (data + bytes(64 * MIB))[: 48 * MIB] or bytes(48 * MIB)
        device.slots.devices[name].data.extend(bytes(48 * MIB - len(device.slots.devices[name].data)))
    install(device, wanted)
    hashes = 32 * (MIB // BLOCK_SIZE_BYTES) * HASH_SIZE_BYTES
    assert sent(device) == len(wanted.payload) - index_of(wanted.payload).blocks_size_bytes + hashes


def test_forged_block_hashes_cost_a_fetch_and_no_more() -> None:
    """Hashes of other blocks that the slot has: what they make up is not what was signed."""
    body = bytearray(NEW.payload)
    start = NEW.index.offsets()[-1]
    step = MIB // BLOCK_SIZE_BYTES * HASH_SIZE_BYTES
    body[start + step : start + 2 * step] = body[start + 2 * step : start + 3 * step]
    lying = Packed(NEW.image, NEW.manifest, bytes(body), NEW.index)
    device = device_on(OLD, lying)
    install(device, lying)
    honest = device_on(OLD, NEW)
    install(honest)
    assert sent(device) == sent(honest) + NEW.index.parts[1].length


def test_unreadable_sectors_of_the_current_slot_are_fetched() -> None:
    device = device_on(OLD, NEW)
    device.slots.devices["a"].unreadable |= {1, 4}
    install(device)
    assert NEW.index.parts[4].length < sent(device) < len(NEW.payload)


def test_a_current_slot_that_cannot_be_opened_costs_the_full_payload(delta: Delta) -> None:
    device = device_on(OLD, NEW, delta)

    def refuse(slot: str) -> object:
        raise error("slot-unusable", f"slot {slot}: no such device")

    device.slots.look = refuse  # type: ignore[method-assign, assignment]
    install(device)
    assert asked(device) == {NEW.offer.sha256.hex()}
    assert any("slot a cannot be read" in note for note in device.display.notes)


def test_zeros_and_short_tails_are_no_trouble() -> None:
    old = image_of("ab")
    new = bytearray(old + image_of("c", tail_bytes=0))
    new[MIB : MIB + 8192] = bytes(8192)
    new[4096:4096] = bytes(4096)  # shifts all by a block of zeros
    image = bytes(new[: 2 * MIB + 512 * 5])
    wanted = with_blocks(pack(image))
    device = device_on(old, wanted)
    install(device, wanted)
    assert sent(device) < len(wanted.payload)


# --- what is kept -----------------------------------------------------------------------------------------


def test_the_log_knows_what_was_refused_after_a_restart(delta: Delta) -> None:
    device = device_on(OLD, NEW, delta)
    job = plan_for(NEW).job
    progress = Progress.open(device.store, job, 6)
    progress.received(3)
    progress.refused(3)
    for _ in range(2):  # replayed, then rewritten and replayed
        progress = Progress.open(device.store, job, 6)
        assert progress.is_refused(3)
        assert not progress.was_received(3)
        assert not progress.is_refused(2)


def test_block_hashes_are_bounded() -> None:
    for size_bytes in (8, -8, NEW.index.blocks_size_bytes + 8, 2**60):
        tail = container.encode_tail(msgspec.structs.replace(NEW.index, blocks_size_bytes=size_bytes))
        with pytest.raises(TwinlockError, match="one for each block"):
            index_of(tail)


def test_an_index_has_one_form() -> None:
    """No block hashes are said by saying nothing."""
    index = msgspec.structs.replace(NEW.index, blocks_size_bytes=0)
    body = msgspec.msgpack.encode(index)
    trailer = container.Trailer(len(body), hashlib.sha256(body).digest())
    with pytest.raises(TwinlockError, match="one form"):
        container.decode_index(body, trailer)
    assert index_of(container.encode_tail(index)) == index
